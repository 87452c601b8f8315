//! What is measured: histograms, counts and a timeline, recorded by one worker and merged afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::check::UsedIv;
use crate::failure::Failure;
use crate::workload::Operation;

/// AWS KMS gives up on a proxy after this time (specification, KMS considerations of each operation).
pub const KMS_TIMEOUT: Duration = Duration::from_millis(250);

/// Most IVs kept for the search for repeats, over all workers: 400 MB.
pub const MAX_IVS: usize = 20_000_000;

/// Most distinct failures counted apart; the target chooses their names.
const MAX_LABELS: usize = 100;

/// The label of failures past [`MAX_LABELS`].
const OTHER: &str = "other";

/// A histogram of durations from 1 µs to 10 minutes with three significant digits, in nanoseconds.
#[derive(Debug, Clone)]
pub struct Durations(Histogram<u64>);

impl Durations {
    /// An empty histogram.
    ///
    /// # Errors
    /// Never with the bounds in use.
    pub fn new() -> Result<Self, MeasureError> {
        let histogram = Histogram::new_with_bounds(1_000, 600_000_000_000, 3);
        Ok(Self(histogram.map_err(|error| MeasureError(error.to_string()))?))
    }

    /// Adds one; longer ones than ten minutes count as ten minutes.
    pub fn record(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all that `other` holds.
    ///
    /// # Errors
    /// Never with the bounds in use.
    pub fn add(&mut self, other: &Self) -> Result<(), MeasureError> {
        self.0.add(&other.0).map_err(|error| MeasureError(error.to_string()))
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value at `quantile` (0 to 1) in milliseconds; 0 where nothing was recorded.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(quantile) as f64 / 1e6 }
    }

    /// The mean in milliseconds; 0 where nothing was recorded.
    pub fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e6
    }

    /// The highest value in milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.quantile_ms(1.0)
    }
}

/// A histogram that cannot be made or merged.
#[derive(Debug, thiserror::Error)]
#[error("histogram: {0}")]
pub struct MeasureError(String);

/// One second of the measured phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Second {
    /// Requests scheduled in it.
    pub scheduled: u64,
    /// Right answers that came in it.
    pub ok: u64,
    /// Requests that failed or were dropped in it.
    pub failed: u64,
}

/// The end of one request. Instants count from the start of the measured phase.
#[derive(Debug)]
pub struct Sample {
    /// Its operation.
    pub operation: Operation,
    /// Whether it opened a connection of its own.
    pub on_new_connection: bool,
    /// When it was due.
    pub scheduled: Duration,
    /// When it was handed to its connection; nothing if it never was.
    pub sent: Option<Duration>,
    /// When its answer was complete or its failure known.
    pub finished: Duration,
    /// How it ended.
    pub result: Result<Option<UsedIv>, Failure>,
}

/// Everything measured.
#[derive(Debug, Clone)]
pub struct Recorder {
    /// Latency from the scheduled instant, of all requests that were not dropped, whatever their end.
    pub latency: Durations,
    /// Time from the instant a request was handed to its connection, of all that were.
    pub service: Durations,
    /// Latency of right answers by operation.
    pub by_operation: [Durations; 4],
    /// Latency of requests that opened a connection of their own, whatever their end.
    pub on_new_connection: Durations,
    /// Latency of requests that were answered with ThrottlingException: how soon the target refuses what is too much.
    pub refused: Durations,
    /// Time to open a connection, TLS handshake included.
    pub handshake: Durations,
    /// How late the generator itself was in an open loop: from the scheduled instant to the request's dispatch.
    pub dispatch_lag: Durations,
    /// Requests scheduled.
    pub scheduled: u64,
    /// Right answers.
    pub ok: u64,
    /// Requests that failed, by label.
    pub failures: BTreeMap<String, u64>,
    /// Requests not sent because too many were outstanding.
    pub dropped: u64,
    /// Requests whose end came later than [`KMS_TIMEOUT`] after their scheduled instant.
    pub past_kms_timeout: u64,
    /// Connections opened again because the target had closed them.
    pub reconnects: u64,
    /// The timeline.
    pub seconds: Vec<Second>,
    /// When the last request ended.
    pub last_finished: Duration,
    /// IVs of right encrypts, warm-up included.
    pub ivs: Vec<UsedIv>,
    /// IVs that found no room.
    pub ivs_not_kept: u64,
    ivs_room: usize,
}

impl Recorder {
    /// An empty recorder that keeps at most `ivs_room` IVs.
    ///
    /// # Errors
    /// Never with the bounds in use.
    pub fn new(ivs_room: usize) -> Result<Self, MeasureError> {
        let empty = Durations::new()?;
        Ok(Self {
            latency: empty.clone(),
            service: empty.clone(),
            by_operation: std::array::from_fn(|_| empty.clone()),
            on_new_connection: empty.clone(),
            refused: empty.clone(),
            handshake: empty.clone(),
            dispatch_lag: empty,
            scheduled: 0,
            ok: 0,
            failures: BTreeMap::new(),
            dropped: 0,
            past_kms_timeout: 0,
            reconnects: 0,
            seconds: Vec::new(),
            last_finished: Duration::ZERO,
            ivs: Vec::new(),
            ivs_not_kept: 0,
            ivs_room,
        })
    }

    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Notes that a request was due at `scheduled`.
    pub fn note_scheduled(&mut self, scheduled: Duration) {
        self.scheduled += 1;
        self.second(scheduled).scheduled += 1;
    }

    /// Notes that the request due at `scheduled` was not sent because too many were outstanding.
    pub fn note_dropped(&mut self, scheduled: Duration) {
        self.dropped += 1;
        self.second(scheduled).failed += 1;
    }

    /// Records the end of a request.
    pub fn record(&mut self, sample: Sample) {
        let latency = sample.finished.saturating_sub(sample.scheduled);
        self.latency.record(latency);
        if let Some(sent) = sample.sent {
            self.service.record(sample.finished.saturating_sub(sent));
        }
        if sample.on_new_connection {
            self.on_new_connection.record(latency);
        }
        if latency > KMS_TIMEOUT {
            self.past_kms_timeout += 1;
        }
        self.last_finished = self.last_finished.max(sample.finished);
        match sample.result {
            Ok(iv) => {
                self.ok += 1;
                self.by_operation[sample.operation as usize].record(latency);
                self.second(sample.finished).ok += 1;
                if let Some(iv) = iv {
                    self.keep_iv(iv);
                }
            }
            Err(failure) => {
                self.second(sample.finished).failed += 1;
                if failure.is_throttling() {
                    self.refused.record(latency);
                }
                self.count_failure(failure.to_string(), 1);
            }
        }
    }

    /// Keeps an IV for the search for repeats, while there is room.
    pub fn keep_iv(&mut self, iv: UsedIv) {
        // Sorted after the run: a growing hash table would stall the generator whenever it moves.
        if self.ivs.len() < self.ivs_room {
            self.ivs.push(iv);
        } else if self.ivs_room > 0 {
            self.ivs_not_kept += 1;
        }
    }

    fn count_failure(&mut self, label: String, count: u64) {
        let room = self.failures.len() < MAX_LABELS || self.failures.contains_key(&label);
        *self.failures.entry(if room { label } else { OTHER.to_owned() }).or_default() += count;
    }

    fn second(&mut self, instant: Duration) -> &mut Second {
        let index = usize::try_from(instant.as_secs()).unwrap_or(usize::MAX);
        if index >= self.seconds.len() {
            self.seconds.resize(index + 1, Second::default());
        }
        &mut self.seconds[index]
    }

    /// Adds what another worker, or another round, measured.
    ///
    /// # Errors
    /// Never with the bounds in use.
    pub fn merge(&mut self, other: Self) -> Result<(), MeasureError> {
        self.latency.add(&other.latency)?;
        self.service.add(&other.service)?;
        for (mine, theirs) in self.by_operation.iter_mut().zip(&other.by_operation) {
            mine.add(theirs)?;
        }
        self.on_new_connection.add(&other.on_new_connection)?;
        self.refused.add(&other.refused)?;
        self.handshake.add(&other.handshake)?;
        self.dispatch_lag.add(&other.dispatch_lag)?;
        self.scheduled += other.scheduled;
        self.ok += other.ok;
        self.dropped += other.dropped;
        self.past_kms_timeout += other.past_kms_timeout;
        self.reconnects += other.reconnects;
        self.last_finished = self.last_finished.max(other.last_finished);
        self.ivs.extend(other.ivs);
        self.ivs_not_kept += other.ivs_not_kept;
        for (label, count) in other.failures {
            self.count_failure(label, count);
        }
        for (index, theirs) in (0..).zip(other.seconds) {
            let mine = self.second(Duration::from_secs(index));
            mine.scheduled += theirs.scheduled;
            mine.ok += theirs.ok;
            mine.failed += theirs.failed;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Transport;

    fn sample(scheduled_ms: u64, finished_ms: u64, result: Result<Option<UsedIv>, Failure>) -> Sample {
        Sample {
            operation: Operation::Health,
            on_new_connection: false,
            scheduled: Duration::from_millis(scheduled_ms),
            sent: Some(Duration::from_millis(finished_ms - 1)),
            finished: Duration::from_millis(finished_ms),
            result,
        }
    }

    #[test]
    fn latency_counts_from_the_schedule_and_service_time_from_the_send() {
        let mut recorder = Recorder::new(0).unwrap();
        recorder.record(sample(0, 300, Ok(None)));
        assert!((recorder.latency.max_ms() - 300.0).abs() < 0.5);
        assert!((recorder.service.max_ms() - 1.0).abs() < 0.01);
        assert_eq!(recorder.past_kms_timeout, 1);
    }

    #[test]
    fn every_request_lands_in_its_second_and_workers_add_up() {
        let worker = |offset_ms| {
            let mut recorder = Recorder::new(0).unwrap();
            for scheduled_ms in [offset_ms, offset_ms + 500, offset_ms + 1000] {
                recorder.note_scheduled(Duration::from_millis(scheduled_ms));
            }
            recorder.record(sample(offset_ms, offset_ms + 600, Ok(None)));
            recorder.record(sample(offset_ms + 500, offset_ms + 600, Err(Transport::Timeout.into())));
            recorder.note_dropped(Duration::from_millis(offset_ms + 1000));
            recorder
        };
        let mut both = worker(0);
        both.merge(worker(100)).unwrap();
        assert_eq!((both.scheduled, both.ok, both.failed(), both.dropped), (6, 2, 2, 2));
        assert_eq!(both.latency.count(), 4);
        let second = |scheduled, ok, failed| Second { scheduled, ok, failed };
        assert_eq!(both.seconds, [second(4, 2, 2), second(2, 0, 2)]);
        assert_eq!(both.failures, BTreeMap::from([("transport: timeout".to_owned(), 2)]));
        assert_eq!(both.last_finished, Duration::from_millis(700));
    }

    #[test]
    fn throttled_requests_have_a_histogram_of_their_own_and_other_refusals_are_not_in_it() {
        let refused = |error_name: &str| {
            let error_name = error_name.to_owned();
            Err(Failure::Refused { status: 429, error_name })
        };
        let mut recorder = Recorder::new(0).unwrap();
        recorder.record(sample(0, 40, Ok(None)));
        recorder.record(sample(0, 7, refused("ThrottlingException")));
        recorder.record(sample(0, 90, refused("KmsInternalException")));
        let mut both = recorder.clone();
        both.merge(recorder).unwrap();
        assert_eq!((both.refused.count(), both.latency.count(), both.failed()), (2, 6, 4));
        assert!((both.refused.max_ms() - 7.0).abs() < 0.01, "{}", both.refused.max_ms());
    }

    #[test]
    fn a_target_that_invents_error_names_cannot_fill_the_memory() {
        let mut recorder = Recorder::new(0).unwrap();
        for index in 0..1000 {
            let failure = Failure::Refused { status: 500, error_name: format!("Name{index}") };
            recorder.record(sample(0, 1, Err(failure)));
        }
        assert_eq!(recorder.failures.len(), MAX_LABELS + 1);
        assert_eq!(recorder.failed(), 1000);
    }
}
