//! Runs a plan against one target: threads, a common start, and what the processes cost meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::check::{IvReport, repeated_ivs};
use crate::client::{Connector, HttpVersion, TlsError};
use crate::failure::Transport;
use crate::measure::{MeasureError, Recorder};
use crate::prepare::{PrepareError, prepare};
use crate::process::{ProcessError, ProcessSample};
use crate::request::Envelope;
use crate::schedule::Arrivals;
use crate::sign::SignError;
use crate::target::Target;
use crate::worker::{Shared, Worker};
use crate::workload::WorkloadSettings;

/// Between the moment every connection is open and the first request.
const HEAD_START: Duration = Duration::from_millis(20);

/// An open loop: requests leave at their instants, whatever the target does.
#[derive(Debug, Clone)]
pub struct OpenLoop {
    /// Spacing of the instants.
    pub arrivals: Arrivals,
    /// Requests a second, over all workers.
    pub rate_per_sec: f64,
    /// How many of them open a connection of their own.
    pub new_connections_per_sec: f64,
    /// Most requests due and not yet ended; further ones are dropped and counted.
    pub max_outstanding: u32,
}

/// How a run goes.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The open loop, or nothing for a closed one, in which each connection sends as soon as it has its answer.
    pub open: Option<OpenLoop>,
    /// HTTP version.
    pub http: HttpVersion,
    /// Whether a connection may resume the TLS session of an earlier one.
    pub tls_resumption: bool,
    /// Time before the measured phase, under the same load.
    pub warmup: Duration,
    /// Length of the measured phase.
    pub duration: Duration,
    /// Most requests of the measured phase.
    pub max_requests: u64,
    /// Kept connections, over all workers.
    pub connections: u32,
    /// Requests at once on each kept connection (1 for HTTP/1.1).
    pub streams: u32,
    /// Workers, each a thread with an event loop of its own.
    pub threads: u32,
    /// Time allowed for a request from its scheduled instant.
    pub timeout: Duration,
    /// How long a signature is used again; nothing signs every request anew.
    pub presign: Option<Duration>,
    /// Every how many answers one is checked thoroughly.
    pub thorough_every: u64,
    /// Whether to look for repeated IVs.
    pub check_ivs: bool,
    /// Seed of all choices.
    pub seed: u64,
}

impl Plan {
    /// The part of `total` that falls to worker number `worker`.
    pub(crate) fn share_of(&self, total: u32, worker: u32) -> u32 {
        total / self.threads + u32::from(worker < total % self.threads)
    }

    pub(crate) fn outstanding_per_worker(&self, open: &OpenLoop) -> usize {
        open.max_outstanding.div_ceil(self.threads) as usize
    }
}

/// A run that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The connections could not be opened.
    #[error("cannot connect to the target: {0}")]
    Connect(Transport),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The requests could not be prepared.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A request could not be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A host or path cannot stand in a URI.
    #[error("not a URI: {0}")]
    Uri(String),
    /// The target's process could not be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Histograms could not be made.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The kernel gave no timer or event loop.
    #[error("timer or event loop: {0}")]
    Timer(std::io::Error),
    /// A worker ended without a result.
    #[error("a worker ended unexpectedly")]
    Worker,
}

/// What a process spent between the start of the measured phase and its last answer.
#[derive(Debug, Clone, Copy)]
pub struct ProcessUse {
    /// At the start of the measured phase.
    pub before: ProcessSample,
    /// After the last answer.
    pub after: ProcessSample,
    /// Time between the two.
    pub wall: Duration,
}

/// What a run measured.
#[derive(Debug)]
pub struct Outcome {
    /// Histograms and counts of all workers.
    pub recorder: Recorder,
    /// The search for repeated IVs, where asked for.
    pub ivs: Option<IvReport>,
    /// Time over which throughput counts: the measured phase, or until its last answer where that came later.
    pub span: Duration,
    /// The target's process, where known.
    pub target: Option<ProcessUse>,
    /// This process.
    pub generator: Option<ProcessUse>,
}

/// A target made ready: its workload is prepared, and may be run several times.
pub struct Engine {
    shared: Arc<Shared>,
    process_id: Option<u32>,
}

impl Engine {
    /// Prepares the workload on `target`.
    ///
    /// # Errors
    /// When TLS cannot be set up or the target does not encrypt what decrypts need.
    pub fn prepare(target: &Target, settings: &WorkloadSettings, plan: Plan) -> Result<Self, EngineError> {
        if let Some(process_id) = target.process_id {
            ProcessSample::read(process_id)?;
        }
        let connector = Connector::new(target, plan.http, plan.tls_resumption)?;
        let envelope =
            Envelope::new(plan.http, &target.host).map_err(|error| EngineError::Uri(error.to_string()))?;
        let connections = plan.connections;
        let prepared = prepare(target, &connector, &envelope, settings, connections, plan.timeout);
        let workload = event_loop()?.block_on(prepared)?;
        let stores = Arc::clone(&target.stores);
        let shared = Shared { plan, workload, connector, envelope, stores, budget: AtomicU64::new(0) };
        Ok(Self { shared: Arc::new(shared), process_id: target.process_id })
    }

    /// Runs the plan once.
    ///
    /// # Errors
    /// When the connections cannot be opened or a process cannot be read. What goes wrong once requests flow is
    /// measured instead.
    pub fn run(&self) -> Result<Outcome, EngineError> {
        let plan = &self.shared.plan;
        self.shared.budget.store(plan.max_requests, Ordering::Relaxed);
        thread::scope(|scope| {
            let (ready, all_ready) = mpsc::channel();
            let mut starts = Vec::new();
            let mut workers = Vec::new();
            for number in 0..plan.threads {
                let (start, started) = mpsc::channel::<Instant>();
                starts.push(start);
                let ready = ready.clone();
                workers.push(scope.spawn(move || self.work(number, &ready, &started)));
            }
            drop(ready);
            for _ in 0..plan.threads {
                // On a failure the start channels drop, and the other workers end without having sent anything.
                all_ready.recv().map_err(|_| EngineError::Worker)??;
            }
            let start = Instant::now() + HEAD_START;
            for worker in starts {
                let _ = worker.send(start);
            }
            let measured_from = start + plan.warmup;
            thread::sleep(measured_from.saturating_duration_since(Instant::now()));
            let before = self.sample_processes();
            let mut recorder = Recorder::new(0)?;
            for worker in workers {
                recorder.merge(worker.join().map_err(|_| EngineError::Worker)??)?;
            }
            let after = self.sample_processes();
            Ok(self.outcome(recorder, before, after, measured_from.elapsed()))
        })
    }

    /// The life of one worker's thread.
    fn work(
        &self,
        number: u32,
        ready: &mpsc::Sender<Result<(), EngineError>>,
        started: &mpsc::Receiver<Instant>,
    ) -> Result<Recorder, EngineError> {
        let connected = event_loop().and_then(|event_loop| {
            let worker = event_loop.block_on(Worker::connected(Arc::clone(&self.shared), number))?;
            Ok((event_loop, Arc::new(worker)))
        });
        let (connected, report) = match connected {
            Ok(connected) => (Some(connected), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let _ = ready.send(report);
        let (event_loop, worker) = connected.ok_or(EngineError::Worker)?;
        let start = started.recv().map_err(|_| EngineError::Worker)?;
        match &self.shared.plan.open {
            Some(open) => event_loop.block_on(worker.run_open(start, open))?,
            None => event_loop.block_on(worker.run_closed(start)),
        }
        // Its tasks have ended, and connections hold no handle on it.
        Arc::into_inner(worker).map(Worker::into_recorder).ok_or(EngineError::Worker)
    }

    /// The target's process (nothing once it is gone) and this one.
    fn sample_processes(&self) -> [Option<ProcessSample>; 2] {
        [self.process_id, Some(std::process::id())].map(|id| id.and_then(|id| ProcessSample::read(id).ok()))
    }

    fn outcome(
        &self,
        mut recorder: Recorder,
        before: [Option<ProcessSample>; 2],
        after: [Option<ProcessSample>; 2],
        wall: Duration,
    ) -> Outcome {
        let plan = &self.shared.plan;
        let spent = |process: usize| {
            let (before, after) = before[process].zip(after[process])?;
            Some(ProcessUse { before, after, wall })
        };
        let budget_left = self.shared.budget.load(Ordering::Relaxed) > 0;
        let mut ivs = std::mem::take(&mut recorder.ivs);
        let repeated = repeated_ivs(&mut ivs);
        let ivs = IvReport { checked: ivs.len(), repeated, unchecked: recorder.ivs_not_kept };
        Outcome {
            ivs: plan.check_ivs.then_some(ivs),
            span: if budget_left {
                plan.duration.max(recorder.last_finished)
            } else {
                recorder.last_finished
            },
            target: spent(0),
            generator: spent(1),
            recorder,
        }
    }
}

fn event_loop() -> Result<Runtime, EngineError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Look for due timers and answers often, even when every connection is busy.
        .event_interval(8)
        .build()
        .map_err(EngineError::Timer)
}
