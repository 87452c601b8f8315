//! Two targets in turns: ratios round by round, so that what drifts on the machine meets both alike.

use std::fmt::Write;

use serde::Serialize;

use crate::report::Summary;

/// What an interval is to cover at least, where there are rounds enough.
const WANTED_COVERAGE: f64 = 0.95;

/// One round: both targets under the same load, one after the other.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// The first target.
    pub a: Summary,
    /// The second target.
    pub b: Summary,
}

/// One figure of both targets, over all rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    /// What is compared.
    pub figure: &'static str,
    /// The first target's figure in each round.
    pub a: Vec<f64>,
    /// The second target's figure in each round.
    pub b: Vec<f64>,
    /// b / a in each round.
    pub ratios: Vec<f64>,
    /// Median of the ratios.
    pub median: f64,
    /// Interval of the median, see [`median_interval`].
    #[serde(flatten)]
    pub interval: MedianInterval,
}

/// Where the true median lies, and how surely.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MedianInterval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Share of such intervals that hold the true median, 0 to 1.
    pub coverage: f64,
}

type Figure = (&'static str, fn(&Summary) -> Option<f64>);

const FIGURES: [Figure; 8] = [
    ("ok/s", |summary| Some(summary.ok_per_sec)),
    ("latency mean ms", |summary| Some(summary.latency_ms.mean)),
    ("latency p50 ms", |summary| Some(summary.latency_ms.p50)),
    ("latency p99 ms", |summary| Some(summary.latency_ms.p99)),
    ("latency p99.9 ms", |summary| Some(summary.latency_ms.p999)),
    ("service p50 ms", |summary| Some(summary.service_ms.p50)),
    ("service p99 ms", |summary| Some(summary.service_ms.p99)),
    ("CPU µs/request", |summary| Some(summary.target_process.as_ref()?.cpu_us_per_request())),
];

/// Compares the rounds figure by figure; a figure that either target lacks, or that is zero in A, is left out.
pub fn compare(rounds: &[Round]) -> Vec<Ratio> {
    FIGURES.iter().filter_map(|figure| ratio(figure, rounds)).collect()
}

fn ratio((figure, value): &Figure, rounds: &[Round]) -> Option<Ratio> {
    let a: Vec<f64> = rounds.iter().map(|round| value(&round.a)).collect::<Option<_>>()?;
    let b: Vec<f64> = rounds.iter().map(|round| value(&round.b)).collect::<Option<_>>()?;
    if a.is_empty() || a.contains(&0.0) {
        return None;
    }
    let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b / a).collect();
    let interval = median_interval(&ratios);
    Some(Ratio { figure, a, b, median: median(&mut ratios.clone()), ratios, interval })
}

/// The narrowest interval between two of the values, equally far from both ends of their order, that covers the true median
/// with 95 % at least: a value lies below the median as often as a coin shows heads, whatever their distribution. Fewer than
/// six values cover less even with all of their range, one value nothing.
///
/// # Panics
/// Of no value.
pub fn median_interval(values: &[f64]) -> MedianInterval {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let count = sorted.len();
    let (mut low, mut coverage) = (0, coverage_of(count, 0));
    while low + 1 < count - 1 - low && coverage_of(count, low + 1) >= WANTED_COVERAGE {
        low += 1;
        coverage = coverage_of(count, low);
    }
    MedianInterval { low: sorted[low], high: sorted[count - 1 - low], coverage }
}

/// The chance that the true median lies between the values number `low` from below and from above, from 0: that of `count`
/// coins more than `low` show heads and more than `low` tails.
fn coverage_of(count: usize, low: usize) -> f64 {
    let mut chance = 0.5_f64.powf(count as f64);
    let mut outside = 0.0;
    for heads in 0..=low {
        outside += chance;
        chance *= (count - heads) as f64 / (heads + 1) as f64;
    }
    (1.0 - 2.0 * outside).max(0.0)
}

/// The median of at least one value, which are left in order.
///
/// # Panics
/// Of no value.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// The comparison as text: a block per figure with each round's pair, then the ratios' medians.
pub fn table(ratios: &[Ratio]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_table(&mut out, ratios);
    out
}

fn write_table(out: &mut String, ratios: &[Ratio]) -> std::fmt::Result {
    writeln!(out, "{:<20}{:>7}{:>12}{:>12}{:>9}", "figure", "round", "A", "B", "B/A")?;
    for ratio in ratios {
        for (index, ((a, b), quotient)) in ratio.a.iter().zip(&ratio.b).zip(&ratio.ratios).enumerate() {
            writeln!(out, "{:<20}{:>7}{a:>12.3}{b:>12.3}{quotient:>9.3}", ratio.figure, index + 1)?;
        }
    }
    writeln!(out, "\n{:<20}{:>14}   its interval, and what that covers", "figure", "median B/A")?;
    for Ratio { figure, median, interval: MedianInterval { low, high, coverage }, .. } in ratios {
        writeln!(out, "{figure:<20}{median:>14.3}   {low:.3} – {high:.3}, {:.1} %", 100.0 * coverage)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_even_and_odd_counts() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }

    #[test]
    fn an_interval_says_what_it_covers() {
        let of = |count: u32| median_interval(&(1..=count).rev().map(f64::from).collect::<Vec<_>>());
        // Values numbered from 1, and the table of the sign test.
        for (count, low, high, coverage) in [
            (1, 1.0, 1.0, 0.0),
            (2, 1.0, 2.0, 0.5),
            (3, 1.0, 3.0, 0.75),
            (5, 1.0, 5.0, 0.9375),
            (6, 1.0, 6.0, 0.968_75),
            (7, 1.0, 7.0, 0.984_375),
            (9, 2.0, 8.0, 0.960_937_5),
            (20, 6.0, 15.0, 0.958_610_5),
        ] {
            let interval = of(count);
            assert!(
                (interval.low - low).abs() + (interval.high - high).abs() < 1e-9,
                "{count}: {interval:?}"
            );
            assert!((interval.coverage - coverage).abs() < 1e-6, "{count}: {interval:?}");
        }
        let many = of(1000);
        assert!(many.coverage >= 0.95 && many.coverage < 0.96 && many.high - many.low < 65.0, "{many:?}");
    }

    #[test]
    fn an_interval_holds_the_true_median_as_often_as_it_says() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (count, least, most) in [(3, 0.73, 0.77), (9, 0.95, 0.97)] {
            let holds = (0..10_000).filter(|_| {
                // A skewed distribution whose median is 1/4.
                let values: Vec<f64> = (0..count).map(|_| rng.f64().powi(2)).collect();
                let interval = median_interval(&values);
                interval.low <= 0.25 && 0.25 <= interval.high
            });
            let share = holds.count() as f64 / 10_000.0;
            assert!((least..most).contains(&share), "{count}: {share}");
        }
    }
}
