//! For the person who waits.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::case::{Level, Outcome, Section};
use crate::report::head;
use crate::run::{CaseResult, RunReport};

/// What can come of a case, in the order of [`sections`].
pub const COLUMNS: [&str; 5] = ["passed", "failed", "noted", "n/a", "skipped"];

/// How often each came, by section.
#[must_use]
pub fn sections(report: &RunReport) -> BTreeMap<Section, [usize; 5]> {
    let mut sections: BTreeMap<_, [usize; 5]> = BTreeMap::new();
    for case in &report.cases {
        let column = match case.outcome {
            Outcome::Passed { .. } => 0,
            Outcome::Failed { .. } => 1,
            Outcome::Noted { .. } => 2,
            Outcome::NotApplicable { .. } => 3,
            Outcome::Skipped { .. } => 4,
        };
        sections.entry(case.section).or_default()[column] += 1;
    }
    sections
}

/// One case, as it ends.
#[must_use]
pub fn line(result: &CaseResult) -> String {
    let (word, text) = match &result.outcome {
        Outcome::Passed { seen } => ("pass", seen.clone()),
        Outcome::Noted { seen } => ("note", seen.clone()),
        Outcome::Failed { expected, seen, .. } => ("FAIL", format!("expected {expected}; seen {seen}")),
        Outcome::NotApplicable { declared } => ("n/a ", declared.clone()),
        Outcome::Skipped { missing } => ("SKIP", missing.clone()),
    };
    format!("{word} {:6} {}  {}\n", result.level.name(), result.id, printable(&text))
}

/// The summary by section, and every failure with its request.
#[must_use]
pub fn summary(report: &RunReport) -> String {
    let mut text = String::new();
    for case in &report.cases {
        if let Outcome::Failed { request, answer, expected, seen } = &case.outcome {
            let _ = write!(
                text,
                "\n── {} ({}) ──\n{}\nexpected: {expected}\nseen:     {}\n",
                case.id,
                case.level.name(),
                case.does,
                printable(seen)
            );
            // A case that looks at the description of the target, or counts, has none.
            if !request.is_empty() {
                let _ = writeln!(text, "request:  {request}\nanswer:   {}", printable(answer));
            }
        }
    }
    let _ = write!(text, "\n{:36}", "section");
    for name in COLUMNS {
        let _ = write!(text, " {name:>14}");
    }
    for (section, numbers) in sections(report) {
        let _ = write!(text, "\n{:36}", section.title());
        for number in numbers {
            let _ = write!(text, " {number:>14}");
        }
    }
    text.push_str("\n\n");
    for (name, value) in head::rows(report) {
        let _ = writeln!(text, "{name:14} {}", printable(&value));
    }
    let _ = writeln!(text, "\n{}", verdict(report));
    text
}

/// The verdict in a line.
#[must_use]
pub fn verdict(report: &RunReport) -> String {
    let of = |is: fn(&Outcome) -> bool| report.count(|case| is(&case.outcome));
    format!(
        "{} passed, {} MUST failed, {} SHOULD failed, {} MAY failed, {} noted, {} not applicable, {} skipped",
        of(|outcome| matches!(outcome, Outcome::Passed { .. })),
        report.failed(Level::Must),
        report.failed(Level::Should),
        report.failed(Level::May),
        of(|outcome| matches!(outcome, Outcome::Noted { .. })),
        of(|outcome| matches!(outcome, Outcome::NotApplicable { .. })),
        of(|outcome| matches!(outcome, Outcome::Skipped { .. })),
    )
}

/// What came from outside must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}
