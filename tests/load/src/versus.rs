//! Two targets in turns: ratios round by round, so that what drifts on the machine meets both alike.

use std::fmt::Write;

use serde::Serialize;

use crate::report::Summary;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 10_000;

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
    /// Lower end of the 95 % bootstrap interval of the median.
    pub low: f64,
    /// Upper end of the 95 % bootstrap interval of the median.
    pub high: f64,
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
pub fn compare(rounds: &[Round], seed: u64) -> Vec<Ratio> {
    FIGURES.iter().filter_map(|figure| ratio(figure, rounds, seed)).collect()
}

fn ratio((figure, value): &Figure, rounds: &[Round], seed: u64) -> Option<Ratio> {
    let a: Vec<f64> = rounds.iter().map(|round| value(&round.a)).collect::<Option<_>>()?;
    let b: Vec<f64> = rounds.iter().map(|round| value(&round.b)).collect::<Option<_>>()?;
    if a.is_empty() || a.contains(&0.0) {
        return None;
    }
    let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b / a).collect();
    let (low, high) = bootstrap_interval(&ratios, seed);
    Some(Ratio { figure, a, b, median: median(&mut ratios.clone()), ratios, low, high })
}

/// The 95 % percentile bootstrap interval of the median. With fewer than six values it is little more than their range.
pub fn bootstrap_interval(values: &[f64], seed: u64) -> (f64, f64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut resample: Vec<f64> = values.iter().map(|_| values[rng.usize(..values.len())]).collect();
            median(&mut resample)
        })
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    (medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40])
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
    writeln!(out, "\n{:<20}{:>14}   95 % bootstrap interval", "figure", "median B/A")?;
    for ratio in ratios {
        writeln!(out, "{:<20}{:>14.3}   {:.3} – {:.3}", ratio.figure, ratio.median, ratio.low, ratio.high)?;
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
    fn the_interval_holds_the_median_and_narrows_with_more_rounds() {
        let spread = |count: u32| -> Vec<f64> { (0..count).map(|i| 0.8 + 0.05 * f64::from(i % 5)).collect() };
        let (low, high) = bootstrap_interval(&spread(5), 1);
        let (tight_low, tight_high) = bootstrap_interval(&spread(50), 1);
        assert!(low <= 0.9 && 0.9 <= high, "{low} {high}");
        assert!(tight_high - tight_low < high - low, "{tight_low} {tight_high}");
        assert_eq!(bootstrap_interval(&[1.5; 7], 1), (1.5, 1.5));
    }
}
