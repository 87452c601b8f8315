//! For CI systems.

use std::fmt::Write;

use crate::case::Outcome;
use crate::report::head;
use crate::run::RunReport;

/// JUnit XML: one suite, a test case each. A failed MAY is no failure.
#[must_use]
pub fn report(report: &RunReport) -> String {
    let is_failure = |outcome: &Outcome, level| {
        matches!(outcome, Outcome::Failed { .. }) && level > crate::case::Level::May
    };
    let failures = report.count(|case| is_failure(&case.outcome, case.level));
    let skipped =
        report.count(|case| matches!(case.outcome, Outcome::Skipped { .. } | Outcome::NotApplicable { .. }));
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"{}\" hostname=\"{}\" timestamp=\"{}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\">\n  <properties>\n",
        escaped(&report.suite),
        escaped(&report.target),
        escaped(report.began.trim_end_matches('Z')),
        report.cases.len()
    );
    for (name, value) in head::rows(report) {
        let (name, value) = (escaped(name), escaped(&value));
        let _ = writeln!(xml, "    <property name=\"{name}\" value=\"{value}\"/>");
    }
    xml.push_str("  </properties>\n");
    for case in &report.cases {
        let secs = case.took_ms as f64 / 1000.0;
        let _ = write!(
            xml,
            "  <testcase classname=\"{}\" name=\"{}\" time=\"{secs:.3}\">",
            case.section.name(),
            escaped(&case.id)
        );
        match &case.outcome {
            Outcome::Failed { request, answer, expected, seen } if is_failure(&case.outcome, case.level) => {
                let _ = write!(
                    xml,
                    "<failure type=\"{}\" message=\"{}\">{}</failure>",
                    case.level.name(),
                    escaped(&format!("expected {expected}; seen {seen}")),
                    escaped(&format!("{}\n{request}\n\n{answer}", case.does))
                );
            }
            Outcome::Failed { expected, seen, .. } => {
                let _ = write!(
                    xml,
                    "<system-out>{}</system-out>",
                    escaped(&format!("expected {expected}; seen {seen}"))
                );
            }
            Outcome::Passed { seen } | Outcome::Noted { seen } => {
                let _ = write!(xml, "<system-out>{}</system-out>", escaped(seen));
            }
            Outcome::NotApplicable { declared: why } | Outcome::Skipped { missing: why } => {
                let _ = write!(xml, "<skipped message=\"{}\"/>", escaped(why));
            }
        }
        xml.push_str("</testcase>\n");
    }
    xml + "</testsuite>\n"
}

/// Text for XML 1.0, which has no place for control characters at all.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            c if (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                '\u{fffd}'.to_string()
            }
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_from_outside_is_markup() {
        assert_eq!(super::escaped("<a b=\"&\">\u{0}"), "&lt;a b=&quot;&amp;&quot;&gt;\u{fffd}");
    }
}
