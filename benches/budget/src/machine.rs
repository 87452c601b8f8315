//! The machine, and what a process holds of it.

use std::fs;
use std::io;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, gettid, sched_setaffinity};
use serde::Serialize;
use xks_load::process::ProcessSample;

/// Bytes in a MiB and a KiB.
pub(crate) const MIB: f64 = 1_048_576.0;
pub(crate) const KIB: f64 = 1024.0;

/// What the figures were measured on.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
}

impl Machine {
    /// This one; what `/proc` does not say is empty.
    pub(crate) fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let memory_kib: u64 = memory.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_mib: memory_kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// Keeps this process, and those that it starts from now on, on one core.
///
/// # Errors
/// When there is no such core.
pub(crate) fn stay_on(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Puts this thread, which watches what is measured, before all others: it does not wait behind a load generator, even one
/// that shares its core. On `cpu` where there is one to spare.
///
/// # Errors
/// Where this process may not.
pub(crate) fn become_observer(cpu: Option<usize>) -> io::Result<()> {
    if let Some(cpu) = cpu {
        stay_on(cpu)?;
    }
    let thread = gettid().as_raw_nonzero().to_string();
    let output = Command::new("chrt").args(["--rr", "--pid", "10", &thread]).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(())
}

/// Lets this process, and those that it starts from now on, open as many files as they are allowed to ask for.
///
/// # Errors
/// When fewer than `wanted` are allowed.
pub(crate) fn allow_open_files(wanted: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
        setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum })?;
        if raised < wanted {
            let text =
                format!("only {raised} open files are allowed, {wanted} are needed: raise `ulimit -Hn`");
            return Err(io::Error::other(text));
        }
    }
    Ok(())
}

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holdings {
    pub(crate) rss_bytes: f64,
    pub(crate) open_files: f64,
    pub(crate) threads: f64,
}

impl Holdings {
    /// Of a process of this user; nothing once it has ended.
    pub(crate) fn of(process_id: u32) -> Option<Self> {
        let sample = ProcessSample::read(process_id).ok()?;
        let open_files = fs::read_dir(format!("/proc/{process_id}/fd")).ok()?.count();
        Some(Self {
            rss_bytes: sample.rss_bytes as f64,
            open_files: open_files as f64,
            threads: sample.threads as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_holds_files_and_an_absent_one_nothing() {
        let before = Holdings::of(std::process::id()).unwrap();
        let opened: Vec<_> = (0..5).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        let after = Holdings::of(std::process::id()).unwrap();
        assert!(after.open_files >= before.open_files + 5.0, "{before:?} {after:?}");
        assert!(after.rss_bytes > 100_000.0 && after.threads >= 1.0);
        assert!(Holdings::of(u32::MAX).is_none());
        drop(opened);
    }
}
