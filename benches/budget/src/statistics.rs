//! What is made of several measurements of one thing.

use xks_load::versus::{MedianInterval, median, median_interval};

/// The median of at least one value; NaN of none.
pub(crate) fn median_of(values: &[f64]) -> f64 {
    if values.is_empty() { f64::NAN } else { median(&mut values.to_vec()) }
}

/// A median and the interval around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Share of such intervals that hold the true median: 0.95 at least from six values on.
    pub(crate) coverage: f64,
}

impl Interval {
    /// Of the values' own order, see [`median_interval`]; NaN of none.
    pub(crate) fn of(values: &[f64]) -> Self {
        if values.is_empty() {
            return Self { median: f64::NAN, low: f64::NAN, high: f64::NAN, coverage: 0.0 };
        }
        let MedianInterval { low, high, coverage } = median_interval(values);
        Self { median: median_of(values), low, high, coverage }
    }

    pub(crate) fn width(self) -> f64 {
        self.high - self.low
    }
}

/// Quotients of what was measured in the same rounds.
pub(crate) fn quotients(values: &[f64], bases: &[f64]) -> Vec<f64> {
    values.iter().zip(bases).map(|(value, base)| value / base).collect()
}

/// How much the samples grew: the median of their last fifth less that of their first. Two single samples would compare
/// two moments; medians of fifths show a trend and forgive a peak.
pub(crate) fn growth(samples: &[f64]) -> f64 {
    at_the_end(samples) - median_of(&samples[..fifth(samples)])
}

/// The median of the last fifth of the samples.
pub(crate) fn at_the_end(samples: &[f64]) -> f64 {
    median_of(&samples[samples.len() - fifth(samples)..])
}

/// How many samples a fifth is, one at least where there is one.
fn fifth(samples: &[f64]) -> usize {
    (samples.len() / 5).max(1).min(samples.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_sees_a_slope_and_forgives_a_peak() {
        let slope: Vec<_> = (0..100).map(f64::from).collect();
        assert!((growth(&slope) - 80.0).abs() < 1e-9, "{}", growth(&slope));
        let mut peaks = vec![7.0; 100];
        (peaks[0], peaks[50], peaks[99]) = (70.0, 900.0, 70.0);
        assert!(growth(&peaks).abs() < 1e-9);
        // A ramp that has come to rest before the last fifth is growth all the same.
        let step: Vec<_> = (0..100).map(|index| if index < 30 { 1.0 } else { 2.0 }).collect();
        assert!((growth(&step) - 1.0).abs() < 1e-9);
        assert!((growth(&[1.0, 3.0]) - 2.0).abs() < 1e-9);
        assert!(growth(&[]).is_nan());
        assert!((at_the_end(&step) - 2.0).abs() < 1e-9 && at_the_end(&[]).is_nan());
    }

    #[test]
    fn an_interval_lies_around_the_median() {
        let ratios = [0.5, 0.98, 1.01, 1.0, 1.0, 0.99, 1.0, 1.02, 2.0];
        let interval = Interval::of(&ratios);
        assert!((interval.median - 1.0).abs() < 1e-9);
        assert!(interval.low <= 1.0 && interval.high >= 1.0 && interval.width() < 0.05, "{interval:?}");
        assert!(interval.coverage > 0.95, "{interval:?}");
        assert!(Interval::of(&[]).median.is_nan());
    }

    #[test]
    fn quotients_are_made_round_by_round() {
        assert_eq!(quotients(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
    }
}
