//! Waits for an instant with the precision of the kernel's timers.

use std::io;
use std::time::Instant;

use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// A timer for a sequence of instants.
///
/// Tokio's own timers tick once a millisecond, which is longer than a request takes: every latency would carry up to
/// a millisecond of the generator's making. This one rests on `timerfd`.
#[derive(Debug)]
pub struct Pacer {
    timer: AsyncFd<OwnedFd>,
}

impl Pacer {
    /// A timer on the current Tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no timer (out of file descriptors).
    pub fn new() -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[allow(
            deprecated,
            reason = "deprecated for types whose descriptor may change, which an OwnedFd's cannot; the new name is unsafe"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer })
    }

    /// Returns at `instant`, or at once where it has passed.
    ///
    /// # Errors
    /// When the timer cannot be set or read, which no working kernel reports.
    pub async fn until(&self, instant: Instant) -> io::Result<()> {
        let wait = instant.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec::try_from(wait).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.timer.readable().await?;
            let mut expirations = [0; 8];
            match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?)) {
                Ok(read) => {
                    // Set once, the timer cannot have become ready again: spare the next wait a futile read.
                    ready.clear_ready();
                    return read.map(drop);
                }
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn never_returns_early_and_can_be_used_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pacer = Pacer::new().unwrap();
            let start = Instant::now();
            for step in 1..=20 {
                let instant = start + Duration::from_micros(300 * step);
                pacer.until(instant).await.unwrap();
                assert!(Instant::now() >= instant);
            }
            pacer.until(start).await.unwrap();
        });
    }
}
