//! docs/runbook.md knows every error that KMS can be given and every line that asks for an operator.

use std::collections::BTreeSet;

use xks_spec::ErrorName;

use super::markdown::headings;
use super::{files, read};

const RUNBOOK: &str = "docs/runbook.md";

#[test]
fn every_error_name_has_a_section() {
    let sections: BTreeSet<_> = headings(&read(RUNBOOK)).into_iter().map(|(_, text)| text).collect();
    let names = ErrorName::ALL.map(ErrorName::as_str);
    for name in names.into_iter().chain(["abandoned", "closed"]) {
        assert!(sections.contains(name), "{RUNBOOK} has no section {name}");
    }
    let is_error = |heading: &&String| heading.ends_with("Exception");
    let unknown: Vec<_> =
        sections.iter().filter(is_error).filter(|name| !names.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// Which of them are retryable is said as the table of errors has it.
#[test]
fn retryable_errors_are_called_so() {
    let runbook = read(RUNBOOK);
    for name in ErrorName::ALL {
        let (_, section) = runbook.split_once(&format!("### {}\n", name.as_str())).unwrap();
        let says_so = section.trim_start().starts_with("Retryable.");
        assert_eq!(says_so, name.is_retryable(), "{name}");
    }
}

/// botocore's model of ConnectionErrorCodeType, as far as external key stores have them.
#[test]
fn every_connection_error_code_is_explained() {
    for code in [
        "INTERNAL_ERROR",
        "NETWORK_ERRORS",
        "INVALID_CREDENTIALS",
        "XKS_PROXY_ACCESS_DENIED",
        "XKS_PROXY_INVALID_CONFIGURATION",
        "XKS_PROXY_INVALID_RESPONSE",
        "XKS_PROXY_INVALID_TLS_CONFIGURATION",
        "XKS_PROXY_NOT_REACHABLE",
        "XKS_PROXY_TIMED_OUT",
        "XKS_VPC_ENDPOINT_SERVICE_NOT_FOUND",
        "XKS_VPC_ENDPOINT_SERVICE_INVALID_CONFIGURATION",
    ] {
        assert!(read(RUNBOOK).contains(&format!("| `{code}` |")), "{code}");
    }
}

/// The messages of `warn!` and `error!`: the last string of each call.
fn messages(source: &str) -> Vec<String> {
    let mut messages = Vec::new();
    for begin in ["tracing::warn!(", "tracing::error!("] {
        for rest in source.split(begin).skip(1) {
            let (mut depth, mut last, mut characters) = (1, String::new(), rest.chars());
            while depth > 0 {
                match characters.next().unwrap() {
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    '"' => last = string(&mut characters),
                    _ => {}
                }
            }
            messages.push(last);
        }
    }
    messages
}

/// The rest of a string literal.
fn string(characters: &mut std::str::Chars<'_>) -> String {
    let mut text = String::new();
    loop {
        match characters.next().unwrap() {
            '"' => return text,
            // A line that goes on in the next one.
            '\\' => {
                if characters.next() == Some('\n') {
                    let after = characters.as_str().trim_start();
                    *characters = after.chars();
                }
            }
            character => text.push(character),
        }
    }
}

#[test]
fn every_warning_and_error_of_the_log_is_explained() {
    let runbook = read(RUNBOOK);
    let rows: Vec<_> =
        runbook.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).collect();
    let is_explained = |message: &str| rows.iter().any(|(row, _)| message.starts_with(row));
    let mut found = Vec::new();
    for file in files("src", &[".rs"]) {
        let source = read(&file);
        for message in messages(&source) {
            if !message.starts_with('{') {
                assert!(is_explained(&message), "{file}: docs/runbook.md (Log lines) lacks: {message}");
                found.push(message);
            }
        }
    }
    assert!(found.len() > 35, "the messages are found: {found:?}");
    // Those whose text is made elsewhere.
    for (file, text) in [
        (
            "src/iv_budget/mod.rs",
            "the key version has drawn all initialization vectors of this proxy's share: rotate the key now",
        ),
        (
            "src/iv_budget/mod.rs",
            "the key version has drawn half of the initialization vectors of this proxy's share: rotate the key",
        ),
        ("src/secret.rs", "the system lets this process lock too little memory"),
    ] {
        assert!(read(file).contains(text) && is_explained(text), "{text}");
        found.push(text.to_owned());
    }
    let log_lines = runbook.split_once("\n## Log lines\n").unwrap().1;
    for line in log_lines.lines().filter_map(|line| line.strip_prefix("| `")) {
        let row = line.split("` |").next().unwrap();
        assert!(found.iter().any(|message| message.starts_with(row)), "no line of the log says: {row}");
    }
}

/// What else is made at runtime must be on the list of the test above.
#[test]
fn few_messages_are_made_elsewhere() {
    let made: Vec<_> = files("src", &[".rs"])
        .iter()
        .flat_map(|file| messages(&read(file)))
        .filter(|message| message.starts_with('{'))
        .collect();
    assert_eq!(made.len(), 2, "{made:?}");
}

#[test]
fn messages_are_found_in_every_form() {
    let source = "tracing::warn!(%a, b = f(x), \"one (1)\"); tracing::error!(\n  x = \"y\",\n \"two \\\n    lines\"\n);";
    assert_eq!(messages(source), ["one (1)", "two lines"]);
}

/// `deploy/aws/alarms.tf`: those with a resource of their own, and those that are rows of `queries`.
#[test]
fn every_alarm_of_cloudwatch_has_a_section() {
    let source = read("deploy/aws/alarms.tf");
    let own = source.lines().filter_map(|line| line.split_once("= \"${var.name}-")?.1.strip_suffix('"'));
    let rows = source.lines().filter_map(|line| line.strip_prefix("    ")?.strip_suffix(" = {"));
    let alarms: BTreeSet<_> = own.filter(|name| *name != "${each.key}").chain(rows).collect();
    assert_eq!(alarms.len(), 6, "{alarms:?}");
    let headings = headings(&read(RUNBOOK));
    let sections: BTreeSet<_> =
        headings.iter().filter_map(|(_, heading)| heading.strip_prefix("The alarm ")).collect();
    assert_eq!(sections, alarms);
}

/// What a failed start prints: the texts of these errors, with … for what differs.
#[test]
fn every_reason_of_a_failed_start_is_explained() {
    let runbook = read(RUNBOOK);
    let section = runbook.split_once("\n## A start that fails\n").unwrap().1.split_once("\n## ").unwrap().0;
    let mut found = 0;
    for (file, name) in [
        ("src/app/mod.rs", "AppError"),
        ("src/audit/mod.rs", "AuditFault"),
        ("src/iv_budget/mod.rs", "IvBudgetFault"),
        ("src/version_records/mod.rs", "VersionRecordsFault"),
    ] {
        let source = read(file);
        let errors =
            source.split_once(&format!("pub enum {name} {{")).unwrap().1.split_once("\n}\n").unwrap().0;
        for rest in errors.split("#[error(").skip(1) {
            let Some(literal) = rest.trim_start().strip_prefix('"') else { continue };
            let text = string(&mut literal.chars());
            // Another enum's text alone.
            if text == "{0}" {
                continue;
            }
            let text = text.replace("  ", " ").replace('`', "'");
            let pieces =
                text.split('{').map(|piece| piece.rsplit_once('}').map_or(piece, |(_, after)| after));
            let text = pieces.collect::<Vec<_>>().join("…");
            assert!(
                section.contains(&format!("| `{text}` |")),
                "{file}: {RUNBOOK} (A start that fails) lacks: {text}"
            );
            found += 1;
        }
    }
    assert!(found >= 14, "{found}");
}
