//! What was found, in plain words: faults, and what to set.

use super::super::iv::IvSource;
use super::super::profiles::Profile;
use super::super::settings::TokenSettings;
use super::{Examination, KeyFound, KeyRole};

/// Longest encryption that leaves KMS's 250 ms room for the way there and back.
const SLOW_US: u64 = 100_000;
/// A number of sessions is as good as the best if it does this share of its work, in percent.
const GOOD_ENOUGH_PERCENT: u64 = 90;

/// Adds faults and advice to what was found.
pub(super) fn give(settings: &TokenSettings, found: &mut Examination) {
    let (mut faults, mut advice) = (Vec::new(), Vec::new());
    if found.mechanisms.as_ref().is_some_and(|mechanisms| mechanisms.aes_gcm_key_sizes.is_none()) {
        advice.push(
            "This token cannot serve an external key store, whatever is set: it has no AES-GCM. YubiHSM 2, NetHSM and TPMs \
             are of this kind."
                .to_owned(),
        );
    }
    judge_iv_sources(found, &mut faults, &mut advice);
    judge_bad_tag(found, &mut faults, &mut advice);
    judge_sessions(settings, found, &mut faults, &mut advice);
    judge_speed(settings, found, &mut advice);
    for key in &found.keys {
        judge_key(key, &mut faults, &mut advice);
    }
    advise_by_profile(found, &mut advice);
    found.faults.extend(faults);
    found.advice.extend(advice);
}

fn judge_iv_sources(found: &Examination, faults: &mut Vec<String>, advice: &mut Vec<String>) {
    let Some(used) = found.iv_sources.iter().find(|tried| tried.is_used) else { return };
    let Some(problem) = &used.problem else { return };
    faults.push(format!(
        "with iv_source = \"{}\" the token makes no good ciphertexts: {problem}; the proxy does not use it so",
        used.iv_source
    ));
    let working: Vec<IvSource> = found
        .iv_sources
        .iter()
        .filter(|tried| tried.problem.is_none())
        .map(|tried| tried.iv_source)
        .collect();
    advice.push(match working.as_slice() {
        [] => "No IV source works. Is the health key an AES-256 key that may encrypt and decrypt, and may the user who logs \
               in use it?"
            .to_owned(),
        [source, ..] => format!("Set iv_source = \"{source}\": that works."),
    });
}

fn judge_bad_tag(found: &Examination, faults: &mut Vec<String>, advice: &mut Vec<String>) {
    let Some(bad_tag) = &found.bad_tag else { return };
    match bad_tag.taken_for {
        "bad_tag" => {}
        "bad_tag_or_fault" => advice.push(format!(
            "Of a bad tag, {}, which can be a fault as well. Nothing is to be set: each time, another ciphertext of the health \
             key decides.",
            bad_tag.answer
        )),
        "success" => faults.push(
            "the token decrypts a ciphertext whose tag does not fit: it must not be used".to_owned(),
        ),
        other => faults.push(format!(
            "of a bad tag, {}, which the proxy takes for a fault of the token ({other}): AWS KMS would retry where the \
             ciphertext is bad",
            bad_tag.answer
        )),
    }
    let is_expected = |code: &String| bad_tag.answer.ends_with(code.as_str());
    if !bad_tag.expected.is_empty() && !bad_tag.expected.iter().any(is_expected) {
        advice.push(format!(
            "Of a bad tag, {}, where the profile expects {}: another version, or another kind of token?",
            bad_tag.answer,
            bad_tag.expected.join(" or ")
        ));
    }
    if !bad_tag.decrypts_afterwards {
        faults.push(
            "after a bad tag the session does not decrypt any more; the proxy opens another".to_owned(),
        );
    }
}

fn judge_sessions(
    settings: &TokenSettings,
    found: &Examination,
    faults: &mut Vec<String>,
    advice: &mut Vec<String>,
) {
    let Some(sessions) = found.sessions.as_ref().filter(|sessions| sessions.opened < sessions.needed) else {
        return;
    };
    let code = sessions.refusal.as_deref().unwrap_or("no code");
    faults.push(format!(
        "the token gives {} sessions at once ({code}); the proxy needs {}: sessions and one more",
        sessions.opened, sessions.needed
    ));
    let fitting = sessions.opened.saturating_sub(1);
    if fitting == 0 {
        advice.push("Let other clients of the token close sessions, or raise its limit.".to_owned());
    } else {
        advice.push(format!("Set sessions = {fitting} in place of {}.", settings.sessions));
    }
}

fn judge_speed(settings: &TokenSettings, found: &Examination, advice: &mut Vec<String>) {
    if let Some(slowest) = found.times.iter().max_by_key(|time| time.encrypt_median_us)
        && slowest.encrypt_median_us > SLOW_US
    {
        advice.push(format!(
            "An encryption of {} bytes takes {} ms. AWS KMS waits 250 ms for the whole answer: bring proxy and HSM closer \
             together.",
            slowest.plaintext_bytes,
            slowest.encrypt_median_us / 1000
        ));
    }
    let Some(best) = found.throughput.iter().map(|measured| measured.encryptions_per_second).max() else {
        return;
    };
    let is_good = |rate: u64| rate * 100 >= best * GOOD_ENOUGH_PERCENT;
    let Some(enough) = found.throughput.iter().find(|measured| is_good(measured.encryptions_per_second))
    else {
        return;
    };
    if enough.sessions != settings.sessions {
        advice.push(format!(
            "{} sessions did {} encryptions a second, and none of the other numbers tried much more: sessions = {} fits ({} \
             is set).",
            enough.sessions, enough.encryptions_per_second, enough.sessions, settings.sessions
        ));
    }
}

fn judge_key(key: &KeyFound, faults: &mut Vec<String>, advice: &mut Vec<String>) {
    let name = format!("{} ({})", key.name, key.locator);
    match key.count {
        0 if key.role == KeyRole::Staged => {
            return advice.push(format!(
                "{name}: the token does not hold it yet. Make it primary nowhere before it is in every token."
            ));
        }
        0 => return faults.push(format!("{name}: the token holds no such secret key")),
        1 => {}
        count => {
            return faults.push(format!(
                "{name}: {count} keys of the token answer to it; rename or remove all but one"
            ));
        }
    }
    let is = |attribute, value: &str| key.attributes.get(attribute).is_some_and(|told| told == value);
    if !is("CKA_KEY_TYPE", "CKK_AES") || !is("CKA_VALUE_LEN", "32") {
        faults.push(format!("{name}: it is not an AES key of 256 bits"));
    }
    for (attribute, usage) in [("CKA_ENCRYPT", "encrypt"), ("CKA_DECRYPT", "decrypt")] {
        let is_needed = usage == "decrypt" || key.role != KeyRole::Retired;
        if is_needed && !is(attribute, "true") {
            faults.push(format!("{name}: it may not {usage} ({attribute} is not true)"));
        }
    }
    for (attribute, wanted, why) in [
        ("CKA_SENSITIVE", "true", "its value can be read"),
        ("CKA_EXTRACTABLE", "false", "its value can leave the token wrapped"),
        ("CKA_WRAP", "false", "it can carry other keys out of the token"),
        ("CKA_SIGN", "false", "it has another use besides encryption"),
        ("CKA_DERIVE", "false", "other keys can be derived from it"),
    ] {
        if key.attributes.get(attribute).is_some_and(|told| told != wanted) {
            advice.push(format!("{name}: {attribute} is not {wanted}: {why}. A new key should be stricter."));
        }
    }
}

fn advise_by_profile(found: &Examination, advice: &mut Vec<String>) {
    let Some(used) = &found.profile else { return };
    let Some(profile) = Profile::all().iter().find(|profile| profile.name == used.name) else { return };
    if profile.name == "generic" && !used.is_configured {
        advice.push(
            "Nothing is known of this manufacturer. Whatever a ciphertext depends on is proven at each connect all the same."
                .to_owned(),
        );
    }
    advice.extend(profile.notes.iter().map(|note| (*note).to_owned()));
    if used.needs_reinitialisation {
        advice.push(
            "After all its members were lost, only C_Finalize and C_Initialize bring it back.".to_owned(),
        );
    }
}
