//! Misses that are known: each with the worst figure that is still the same miss and no new one.

use std::path::Path;

use serde::Deserialize;

use crate::rig::Fault;
use crate::table::Row;

/// A row that may miss its budget.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Accepted {
    /// The row's part.
    part: String,
    /// The row's figure, word for word.
    figure: String,
    /// The worst that is accepted, in the row's unit; of a row that is judged by its ratio, a ratio.
    worst: f64,
    /// For the reader of the file.
    #[serde(rename = "why")]
    _why: String,
}

/// Reads the file.
///
/// # Errors
/// Where it cannot be read, or is no list of such rows.
pub(crate) fn read(file: &Path) -> Result<Vec<Accepted>, Fault> {
    let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| fault(&error))?;
    Ok(serde_json::from_str(&text).map_err(|error| fault(&error))?)
}

/// Marks the rows whose miss is accepted.
pub(crate) fn mark(rows: &mut [Row], accepted: &[Accepted]) {
    for row in rows {
        let known = accepted.iter().find(|known| known.part == row.part && known.figure == row.figure);
        if let Some(known) = known {
            row.accept(known.worst);
        }
    }
}

/// What names no row although its part was measured: a figure that has another name by now.
pub(crate) fn stale<'a>(rows: &[Row], accepted: &'a [Accepted]) -> Vec<&'a str> {
    let is_stale = |known: &&Accepted| {
        let mut of_part = rows.iter().filter(|row| row.part == known.part && !row.is_failed()).peekable();
        of_part.peek().is_some() && !of_part.any(|row| row.figure == known.figure)
    };
    accepted.iter().filter(is_stale).map(|known| known.figure.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Verdict;

    fn accepted() -> Vec<Accepted> {
        let text = r#"[{ "part": "overload", "figure": "memory", "worst": 25.0, "why": "known" }]"#;
        serde_json::from_str(text).unwrap()
    }

    fn verdict(part: &'static str, figure: &str, measured: f64) -> Verdict {
        let mut rows = [Row::shown(part, figure, measured, "MiB").at_most(20.0)];
        mark(&mut rows, &accepted());
        rows[0].verdict
    }

    #[test]
    fn a_known_miss_is_accepted_and_a_worse_one_is_not() {
        assert_eq!(verdict("overload", "memory", 25.0), Verdict::Known);
        assert_eq!(verdict("overload", "memory", 25.1), Verdict::Missed);
        assert_eq!(verdict("overload", "memory", f64::NAN), Verdict::Missed);
        assert_eq!(verdict("overload", "memory", 20.0), Verdict::Met);
        assert_eq!(verdict("overload", "health", 21.0), Verdict::Missed);
        assert_eq!(verdict("soak", "memory", 21.0), Verdict::Missed);
    }

    #[test]
    fn a_figure_that_there_is_no_more_is_told() {
        let rows = [Row::shown("overload", "memory at 10×", 1.0, "MiB")];
        assert_eq!(stale(&rows, &accepted()), ["memory"]);
        assert!(stale(&[Row::shown("overload", "memory", 1.0, "MiB")], &accepted()).is_empty());
        assert!(stale(&[Row::shown("soak", "memory", 1.0, "MiB")], &accepted()).is_empty());
        assert!(stale(&[Row::failed("overload", "no token")], &accepted()).is_empty());
    }

    #[test]
    fn the_committed_file_can_be_read_and_names_parts() {
        let accepted = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("accepted.json")).unwrap();
        let is_part = |name: &str| crate::parts::Part::all().any(|part| part.name() == name);
        assert!(accepted.iter().all(|known| is_part(&known.part)), "{accepted:?}");
    }
}
