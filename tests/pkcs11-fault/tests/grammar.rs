//! The text of control files: what is written is read back, what is wrong is refused.

use pkcs11_fault::{
    Attribute, Ckr, Corrupt, Fault, FaultKind, Function, GcmIv, Hang, Mechanism, Random, Rule, TokenFlag,
    parse_rules,
};
use proptest::prelude::*;
use proptest::sample::select;

fn any_ckr() -> impl Strategy<Value = Ckr> {
    let named = select(Ckr::NAMES).prop_map(|(_, number)| Ckr(number));
    prop_oneof![named, any::<u64>().prop_map(Ckr)]
}

fn any_fault() -> impl Strategy<Value = Fault> {
    select(FaultKind::ALL).prop_flat_map(fault_of_kind)
}

/// Exhaustive, so that a new fault is tested here or does not compile.
fn fault_of_kind(kind: FaultKind) -> BoxedStrategy<Fault> {
    match kind {
        FaultKind::DelayMs => any::<u64>().prop_map(Fault::DelayMs).boxed(),
        FaultKind::LeakKib => any::<u64>().prop_map(Fault::LeakKib).boxed(),
        FaultKind::Hang => select(Hang::ALL).prop_map(Fault::Hang).boxed(),
        FaultKind::Fail => any_ckr().prop_map(Fault::Fail).boxed(),
        FaultKind::ForwardThenFail => any_ckr().prop_map(Fault::ForwardThenFail).boxed(),
        FaultKind::Abort => Just(Fault::Abort).boxed(),
        FaultKind::Busy => any_ckr().prop_map(Fault::Busy).boxed(),
        FaultKind::DropSessions => Just(Fault::DropSessions).boxed(),
        FaultKind::ForgetLogins => Just(Fault::ForgetLogins).boxed(),
        FaultKind::InvalidateHandles => Just(Fault::InvalidateHandles).boxed(),
        FaultKind::PermuteHandles => Just(Fault::PermuteHandles).boxed(),
        FaultKind::NeedReinit => any_ckr().prop_map(Fault::NeedReinit).boxed(),
        FaultKind::Corrupt => select(Corrupt::ALL).prop_map(Fault::Corrupt).boxed(),
        FaultKind::RemoveToken => prop::option::of(any_ckr()).prop_map(Fault::RemoveToken).boxed(),
        FaultKind::OtherValue => Just(Fault::OtherValue).boxed(),
        FaultKind::GcmIv => select(GcmIv::ALL).prop_map(Fault::GcmIv).boxed(),
        FaultKind::Random => select(Random::ALL).prop_map(Fault::Random).boxed(),
        FaultKind::BadTag => any_ckr().prop_map(Fault::BadTag).boxed(),
        FaultKind::TokenFlag => select(TokenFlag::ALL).prop_map(Fault::TokenFlag).boxed(),
        FaultKind::HideMechanism => {
            any::<u64>().prop_map(|number| Fault::HideMechanism(Mechanism(number))).boxed()
        }
        FaultKind::SessionLimit => any::<u64>().prop_map(Fault::SessionLimit).boxed(),
        FaultKind::RefuseReadOnly => any_ckr().prop_map(Fault::RefuseReadOnly).boxed(),
        FaultKind::HideAttribute => (any::<u64>(), any_ckr())
            .prop_map(|(attribute, answer)| Fault::HideAttribute { attribute: Attribute(attribute), answer })
            .boxed(),
    }
}

prop_compose! {
    /// Any rule that the types allow, sensible or not.
    fn any_rule()(
        fault in any_fault(),
        function in prop::option::of(select(&Function::ALL[..])),
        slot in prop::option::of(any::<u64>()),
        token in prop::option::of(any::<String>()),
        label in prop::option::of(any::<String>()),
        after in prop_oneof![Just(0), any::<u64>()],
        every in prop_oneof![Just(1), any::<u64>()],
        times in prop::option::of(any::<u64>()),
    ) -> Rule {
        Rule { fault, function, slot, token, label, after, every, times }
    }
}

/// Any rule that can do something, made by mending one that cannot.
fn usable_rule() -> impl Strategy<Value = Rule> {
    any_rule().prop_filter_map("unusable", |mut rule| {
        if rule.check().is_err() {
            rule.function = None;
            rule.every = rule.every.max(1);
            rule.times = rule.times.filter(|times| *times > 0);
            if rule.fault == Fault::OtherValue {
                rule.label = Some(rule.label.unwrap_or_default());
            }
        }
        if rule.check().is_err() {
            rule.label = None;
        }
        if rule.check().is_err() {
            (rule.slot, rule.token) = (None, None);
        }
        rule.check().is_ok().then_some(rule)
    })
}

proptest! {
    #[test]
    fn a_written_rule_is_read_back(rule in usable_rule()) {
        prop_assert_eq!(rule.to_string().parse(), Ok(rule));
    }

    #[test]
    fn a_rule_is_read_exactly_if_it_can_do_something(rule in any_rule()) {
        match (rule.check(), rule.to_string().parse::<Rule>()) {
            (Ok(()), read) => prop_assert_eq!(read, Ok(rule)),
            (Err(error), read) => prop_assert_eq!(read, Err(error)),
        }
    }

    #[test]
    fn a_written_file_is_read_back(mut rules in prop::collection::vec(usable_rule(), 0..8)) {
        let mut seen = std::collections::HashSet::new();
        rules.retain(|rule| seen.insert(rule.clone()));
        let text: String = rules.iter().map(|rule| format!("  {rule}  # comment\n\n")).collect();
        prop_assert_eq!(parse_rules(&text), Ok(rules));
    }

    #[test]
    fn what_is_read_is_written_in_one_way(text in "(\\*|C_Encrypt|C_Login) ?[a-z_]{0,12}(=[a-zA-Z0-9_\"\\\\{} ]{0,12})?( [a-z]{1,6}=?[0-9a-z\"]{0,4})*") {
        if let Ok(rule) = text.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }
    }

    #[test]
    fn no_text_is_too_strange_to_refuse(text in any::<String>()) {
        let _ = parse_rules(&text);
    }
}

#[track_caller]
fn reads(line: &str, rule: Rule) {
    assert_eq!(line.parse(), Ok(rule), "{line}");
}

#[test]
fn lines_of_the_manual() {
    reads("C_Encrypt delay_ms=50", Rule::new(Fault::DelayMs(50)).on(Function::Encrypt));
    reads("C_Encrypt hang until_removed", Rule::new(Fault::Hang(Hang::UntilRemoved)).on(Function::Encrypt));
    reads("* hang forever slot=3", Rule::new(Fault::Hang(Hang::Forever)).slot(3));
    let device_error: Ckr = "CKR_DEVICE_ERROR".parse().unwrap();
    reads(
        "C_Decrypt fail=CKR_DEVICE_ERROR times=3",
        Rule::new(Fault::Fail(device_error)).on(Function::Decrypt).times(3),
    );
    reads(
        "C_Decrypt fail=0x30 every=10 after=2",
        Rule::new(Fault::Fail(device_error)).on(Function::Decrypt).every(10).after(2),
    );
    reads("* need_reinit", Rule::new(Fault::NeedReinit(device_error)));
    reads("* busy", Rule::new(Fault::Busy("CKR_FUNCTION_FAILED".parse().unwrap())));
    reads("* remove_token token=\"HSM A\"", Rule::new(Fault::RemoveToken(None)).token("HSM A"));
    reads(
        "* other_value label=\"a \\\"b\\\" \\\\ \\u{a}\"",
        Rule::new(Fault::OtherValue).label("a \"b\" \\ \n"),
    );
    let hidden = |answer: &str| Fault::HideAttribute {
        attribute: "CKA_VALUE_LEN".parse().unwrap(),
        answer: answer.parse().unwrap(),
    };
    reads("* hide_attribute=CKA_VALUE_LEN", Rule::new(hidden("CKR_ATTRIBUTE_TYPE_INVALID")));
    reads("* hide_attribute=CKA_VALUE_LEN answer=CKR_OK", Rule::new(hidden("CKR_OK")));
}

/// The manual names every fault, and its example of a control file is one.
#[test]
fn the_manual_is_complete_and_right() {
    let manual = include_str!("../README.md");
    for kind in FaultKind::ALL {
        let keyword = kind.keyword();
        assert!(
            ["=", "`", "[=", " "].iter().any(|end| manual.contains(&format!("`{keyword}{end}"))),
            "{keyword}"
        );
    }
    let (_, example) = manual.split_once("# FUNCTION").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    assert_eq!(parse_rules(&format!("#{example}")).unwrap().len(), 4);
    let commands: Vec<_> =
        manual.lines().filter_map(|line| line.strip_prefix("echo '")?.split_once("' >")).collect();
    assert!(commands.len() >= 6);
    for (rule, _) in commands {
        rule.parse::<Rule>().unwrap_or_else(|error| panic!("{rule}: {error}"));
    }
}

#[test]
fn lines_that_are_refused() {
    for (line, reason) in [
        ("", "expected: FUNCTION FAULT"),
        ("C_Encrypt", "expected: FUNCTION FAULT"),
        ("Encrypt abort", "not a function"),
        ("c_encrypt abort", "not a function"),
        ("C_EncryptMessage abort", "not a function"),
        ("* explode", "unknown fault"),
        ("* abort=1", "takes no value"),
        ("* delay_ms", "needs a value"),
        ("* delay_ms=", "value is missing"),
        ("* delay_ms=-1", "delay_ms"),
        ("* delay_ms=1s", "delay_ms"),
        ("* fail=CKR_NO_SUCH", "neither a known CKR_ name"),
        ("* fail=5", "neither a known CKR_ name"),
        ("* hang", "hang needs"),
        ("* hang until_removed forever", "unknown, repeated or incomplete option \"forever\""),
        ("* hang=forever", "hang needs"),
        ("* abort times=1 times=2", "unknown, repeated or incomplete option \"times\""),
        ("* abort times", "incomplete option \"times\""),
        ("* abort when=now", "option \"when\""),
        ("* abort answer=CKR_OK", "option \"answer\""),
        ("* abort times=0", "at least 1"),
        ("* abort every=0", "at least 1"),
        ("* abort label=\"a", "does not end"),
        ("* abort label=\"a\"b", "must end its word"),
        ("* abort label=a\"b", "inside an unquoted value"),
        ("* abort label=\"\\n\"", "escapes are"),
        ("* abort label=\"\\u{d800}\"", "expected \\u"),
        ("* abort =1", "expected a word"),
        ("*=1 abort", "begins with a function"),
        ("C_Login corrupt=tag", "never acts in C_Login"),
        ("C_EncryptUpdate corrupt=tag", "never acts in C_EncryptUpdate"),
        ("C_DecryptFinal corrupt=length", "never acts in C_DecryptFinal"),
        ("C_Decrypt gcm_iv=zeros", "never acts in C_Decrypt"),
        ("C_Initialize need_reinit", "never acts in C_Initialize"),
        ("C_GetInfo abort slot=1", "concerns no slot"),
        ("C_Login abort label=a", "concerns no object"),
        ("* drop_sessions label=a", "does not take label="),
        ("* need_reinit slot=1", "whole module's"),
        ("* other_value", "needs label="),
        ("* hide_attribute=CKA_VALUE answer=CKR_DEVICE_ERROR", "answer= is one of"),
        ("* corrupt=iv", "not one of"),
        ("* abort\n* abort", "one line"),
    ] {
        let error = line.parse::<Rule>().expect_err(line).to_string();
        assert!(error.contains(reason), "{line}: {error}");
    }
}

#[test]
fn a_file_names_the_line_at_fault() {
    let error = parse_rules("# comment\n\n* abort\nC_Encrypt abort\n* abort\n").unwrap_err();
    assert_eq!(error.to_string(), "line 5: the same rule stands on an earlier line");
    assert_eq!(parse_rules("* abort times=\n").unwrap_err().line, 1);
    assert_eq!(parse_rules(" # only a comment\n\r\n"), Ok(Vec::new()));
}

#[test]
fn a_rule_is_not_too_long_for_the_counters_file() {
    let rule = |length| Rule::new(Fault::Abort).label("x".repeat(length));
    let overhead = rule(1).to_string().len() - 1;
    assert_eq!(rule(480 - overhead).check(), Ok(()));
    assert!(rule(481 - overhead).check().is_err());
}

#[test]
fn kinds_and_keywords_agree() {
    for kind in FaultKind::ALL {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let fault = fault_of_kind(*kind).new_tree(&mut runner).unwrap().current();
        assert_eq!(fault.kind(), *kind);
        assert!(fault.to_string().starts_with(kind.keyword()));
    }
}
