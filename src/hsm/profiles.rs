//! What is known of the PKCS#11 modules of each vendor, as a table.
//!
//! Each cell says how it is known. Nothing that a ciphertext depends on is believed: the IV source is proven at every
//! connect, and what a code means where it may mean two things is proven at every decryption. `docs/hsm/README.md` shows the
//! table; a test compares the two.

use cryptoki::error::RvError;

use super::ckr::{self, Meaning};
use super::iv::IvSource;
use super::session::Access;

/// How a cell is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Evidence {
    /// By `xks-proxy doctor` and the tests; `docs/hsm/evidence` has the report.
    Measured,
    /// Somebody who should know says so, at this address.
    Documented(&'static str),
    /// Nobody has told: the value is a guess on which no ciphertext depends.
    Unknown,
}

/// A value and how it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell<T> {
    pub(super) value: T,
    pub(super) evidence: Evidence,
}

const fn measured<T>(value: T) -> Cell<T> {
    Cell { value, evidence: Evidence::Measured }
}

const fn documented<T>(value: T, address: &'static str) -> Cell<T> {
    Cell { value, evidence: Evidence::Documented(address) }
}

const fn unknown<T>(value: T) -> Cell<T> {
    Cell { value, evidence: Evidence::Unknown }
}

/// What is known of one kind of token.
#[derive(Debug)]
pub struct Profile {
    /// The word for it in the configuration.
    pub name: &'static str,
    /// How the manufacturer begins that such a token states, in any case of letters.
    pub(super) manufacturers: Cell<&'static [&'static str]>,
    /// Where IVs come from, unless the configuration says.
    pub(super) iv_source: Cell<IvSource>,
    /// What C_Decrypt says of a tag that does not fit.
    pub(super) bad_tag: Cell<&'static [RvError]>,
    /// What CKR_GENERAL_ERROR of C_Decrypt means.
    pub(super) general_error: Cell<Meaning>,
    /// What CKR_FUNCTION_FAILED of C_Decrypt means.
    pub(super) function_failed: Cell<Meaning>,
    /// What calls say of the handle of a key that is gone, where that is not one of the standard's codes.
    pub(super) gone_key: Cell<Option<RvError>>,
    /// Whether a token that was lost comes back only after C_Finalize and C_Initialize.
    pub(super) needs_reinitialisation: Cell<bool>,
    /// Whether C_OpenSession refuses sessions that are not read-write.
    pub(super) refuses_read_only: Cell<bool>,
    /// What to know besides, a sentence each.
    pub(super) notes: &'static [&'static str],
}

impl PartialEq for Profile {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Profile {}

// QUIRK(cloudhsm): it takes only a buffer of zeros for an IV, and writes its own there.
const CLOUDHSM_MECHANISMS: &str =
    "https://docs.aws.amazon.com/cloudhsm/latest/userguide/pkcs11-mechanisms.html";
// QUIRK(cloudhsm): without CKF_RW_SESSION its C_OpenSession says CKR_FUNCTION_FAILED.
const CLOUDHSM_KNOWN_ISSUES: &str =
    "https://docs.aws.amazon.com/cloudhsm/latest/userguide/ki-pkcs11-sdk.html";
// QUIRK(luna): in FIPS mode it makes an IV of 16 bytes and puts it behind the tag.
const LUNA_AES_GCM: &str =
    "https://thalesdocs.com/gphsm/luna/7/docs/network/Content/sdk/mechanisms/CKM_AES_GCM.htm";
// QUIRK(luna): a group that has lost all its members is recovered by finalising and initialising the module alone.
const LUNA_ALL_MEMBERS_LOST: &str =
    "https://thalesdocs.com/gphsm/luna/6.0/docs/pci/Content/sdk/java/ha_recover_all_members.htm";
// QUIRK(nshield): it wants a buffer of zeros, and writes its own IV there.
const NSHIELD_IV: &str =
    "https://github.com/aws-samples/aws-kms-xks-proxy/blob/main/xks-axum/configuration/settings_nshield.toml";
// QUIRK(nshield): a bad tag is CKR_FUNCTION_FAILED.
const NSHIELD_BAD_TAG: &str =
    "https://github.com/aws-samples/aws-kms-xks-proxy/blob/main/xks-axum/src/xks_proxy/handlers/mod.rs";
// QUIRK(nshield): the manufacturer is still the company's former name.
const NSHIELD_MANUFACTURER: &str = "https://github.com/PeculiarVentures/graphene/blob/master/test/helpers.ts";

/// The table. The last row is that of every token of which nothing is known.
static PROFILES: [Profile; 6] = [
    Profile {
        name: "softhsm",
        manufacturers: measured(&["SoftHSM project"]),
        iv_source: measured(IvSource::OperatingSystem),
        bad_tag: measured(&[RvError::GeneralError]),
        general_error: measured(Meaning::BadTagOrFault),
        function_failed: unknown(Meaning::BadTagOrFault),
        gone_key: measured(None),
        needs_reinitialisation: unknown(false),
        refuses_read_only: measured(false),
        notes: &[
            "It is a token in software, for development and tests.",
            "One session is fastest: its threads wait for each other.",
        ],
    },
    Profile {
        name: "kryoptic",
        manufacturers: measured(&["Kryoptic Project"]),
        iv_source: measured(IvSource::OperatingSystem),
        bad_tag: measured(&[RvError::EncryptedDataInvalid]),
        general_error: unknown(Meaning::BadTagOrFault),
        function_failed: unknown(Meaning::BadTagOrFault),
        // QUIRK(kryoptic): 1.5.4 says CKR_GENERAL_ERROR of a key that another process has destroyed (docs/hsm/README.md).
        gone_key: measured(Some(RvError::GeneralError)),
        needs_reinitialisation: unknown(false),
        refuses_read_only: measured(false),
        notes: &[
            "It is a token in software, for development and tests.",
            "A C_Logout while another thread begins an encryption can block both for ever (1.5.4). The proxy never logs out.",
        ],
    },
    Profile {
        name: "cloudhsm",
        manufacturers: unknown(&["Marvell", "Cavium"]),
        iv_source: documented(IvSource::WrittenBack, CLOUDHSM_MECHANISMS),
        bad_tag: unknown(&[]),
        general_error: unknown(Meaning::BadTagOrFault),
        function_failed: unknown(Meaning::BadTagOrFault),
        gone_key: unknown(None),
        needs_reinitialisation: unknown(false),
        refuses_read_only: documented(true, CLOUDHSM_KNOWN_ISSUES),
        notes: &[
            "The PIN is USER:PASSWORD of a crypto user.",
            "Its client retries by itself, which can take longer than AWS KMS waits: let it retry less.",
            "A cluster of one HSM works only with the client's key availability check switched off.",
            "It encrypts at most 16 KB at once.",
        ],
    },
    Profile {
        name: "luna",
        manufacturers: unknown(&["SafeNet", "Thales"]),
        iv_source: documented(IvSource::Appended, LUNA_AES_GCM),
        bad_tag: unknown(&[RvError::EncryptedDataInvalid, RvError::EncryptedDataLenRange]),
        general_error: unknown(Meaning::BadTagOrFault),
        function_failed: unknown(Meaning::BadTagOrFault),
        gone_key: unknown(None),
        needs_reinitialisation: documented(true, LUNA_ALL_MEMBERS_LOST),
        refuses_read_only: unknown(false),
        notes: &[
            "This is how it is in FIPS mode. Out of FIPS mode it takes the caller's IV: set iv_source = \"os\".",
        ],
    },
    Profile {
        name: "nshield",
        manufacturers: documented(&["nCipher"], NSHIELD_MANUFACTURER),
        iv_source: documented(IvSource::WrittenBack, NSHIELD_IV),
        bad_tag: documented(&[RvError::FunctionFailed], NSHIELD_BAD_TAG),
        general_error: unknown(Meaning::BadTagOrFault),
        function_failed: documented(Meaning::BadTagOrFault, NSHIELD_BAD_TAG),
        gone_key: unknown(None),
        needs_reinitialisation: unknown(false),
        refuses_read_only: unknown(false),
        notes: &[
            "Several modules share the load, and one may fail, only with CKNFAST_LOADSHARING=1 in the environment.",
            "Slot 0 may be the accelerator, which holds no keys: choose the token by its label.",
        ],
    },
    Profile {
        name: "generic",
        manufacturers: unknown(&[]),
        iv_source: unknown(IvSource::OperatingSystem),
        bad_tag: unknown(&[]),
        general_error: unknown(Meaning::BadTagOrFault),
        function_failed: unknown(Meaning::BadTagOrFault),
        gone_key: unknown(None),
        needs_reinitialisation: unknown(false),
        refuses_read_only: unknown(false),
        notes: &[],
    },
];

impl Profile {
    /// Every profile; that for tokens of which nothing is known is the last.
    #[must_use]
    pub const fn all() -> &'static [Self] {
        &PROFILES
    }

    /// The profile of tokens that state this manufacturer.
    #[must_use]
    pub fn of_manufacturer(manufacturer: &str) -> &'static Self {
        let [known @ .., generic] = &PROFILES;
        let begins_with = |start: &&str| {
            manufacturer.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start))
        };
        known.iter().find(|profile| profile.manufacturers.value.iter().any(begins_with)).unwrap_or(generic)
    }

    /// What a return code of a call means that names a key, and has not yet seen what it is to work on.
    pub(super) fn meaning_for_key(&self, code: RvError) -> Meaning {
        if self.gone_key.value == Some(code) { Meaning::KeyGone } else { ckr::meaning(code) }
    }

    /// What sessions may do that use keys: no more than they need, where the token gives such.
    pub(super) fn access_to_use_keys(&self) -> Access {
        if self.refuses_read_only.value { Access::ReadWrite } else { Access::ReadOnly }
    }

    /// What a return code of C_Decrypt means.
    pub(super) fn meaning(&self, code: RvError) -> Meaning {
        match code {
            RvError::GeneralError => self.general_error.value,
            RvError::FunctionFailed => self.function_failed.value,
            code => ckr::meaning(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_manufacturer() {
        for (manufacturer, name) in [
            ("SoftHSM project", "softhsm"),
            ("Kryoptic Project", "kryoptic"),
            ("Marvell Semiconductors, Inc.", "cloudhsm"),
            ("Safenet, Inc.", "luna"),
            ("nCipher Corp. Ltd", "nshield"),
            ("Utimaco IS GmbH", "generic"),
            ("", "generic"),
            ("Thalés", "generic"),
        ] {
            assert_eq!(Profile::of_manufacturer(manufacturer).name, name, "{manufacturer}");
        }
    }

    /// The table for people is that of the code.
    #[test]
    fn the_document_shows_the_table() {
        let document = include_str!("../../docs/hsm/README.md");
        for profile in &PROFILES {
            let row = row(profile);
            assert!(document.contains(&row), "docs/hsm/README.md lacks this row:\n{row}");
            for note in profile.notes {
                assert!(document.contains(note), "docs/hsm/README.md lacks: {note}");
            }
        }
    }

    /// What `docs/hsm/evidence` holds, one value a token.
    fn reported_tokens() -> Vec<(String, serde_json::Value)> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/hsm/evidence");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let reports = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
        let mut tokens = Vec::new();
        for file in reports {
            let report: serde_json::Value =
                serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
            let found = report["tokens"].as_array().expect("a report of doctor --json").clone();
            assert!(!found.is_empty(), "{}", file.display());
            tokens.extend(found.into_iter().map(|token| (file.display().to_string(), token)));
        }
        tokens
    }

    #[test]
    fn reports_say_what_the_table_calls_measured() {
        let tokens = reported_tokens();
        let mut reported = Vec::new();
        for (file, token) in &tokens {
            let name = token["profile"]["name"].as_str().unwrap();
            let profile = PROFILES.iter().find(|profile| profile.name == name);
            let profile = profile.unwrap_or_else(|| panic!("{file}: no profile is called {name}"));
            reported.push(name);
            if let Evidence::Measured = profile.manufacturers.evidence {
                let manufacturer = token["identity"]["manufacturer"].as_str().unwrap();
                assert_eq!(Profile::of_manufacturer(manufacturer), profile, "{file}");
            }
            if let Evidence::Measured = profile.iv_source.evidence {
                let works = |source: &&serde_json::Value| source["problem"].is_null();
                let sources = token["ivSources"].as_array().unwrap().iter();
                let mut working = sources.filter(works).map(|source| &source["ivSource"]);
                let expected = profile.iv_source.value.to_string();
                assert!(working.any(|source| *source == *expected), "{file}: {expected}");
            }
            if let Evidence::Measured = profile.bad_tag.evidence {
                let answer = token["badTag"]["answer"].as_str().unwrap();
                let mut expected = profile.bad_tag.value.iter().map(|code| ckr::name(*code));
                assert!(expected.any(|code| answer.ends_with(&*code)), "{file}: {answer}");
            }
        }
        for profile in &PROFILES {
            let is_measured = matches!(profile.manufacturers.evidence, Evidence::Measured)
                || matches!(profile.iv_source.evidence, Evidence::Measured)
                || matches!(profile.bad_tag.evidence, Evidence::Measured);
            assert!(!is_measured || reported.contains(&profile.name), "no report shows {}", profile.name);
        }
    }

    #[test]
    fn each_kind_of_token_has_a_guide() {
        let document = include_str!("../../docs/hsm/README.md");
        for profile in PROFILES.iter().filter(|profile| profile.name != "generic") {
            let guide = if profile.name == "softhsm" { "softhsm2" } else { profile.name };
            let file = format!("{}/docs/hsm/{guide}.md", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(text.contains("[[tokens]]"), "{file} shows no configuration");
            assert!(
                document.contains(&format!("({guide}.md)")),
                "docs/hsm/README.md does not lead to {file}"
            );
        }
    }

    fn row(profile: &Profile) -> String {
        let quoted = |texts: &mut dyn Iterator<Item = String>| {
            let texts: Vec<_> = texts.collect();
            if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
        };
        let cells = [
            format!("`{}`", profile.name),
            cell(
                &quoted(&mut profile.manufacturers.value.iter().map(|start| format!("{start:?}"))),
                profile.manufacturers.evidence,
            ),
            cell(&format!("`{}`", profile.iv_source.value), profile.iv_source.evidence),
            cell(
                &quoted(&mut profile.bad_tag.value.iter().map(|code| format!("`{}`", ckr::name(*code)))),
                profile.bad_tag.evidence,
            ),
            cell(meaning(profile.general_error.value), profile.general_error.evidence),
            cell(meaning(profile.function_failed.value), profile.function_failed.evidence),
            cell(
                &profile
                    .gone_key
                    .value
                    .map_or("the standard's codes".to_owned(), |code| format!("`{}` too", ckr::name(code))),
                profile.gone_key.evidence,
            ),
            yes_or_no(profile.needs_reinitialisation),
            yes_or_no(profile.refuses_read_only),
        ];
        format!("| {} |", cells.join(" | "))
    }

    fn yes_or_no(known: Cell<bool>) -> String {
        cell(if known.value { "yes" } else { "no" }, known.evidence)
    }

    fn meaning(meaning: Meaning) -> &'static str {
        match meaning {
            Meaning::BadTagOrFault => "either",
            other => other.label(),
        }
    }

    fn cell(value: &str, evidence: Evidence) -> String {
        match evidence {
            Evidence::Measured => format!("{value} (measured)"),
            Evidence::Documented(address) => format!("{value} ([documented]({address}))"),
            Evidence::Unknown => format!("{value} (unknown)"),
        }
    }
}
