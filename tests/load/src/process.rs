//! What a process costs: CPU time, memory and threads, read from `/proc`.

use std::fs;
use std::time::Duration;

/// A reading of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessSample {
    /// CPU time in user mode, all threads since the process began; resolution one clock tick (10 ms on Linux).
    pub user: Duration,
    /// CPU time in the kernel on behalf of the process; same resolution.
    pub system: Duration,
    /// Resident memory (`VmRSS`).
    pub rss_bytes: u64,
    /// Highest resident memory since the process began (`VmHWM`).
    pub peak_rss_bytes: u64,
    /// Number of threads.
    pub threads: u64,
}

/// A process that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("process {process_id}: {fault}")]
pub struct ProcessError {
    process_id: u32,
    fault: String,
}

impl ProcessSample {
    /// Reads process `process_id`.
    ///
    /// # Errors
    /// When it does not exist or `/proc` is not readable.
    pub fn read(process_id: u32) -> Result<Self, ProcessError> {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{process_id}/{file}"))
                .map_err(|error| ProcessError { process_id, fault: error.to_string() })
        };
        Self::parse(&read("stat")?, &read("status")?, rustix::param::clock_ticks_per_second())
            .ok_or_else(|| ProcessError { process_id, fault: "unexpected content of /proc".to_owned() })
    }

    fn parse(stat: &str, status: &str, ticks_per_sec: u64) -> Option<Self> {
        // The command's name stands in parentheses and may hold spaces and parentheses itself; what follows counts from field 3.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |field: usize| -> Option<Duration> {
            let ticks: u64 = fields.get(field - 3)?.parse().ok()?;
            Some(Duration::from_micros(ticks * 1_000_000 / ticks_per_sec))
        };
        let number = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            user: ticks(14)?,
            system: ticks(15)?,
            rss_bytes: number("VmRSS:")? * 1024,
            peak_rss_bytes: number("VmHWM:")? * 1024,
            threads: number("Threads:")?,
        })
    }

    /// User and system time together.
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_command_name_does_not_shift_the_fields() {
        let stat = "42 (a) 1 (b c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 9 0 100";
        let status = "Name:\ta\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\nThreads:\t9\n";
        let sample = ProcessSample::parse(stat, status, 100).unwrap();
        assert_eq!(sample.user, Duration::from_millis(2500));
        assert_eq!(sample.system, Duration::from_millis(1500));
        assert_eq!((sample.rss_bytes, sample.peak_rss_bytes, sample.threads), (1 << 20, 2 << 20, 9));
    }

    #[test]
    fn this_process_uses_memory_and_an_absent_one_is_an_error() {
        let own = ProcessSample::read(std::process::id()).unwrap();
        assert!(own.rss_bytes > 100_000 && own.peak_rss_bytes >= own.rss_bytes && own.threads >= 1);
        assert!(ProcessSample::read(u32::MAX).is_err());
    }
}
