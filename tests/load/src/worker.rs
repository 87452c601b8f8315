//! One thread of the generator: dispatches requests when they are due and records how they end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Full;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::check::{UsedIv, judge};
use crate::client::{Connector, Line};
use crate::engine::{EngineError, OpenLoop, Plan};
use crate::failure::{Failure, Transport};
use crate::measure::{MAX_IVS, Recorder, Sample};
use crate::pacer::Pacer;
use crate::request::Envelope;
use crate::schedule::Schedule;
use crate::sign::Signature;
use crate::target::Store;
use crate::workload::{Chooser, Workload, request_id};

/// A pause after a connection could not be opened, so that a closed loop does not spin on a target that is down.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);

/// A due request.
#[derive(Debug, Clone, Copy)]
struct Job {
    due: Instant,
    index: usize,
    on_new_connection: bool,
}

/// What all workers of a run share.
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    pub(crate) workload: Workload,
    pub(crate) connector: Connector,
    pub(crate) envelope: Envelope,
    pub(crate) stores: Arc<Vec<Store>>,
    /// Measured requests that may still be started.
    pub(crate) budget: AtomicU64,
}

impl Shared {
    fn spend_one(&self) -> bool {
        self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// What changes with every request. Locked for moments only, never across an await.
struct State {
    recorder: Recorder,
    chooser: Chooser,
    rng: fastrand::Rng,
    /// With pre-signing: the signature of each request of the pool and when it was made.
    signatures: Vec<(Instant, Signature)>,
    judged: u64,
}

/// One thread's part of a run.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    number: u32,
    lines: Vec<Arc<Line>>,
    uris: Vec<Uri>,
    state: Mutex<State>,
    queue: Mutex<VecDeque<Job>>,
    queued: Notify,
    outstanding: AtomicUsize,
    drained: Notify,
}

impl Worker {
    /// A worker with its connections open and, where asked for, its requests signed.
    pub(crate) async fn connected(shared: Arc<Shared>, number: u32) -> Result<Self, EngineError> {
        let plan = &shared.plan;
        let connections = plan.share_of(plan.connections, number);
        let mut lines = Vec::new();
        for _ in 0..connections {
            let line = Line::new(shared.connector.clone());
            let lease = tokio::time::timeout(plan.timeout, line.lease()).await;
            let lease = lease.unwrap_or(Err(Transport::Timeout)).map_err(EngineError::Connect)?;
            line.give_back(lease.sender).await;
            lines.push(Arc::new(line));
        }
        let requests = shared.workload.requests();
        let uris: Result<Vec<_>, _> =
            requests.iter().map(|prepared| shared.envelope.uri(&prepared.path)).collect();
        let mut signatures = Vec::new();
        if plan.presign.is_some() {
            for prepared in requests {
                let signer = &shared.stores[prepared.store].signer;
                let signature = signer.sign(&prepared.path, &prepared.body, SystemTime::now())?;
                signatures.push((Instant::now(), signature));
            }
        }
        let ivs_room = if plan.check_ivs { MAX_IVS / plan.threads as usize } else { 0 };
        let state = State {
            recorder: Recorder::new(ivs_room)?,
            chooser: Chooser::new(number, plan.seed),
            rng: fastrand::Rng::with_seed(plan.seed.wrapping_add(u64::from(number))),
            signatures,
            judged: 0,
        };
        Ok(Self {
            number,
            lines,
            uris: uris.map_err(|error| EngineError::Uri(error.to_string()))?,
            state: Mutex::new(state),
            queue: Mutex::new(VecDeque::new()),
            queued: Notify::new(),
            outstanding: AtomicUsize::new(0),
            drained: Notify::new(),
            shared,
        })
    }

    /// Ends with what was measured.
    pub(crate) fn into_recorder(self) -> Recorder {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).recorder
    }

    /// Sends each request when it is due, whatever the target does, and waits for the last answer.
    pub(crate) async fn run_open(
        self: &Arc<Self>,
        start: Instant,
        open: &OpenLoop,
    ) -> Result<(), EngineError> {
        let plan = &self.shared.plan;
        let measured_from = start + plan.warmup;
        let mut tasks = JoinSet::new();
        for line in &self.lines {
            for _ in 0..plan.streams {
                tasks.spawn(Arc::clone(self).serve_queue(Arc::clone(line), measured_from));
            }
        }
        let pacer = Pacer::new().map_err(EngineError::Timer)?;
        let schedule = Schedule::new(
            open.arrivals,
            open.rate_per_sec,
            open.new_connections_per_sec,
            plan.warmup + plan.duration,
        );
        for (count, arrival) in (1_u64..).zip(schedule.share(self.number, plan.threads, plan.seed)) {
            let due = start + arrival.offset;
            let measured = due.checked_duration_since(measured_from);
            if measured.is_some() && !self.shared.spend_one() {
                break;
            }
            pacer.until(due).await.map_err(EngineError::Timer)?;
            let index = {
                let mut state = self.state();
                if let Some(scheduled) = measured {
                    state.recorder.note_scheduled(scheduled);
                    state.recorder.dispatch_lag.record(due.elapsed());
                }
                state.chooser.next(&self.shared.workload)
            };
            if self.outstanding.load(Ordering::Relaxed) >= plan.outstanding_per_worker(open) {
                if let Some(scheduled) = measured {
                    self.state().recorder.note_dropped(scheduled);
                }
                continue;
            }
            self.outstanding.fetch_add(1, Ordering::Relaxed);
            let job = Job { due, index, on_new_connection: arrival.on_new_connection };
            if job.on_new_connection {
                while tasks.try_join_next().is_some() {}
                tasks.spawn(Arc::clone(self).serve_once(job, measured_from));
            } else {
                self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
                self.queued.notify_one();
            }
            // A dispatcher that has fallen behind never waits for its timer: let the connections work.
            if count % 32 == 0 {
                tokio::task::yield_now().await;
            }
        }
        self.drain().await;
        tasks.shutdown().await;
        Ok(())
    }

    /// Sends on each connection as soon as it has its answer, until `start` + warm-up + duration.
    pub(crate) async fn run_closed(self: &Arc<Self>, start: Instant) {
        let plan = &self.shared.plan;
        let mut tasks = JoinSet::new();
        for line in &self.lines {
            for _ in 0..plan.streams {
                tasks.spawn(Arc::clone(self).repeat(Arc::clone(line), start));
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve_queue(self: Arc<Self>, line: Arc<Line>, measured_from: Instant) {
        loop {
            let job = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match job {
                Some(job) => {
                    self.perform(job, &line, measured_from).await;
                    self.end_one();
                }
                None => self.queued.notified().await,
            }
        }
    }

    async fn serve_once(self: Arc<Self>, job: Job, measured_from: Instant) {
        let line = Line::new(self.shared.connector.clone());
        self.perform(job, &line, measured_from).await;
        self.end_one();
    }

    async fn repeat(self: Arc<Self>, line: Arc<Line>, start: Instant) {
        let plan = &self.shared.plan;
        let (measured_from, end) = (start + plan.warmup, start + plan.warmup + plan.duration);
        tokio::time::sleep_until(start.into()).await;
        loop {
            let due = Instant::now();
            if let Some(scheduled) = due.checked_duration_since(measured_from) {
                if due >= end || !self.shared.spend_one() {
                    break;
                }
                self.state().recorder.note_scheduled(scheduled);
            }
            let index = self.state().chooser.next(&self.shared.workload);
            let job = Job { due, index, on_new_connection: false };
            if !self.perform(job, &line, measured_from).await {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
    }

    fn end_one(&self) {
        if self.outstanding.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.drained.notify_one();
        }
    }

    /// Waits until nothing is outstanding: each request ends by its timeout at the latest.
    async fn drain(&self) {
        while self.outstanding.load(Ordering::Relaxed) > 0 {
            self.drained.notified().await;
        }
    }

    /// Performs one request and records its end. Returns whether it reached a connection.
    async fn perform(&self, job: Job, line: &Line, measured_from: Instant) -> bool {
        let mut sent = None;
        let deadline = job.due + self.shared.plan.timeout;
        let exchange = self.exchange(job, line, measured_from, &mut sent);
        let answer = tokio::time::timeout_at(deadline.into(), exchange).await;
        let finished = Instant::now();
        let result = match answer {
            Ok(Ok((status, body))) => self.judge(job.index, status, &body),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Transport::Timeout.into()),
        };
        if let Some(scheduled) = job.due.checked_duration_since(measured_from) {
            let sample = Sample {
                operation: self.shared.workload.requests()[job.index].operation,
                on_new_connection: job.on_new_connection,
                scheduled,
                sent: sent.map(|sent| sent.saturating_duration_since(measured_from)),
                finished: finished.saturating_duration_since(measured_from),
                result,
            };
            self.state().recorder.record(sample);
        } else if let Ok(Some(iv)) = result {
            self.state().recorder.keep_iv(iv);
        }
        sent.is_some()
    }

    async fn exchange(
        &self,
        job: Job,
        line: &Line,
        measured_from: Instant,
        sent: &mut Option<Instant>,
    ) -> Result<(u16, Bytes), Failure> {
        let request = self.request(job.index)?;
        let mut lease = line.lease().await?;
        if let Some(handshake) = lease.handshake
            && job.due >= measured_from
        {
            let mut state = self.state();
            state.recorder.handshake.record(handshake);
            state.recorder.reconnects += u64::from(!job.on_new_connection);
        }
        *sent = Some(Instant::now());
        let answer = lease.sender.exchange(request).await?;
        line.give_back(lease.sender).await;
        Ok(answer)
    }

    fn request(&self, index: usize) -> Result<Request<Full<Bytes>>, Failure> {
        let prepared = &self.shared.workload.requests()[index];
        let signer = &self.shared.stores[prepared.store].signer;
        let sign = |body: &[u8]| {
            let signature = signer.sign(&prepared.path, body, SystemTime::now());
            signature.map_err(|error| Failure::Unsigned(error.to_string()))
        };
        let (body, signature) = match self.shared.plan.presign {
            Some(lifetime) => {
                let mut state = self.state();
                let (made, signature) = &mut state.signatures[index];
                if made.elapsed() >= lifetime {
                    (*made, *signature) = (Instant::now(), sign(&prepared.body)?);
                }
                (prepared.body.clone(), signature.clone())
            }
            None => {
                let mut body = prepared.body.to_vec();
                let request_id = request_id(&mut self.state().rng);
                body[prepared.request_id.clone()].copy_from_slice(request_id.as_bytes());
                let signature = sign(&body)?;
                (body.into(), signature)
            }
        };
        Ok(self.shared.envelope.request(self.uris[index].clone(), body, signature))
    }

    fn judge(&self, index: usize, status: u16, body: &[u8]) -> Result<Option<UsedIv>, Failure> {
        let thorough = {
            let mut state = self.state();
            state.judged += 1;
            state.judged.is_multiple_of(self.shared.plan.thorough_every)
        };
        judge(&self.shared.workload.requests()[index].expect, status, body, thorough)
    }
}
