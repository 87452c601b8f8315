//! When requests leave: instants that depend on the rate alone, never on the target.

use std::time::Duration;

/// How the instants of an open loop are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Evenly: one request every `1 / rate` seconds.
    Fixed,
    /// Independently of each other, as many callers together make them: exponential gaps of mean `1 / rate`.
    Poisson,
}

/// One scheduled request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// Its instant, counted from the start of the run.
    pub offset: Duration,
    /// Whether it opens a connection of its own.
    pub on_new_connection: bool,
}

/// A finite sequence of arrivals: the share of one worker out of several.
///
/// Fixed instants are dealt out in turns, so that all shares together are evenly spaced; Poisson shares are
/// independent, and so their union is a Poisson process of the whole rate.
#[derive(Debug, Clone)]
pub struct Schedule {
    arrivals: Arrivals,
    rate_per_sec: f64,
    new_connections_per_sec: f64,
    length: Duration,
    worker: u32,
    workers: u32,
    taken: u64,
    clock_secs: f64,
    new_connection_debt: f64,
    rng: fastrand::Rng,
}

impl Schedule {
    /// A schedule of `rate_per_sec` requests a second over `length`, of which `new_connections_per_sec` open a connection.
    pub fn new(
        arrivals: Arrivals,
        rate_per_sec: f64,
        new_connections_per_sec: f64,
        length: Duration,
    ) -> Self {
        Self {
            arrivals,
            rate_per_sec,
            new_connections_per_sec,
            length,
            worker: 0,
            workers: 1,
            taken: 0,
            clock_secs: 0.0,
            new_connection_debt: 0.0,
            rng: fastrand::Rng::with_seed(0),
        }
    }

    /// The share of worker number `worker` (from 0) out of `workers`.
    #[must_use]
    pub fn share(mut self, worker: u32, workers: u32, seed: u64) -> Self {
        self.worker = worker;
        self.workers = workers;
        self.rng = fastrand::Rng::with_seed(seed.wrapping_add(u64::from(worker)));
        self
    }

    fn next_secs(&mut self) -> f64 {
        match self.arrivals {
            Arrivals::Fixed => {
                let index = self.taken * u64::from(self.workers) + u64::from(self.worker);
                index as f64 / self.rate_per_sec
            }
            Arrivals::Poisson => {
                let share_per_sec = self.rate_per_sec / f64::from(self.workers);
                // 1 - u lies in (0, 1], where the logarithm is finite.
                self.clock_secs += -(1.0 - self.rng.f64()).ln() / share_per_sec;
                self.clock_secs
            }
        }
    }
}

impl Iterator for Schedule {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let offset = Duration::from_secs_f64(self.next_secs());
        if offset >= self.length {
            return None;
        }
        self.taken += 1;
        self.new_connection_debt += self.new_connections_per_sec / self.rate_per_sec;
        let on_new_connection = self.new_connection_debt >= 1.0;
        if on_new_connection {
            self.new_connection_debt -= 1.0;
        }
        Some(Arrival { offset, on_new_connection })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets_ms(schedule: Schedule) -> Vec<u128> {
        schedule.map(|arrival| arrival.offset.as_millis()).collect()
    }

    #[test]
    fn fixed_arrivals_are_evenly_spaced_and_end() {
        let schedule = Schedule::new(Arrivals::Fixed, 100.0, 0.0, Duration::from_millis(50));
        assert_eq!(offsets_ms(schedule), [0, 10, 20, 30, 40]);
    }

    #[test]
    fn shares_of_fixed_arrivals_interleave_into_the_whole() {
        let whole = Schedule::new(Arrivals::Fixed, 1000.0, 0.0, Duration::from_secs(1));
        let mut together: Vec<_> =
            (0..3).flat_map(|worker| offsets_ms(whole.clone().share(worker, 3, 7))).collect();
        together.sort_unstable();
        assert_eq!(together, offsets_ms(whole));
    }

    #[test]
    fn poisson_shares_keep_the_rate_and_vary_their_gaps() {
        let whole = Schedule::new(Arrivals::Poisson, 10_000.0, 0.0, Duration::from_secs(10));
        let offsets: Vec<f64> = whole.share(1, 2, 42).map(|arrival| arrival.offset.as_secs_f64()).collect();
        // 50,000 expected, standard deviation 224.
        assert!((48_500..51_500).contains(&offsets.len()), "{}", offsets.len());
        let gaps: Vec<f64> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential distribution's standard deviation equals its mean; even spacing would have none.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{}", variance.sqrt() / mean);
    }

    #[test]
    fn new_connections_come_at_their_own_rate() {
        let schedule = Schedule::new(Arrivals::Fixed, 200.0, 50.0, Duration::from_secs(2));
        assert_eq!(schedule.filter(|arrival| arrival.on_new_connection).count(), 100);
    }
}
