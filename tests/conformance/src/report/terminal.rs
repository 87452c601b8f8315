//! For the person who waits.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::case::{Level, Outcome};
use crate::run::{CaseResult, RunReport};

/// One case, as it ends.
#[must_use]
pub fn line(result: &CaseResult) -> String {
    let (word, text) = match &result.outcome {
        Outcome::Passed { seen } => ("pass", seen.clone()),
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
    let mut sections: BTreeMap<_, [usize; 4]> = BTreeMap::new();
    for case in &report.cases {
        let column = match case.outcome {
            Outcome::Passed { .. } => 0,
            Outcome::Failed { .. } => 1,
            Outcome::NotApplicable { .. } => 2,
            Outcome::Skipped { .. } => 3,
        };
        sections.entry(case.section).or_default()[column] += 1;
    }
    for case in &report.cases {
        if let Outcome::Failed { request, answer, expected, seen } = &case.outcome {
            let _ = write!(
                text,
                "\n── {} ({}) ──\n{}\nexpected: {expected}\nseen:     {}\nrequest:  {request}\nanswer:   {}\n",
                case.id,
                case.level.name(),
                case.does,
                printable(seen),
                printable(answer)
            );
        }
    }
    let _ =
        writeln!(text, "\n{:36} {:>6} {:>6} {:>6} {:>7}", "section", "passed", "failed", "n/a", "skipped");
    for (section, [passed, failed, not_applicable, skipped]) in sections {
        let _ =
            writeln!(text, "{:36} {passed:>6} {failed:>6} {not_applicable:>6} {skipped:>7}", section.title());
    }
    let _ = writeln!(text, "\n{} of profile {:?}: {}", report.target, report.profile, verdict(report));
    for declaration in &report.declarations {
        let _ = writeln!(text, "declared: {declaration}");
    }
    text
}

/// The verdict in a line.
#[must_use]
pub fn verdict(report: &RunReport) -> String {
    let of = |is: fn(&Outcome) -> bool| report.count(|case| is(&case.outcome));
    format!(
        "{} passed, {} MUST failed, {} SHOULD failed, {} MAY failed, {} not applicable as declared, {} skipped",
        of(|outcome| matches!(outcome, Outcome::Passed { .. })),
        report.failed(Level::Must),
        report.failed(Level::Should),
        report.failed(Level::May),
        of(|outcome| matches!(outcome, Outcome::NotApplicable { .. })),
        of(|outcome| matches!(outcome, Outcome::Skipped { .. })),
    )
}

/// What came from outside must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}
