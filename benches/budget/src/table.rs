//! Figures, what they are held against, and the table of them.

use std::fmt::Write;

use serde::Serialize;

use crate::statistics::Interval;

/// An interval of a ratio that is wider says nothing: the machine was too noisy to see a difference of a tenth.
const WIDEST_INTERVAL: f64 = 0.1;

/// What came of comparing a figure with its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Verdict {
    /// Within the budget.
    Met,
    /// Beyond it.
    Missed,
    /// Beyond it, by no more than is accepted.
    Known,
    /// The measurement is too noisy to tell, or the load generator was what it measured.
    Undecided,
    /// No budget: shown for comparison.
    Shown,
    /// There is no figure: measuring it failed.
    Failed,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "**missed**",
            Self::Known => "missed (known)",
            Self::Undecided => "**undecided**",
            Self::Shown => "",
            Self::Failed => "**failed**",
        }
    }

    /// Whether the run as a whole cannot be called good.
    pub(crate) fn is_bad(self) -> bool {
        !matches!(self, Self::Met | Self::Known | Self::Shown)
    }
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    /// The part of the budget that it belongs to, as `--only` names it.
    pub(crate) part: &'static str,
    /// What was measured.
    pub(crate) figure: String,
    /// Unit of `measured`; empty for a bare number.
    pub(crate) unit: &'static str,
    /// The figure; null where measuring failed.
    pub(crate) measured: Option<f64>,
    /// The same in bare SoftHSM2 encrypts of this run, or to another base that `note` names.
    pub(crate) ratio: Option<f64>,
    /// Interval of the ratio: lower end, upper end, and the share of such intervals that hold the true median.
    pub(crate) ratio_interval: Option<(f64, f64, f64)>,
    /// The budget in words.
    pub(crate) budget: String,
    /// What the figure is held against as it is; null where that is a ratio or nothing.
    pub(crate) bound: Option<f64>,
    /// Whether it was met.
    pub(crate) verdict: Verdict,
    /// What the reader has to know besides.
    pub(crate) note: String,
}

impl Row {
    /// A figure without a budget.
    pub(crate) fn shown(
        part: &'static str,
        figure: impl Into<String>,
        measured: f64,
        unit: &'static str,
    ) -> Self {
        Self {
            part,
            figure: figure.into(),
            unit,
            measured: Some(measured),
            ratio: None,
            ratio_interval: None,
            budget: String::new(),
            bound: None,
            verdict: Verdict::Shown,
            note: String::new(),
        }
    }

    /// A part that ended without a figure.
    pub(crate) fn failed(part: &'static str, reason: &str) -> Self {
        let row = Self::shown(part, "not measured", f64::NAN, "");
        Self { measured: None, verdict: Verdict::Failed, ..row }.noted(reason)
    }

    /// Says something besides.
    pub(crate) fn noted(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// Says something besides, after what has been said.
    pub(crate) fn also_noted(mut self, note: &str) -> Self {
        let between = if self.note.is_empty() { "" } else { "; " };
        self.note = format!("{}{between}{note}", self.note);
        self
    }

    /// Not what the proxy does was measured, but what its measuring does.
    pub(crate) fn undecided(self) -> Self {
        Self { verdict: Verdict::Undecided, ..self }
    }

    /// Where the budget is missed, but not beyond `worst`, that is known.
    pub(crate) fn accept(&mut self, worst: f64) {
        // A ratio is judged wherever a row has no bound of its own, and no ratio is to be high.
        let value = if self.bound.is_some() { self.measured } else { self.ratio };
        let is_at_least = self.budget.starts_with('≥');
        let is_within = value.is_some_and(|value| if is_at_least { value >= worst } else { value <= worst });
        if self.verdict == Verdict::Missed && is_within {
            self.verdict = Verdict::Known;
            *self = self.clone().also_noted(&format!("accepted until {worst}"));
        }
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.verdict == Verdict::Failed
    }

    fn judged(self, sign: &str, bound: f64, is_met: bool) -> Self {
        let budget = format!("{sign} {}", with_unit(bound, self.unit));
        let verdict = if is_met { Verdict::Met } else { Verdict::Missed };
        Self { budget, bound: Some(bound), verdict, ..self }
    }

    /// The figure must not be higher.
    pub(crate) fn at_most(self, bound: f64) -> Self {
        let is_met = self.measured.is_some_and(|measured| measured <= bound);
        self.judged("≤", bound, is_met)
    }

    /// The figure must not be lower.
    pub(crate) fn at_least(self, bound: f64) -> Self {
        let is_met = self.measured.is_some_and(|measured| measured >= bound);
        self.judged("≥", bound, is_met)
    }

    /// The ratio to a bare encrypt must not be higher. `on_reference` is what that is on the machine that the budget was
    /// made on; the verdict goes by the ratio, which is the same on any machine, and by all of its interval.
    pub(crate) fn at_most_bare(self, ratios: &[f64], bound: f64, on_reference: f64) -> Self {
        let interval = Interval::of(ratios);
        let verdict = if interval.high <= bound {
            Verdict::Met
        } else if interval.low <= bound {
            Verdict::Undecided
        } else {
            Verdict::Missed
        };
        let budget = format!("≤ {bound} × bare ({})", with_unit(on_reference, self.unit));
        Self { budget, verdict, ..self.with_ratio(ratios) }
    }

    /// The ratios to another base must show no difference.
    pub(crate) fn like_base(self, ratios: &[f64]) -> Self {
        let interval = Interval::of(ratios);
        let verdict = if !(interval.low <= 1.0 && interval.high >= 1.0) {
            Verdict::Missed
        } else if interval.width() > WIDEST_INTERVAL {
            Verdict::Undecided
        } else {
            Verdict::Met
        };
        Self { budget: "no difference".to_owned(), verdict, ..self.with_ratio(ratios) }
    }

    /// Shows the ratios of the rounds beside the figure.
    pub(crate) fn with_ratio(self, ratios: &[f64]) -> Self {
        let Interval { median, low, high, coverage } = Interval::of(ratios);
        Self { ratio: Some(median), ratio_interval: Some((low, high, coverage)), ..self }
    }
}

/// A number with as many digits as mean something, and its unit.
fn with_unit(number: f64, unit: &str) -> String {
    with_digits(number, meaningful_digits(number), unit)
}

/// The same of a figure with a bound: with so many more digits that it does not look like the bound unless it is.
fn beside(bound: f64, number: f64, unit: &str) -> String {
    let digits = meaningful_digits(number);
    let shown = |digits| with_digits(number, digits, unit);
    let differs = |digits: &usize| shown(*digits) != with_unit(bound, unit);
    let more = (digits..digits + 4).find(differs).unwrap_or(digits);
    shown(more)
}

/// Digits after the point.
fn meaningful_digits(number: f64) -> usize {
    match number.abs() {
        magnitude if magnitude >= 100.0 => 0,
        magnitude if magnitude >= 10.0 => 1,
        magnitude if magnitude >= 1.0 => 2,
        _ => 3,
    }
}

fn with_digits(number: f64, digits: usize, unit: &str) -> String {
    let text = format!("{number:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    // "-0" says that nothing was rounded to less than nothing.
    let text = if text == "-0" { "0" } else { text };
    if unit.is_empty() { text.to_owned() } else { format!("{text} {unit}") }
}

/// The rows as a Markdown table.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut out = String::from(
        "| part | figure | measured | ratio (interval, what it covers) | budget | | |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let measured = match (row.measured, row.bound) {
            (None, _) => "–".to_owned(),
            // What was to be timed did not happen.
            (Some(f64::INFINITY), _) => "never".to_owned(),
            (Some(measured), Some(bound)) => beside(bound, measured, row.unit),
            (Some(measured), None) => with_unit(measured, row.unit),
        };
        let ratio = match (row.ratio, row.ratio_interval) {
            (Some(ratio), Some((low, high, coverage))) => {
                format!("{ratio:.2} ({low:.2}–{high:.2}, {:.0} %)", 100.0 * coverage)
            }
            _ => String::new(),
        };
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {measured} | {ratio} | {} | {} | {} |",
            row.part,
            cell(&row.figure),
            row.budget,
            row.verdict.word(),
            cell(&row.note)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(measured: f64) -> Row {
        Row::shown("part", "figure", measured, "µs")
    }

    #[test]
    fn bounds_hold_on_their_edge_and_not_beyond() {
        assert_eq!(row(2.0).at_most(2.0).verdict, Verdict::Met);
        assert_eq!(row(2.01).at_most(2.0).verdict, Verdict::Missed);
        assert_eq!(row(2.0).at_least(2.0).verdict, Verdict::Met);
        assert_eq!(row(1.99).at_least(2.0).verdict, Verdict::Missed);
        // Nothing is known of a figure that is no number.
        assert_eq!(row(f64::NAN).at_most(2.0).verdict, Verdict::Missed);
        assert_eq!(row(f64::NAN).at_least(2.0).verdict, Verdict::Missed);
    }

    #[test]
    fn the_verdict_on_cpu_goes_by_the_ratio_and_not_by_the_machine() {
        // Twice as slow a machine: beyond the microseconds, within the ratio.
        let slow = row(90.0).at_most_bare(&[3.5, 3.6, 3.5], 3.7, 48.0);
        assert_eq!((slow.verdict, slow.budget.as_str()), (Verdict::Met, "≤ 3.7 × bare (48 µs)"));
        let verdict = |ratios: &[f64]| row(20.0).at_most_bare(ratios, 3.7, 48.0).verdict;
        assert_eq!(verdict(&[3.8, 3.9, 3.8]), Verdict::Missed);
        assert_eq!(verdict(&[]), Verdict::Missed);
        // On either side of the median the rounds disagree about the budget.
        assert_eq!(verdict(&[3.5, 3.6, 3.8]), Verdict::Undecided);
        assert_eq!(verdict(&[3.6, 3.8, 3.9]), Verdict::Undecided);
        // The dearest and the cheapest of nine rounds decide nothing.
        assert_eq!(verdict(&[3.0, 3.5, 3.5, 3.5, 3.5, 3.6, 3.6, 3.6, 9.0]), Verdict::Met);
        assert_eq!(verdict(&[3.0, 3.8, 3.8, 3.8, 3.8, 3.9, 3.9, 3.9, 9.0]), Verdict::Missed);
    }

    #[test]
    fn no_difference_needs_an_interval_that_holds_one_and_is_narrow_enough_to_say_so() {
        let verdict = |ratios: &[f64]| row(1.0).like_base(ratios).verdict;
        assert_eq!(verdict(&[0.99, 1.0, 1.01, 1.0, 0.99, 1.01]), Verdict::Met);
        assert_eq!(verdict(&[1.05, 1.06, 1.05, 1.07, 1.05, 1.06]), Verdict::Missed);
        assert_eq!(verdict(&[0.94, 0.95, 0.95, 0.94]), Verdict::Missed);
        assert_eq!(verdict(&[0.7, 1.3, 0.8, 1.2, 1.0]), Verdict::Undecided);
        assert_eq!(verdict(&[]), Verdict::Missed);
    }

    #[test]
    fn the_table_has_a_line_a_row_and_no_text_breaks_it() {
        let rows = [
            row(47.123).at_most_bare(&[3.60, 3.61, 3.62], 3.7, 48.0).noted("a | b\nc"),
            Row::failed("slow", "the token was\nnot there"),
        ];
        let text = markdown(&rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(
            lines[2],
            "| part | figure | 47.1 µs | 3.61 (3.60–3.62, 75 %) | ≤ 3.7 × bare (48 µs) | met | a \\| b c |"
        );
        assert_eq!(lines[3], "| slow | not measured | – |  |  | **failed** | the token was not there |");
        assert!(rows[1].verdict.is_bad() && !rows[0].verdict.is_bad());
    }

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        for (number, text) in [
            (1520.0, "1520"),
            (12.0, "12"),
            (47.16, "47.2"),
            (3.70, "3.7"),
            (0.0421, "0.042"),
            (-0.0001, "0"),
        ] {
            assert_eq!(with_unit(number, ""), text);
        }
    }

    #[test]
    fn a_figure_looks_like_its_bound_only_where_it_is_the_bound() {
        for (number, text) in
            [(1519.6, "1519.6/s"), (1520.0, "1520/s"), (1519.96, "1519.96/s"), (1507.3, "1507/s")]
        {
            assert_eq!(beside(1520.0, number, "/s").replace(' ', ""), text);
        }
        assert_eq!(beside(0.9, 0.899_96, ""), "0.89996");
    }

    #[test]
    fn a_known_miss_is_accepted_until_its_worst_in_the_direction_of_its_budget() {
        let accepted = |mut row: Row, worst| {
            row.accept(worst);
            row.verdict
        };
        assert_eq!(accepted(row(1495.0).at_least(1520.0), 1490.0), Verdict::Known);
        assert_eq!(accepted(row(1485.0).at_least(1520.0), 1490.0), Verdict::Missed);
        // Of a ratio, not of the microseconds.
        assert_eq!(accepted(row(113.0).at_most_bare(&[5.42], 4.8, 62.0), 5.8), Verdict::Known);
        assert_eq!(accepted(row(1.0).at_most_bare(&[5.9], 4.8, 62.0), 5.8), Verdict::Missed);
        assert_eq!(accepted(row(1.0).like_base(&[1.2]), 1.3), Verdict::Known);
        // What is not known to be missed is not accepted.
        assert_eq!(accepted(row(30.0).at_most(20.0).undecided(), 40.0), Verdict::Undecided);
        assert!(!Verdict::Known.is_bad() && Verdict::Undecided.is_bad());
    }
}
