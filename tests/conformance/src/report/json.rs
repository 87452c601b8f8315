//! For programs.

use crate::run::RunReport;

/// The whole report.
#[must_use]
pub fn report(report: &RunReport) -> String {
    // INVARIANT: text, numbers and lists always serialise.
    serde_json::to_string_pretty(report).unwrap_or_default() + "\n"
}
