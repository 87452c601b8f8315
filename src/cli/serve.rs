//! `xks-proxy serve`.

use std::io::{self, BufWriter, Stdout, Write};
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, EXIT_RESTART, ServeArgs, complain, environment, prepare};
use crate::app::{self, AppError, Ended, Surroundings};
use crate::config::LogLevel;
use crate::hsm::ForceLogin;
use crate::secret;

/// Log lines that may wait to be written, a few kilobytes each, 40 at the most; what comes on top is dropped and counted,
/// since no request waits for the log.
const MAX_WAITING_LINES: usize = 16_384;

/// Time between two batches of log lines. One wake-up and one write for each line cost more than making the line.
const LOG_PAUSE: Duration = Duration::from_millis(5);

pub(super) fn run(args: &ServeArgs) -> u8 {
    let force_login = if args.force_login { ForceLogin::TokenFlags } else { ForceLogin::No };
    let (config, files) = app::load(&args.config.config);
    let config = match prepare(config, force_login) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let (log, set_log_level, dropped_lines) = start_log(config.log_level);
    secret::warn_if_unlocked();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"));
            return EXIT_FAILED;
        }
    };
    let surroundings = Surroundings {
        path: args.config.config.clone(),
        set_log_level: Box::new(set_log_level),
        has_environment: environment::is_there,
    };
    let ended = runtime.block_on(app::run((config, files), surroundings, dropped_lines));
    runtime.shutdown_background();
    // Flushes what is waiting.
    drop(log);
    match ended {
        Ok(Ended::Clean) => EXIT_OK,
        // The module's destructors would run beside the thread that is stuck in it.
        Ok(Ended::ThreadStuck) => signal_hook::low_level::exit(i32::from(EXIT_OK)),
        Ok(Ended::ToBeRestarted) => signal_hook::low_level::exit(i32::from(EXIT_RESTART)),
        Err(error) => {
            complain(&error);
            // Nothing but another configuration helps.
            if matches!(error, AppError::UnsafeVersions(_)) { EXIT_CONFIG } else { EXIT_FAILED }
        }
    }
}

/// JSON to standard output by a thread of its own. The guard flushes; the first function changes the level, the second one
/// counts dropped lines.
fn start_log(
    level: LogLevel,
) -> (WorkerGuard, impl Fn(LogLevel) + Send + Sync + 'static, impl Fn() -> usize + Send + 'static) {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING_LINES)
        .thread_name("log")
        .finish(Batches(BufWriter::with_capacity(64 * 1024, io::stdout())));
    let counter = writer.error_counter();
    let (level, handle) = reload::Layer::new(filter(level));
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_span_events(FmtSpan::NONE)
        .with_writer(writer);
    tracing_subscriber::registry().with(level).with(lines).init();
    let set_level = move |level| {
        // Fails only once the subscriber is gone, and nothing is logged any more.
        let _ = handle.reload(filter(level));
    };
    (guard, set_level, move || counter.dropped_lines())
}

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Standard output, to which the log's thread writes all that is waiting and then leaves lines time to gather.
struct Batches(BufWriter<Stdout>);

impl Write for Batches {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    /// Called when no line waits any more.
    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.0.flush();
        thread::sleep(LOG_PAUSE);
        flushed
    }
}
