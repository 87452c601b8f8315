//! What the process itself uses, from /proc: files that can be read though the process is closed to debuggers.

use std::time::UNIX_EPOCH;

use super::Metrics;
use crate::clock;

/// Clock ticks of a second in /proc/self/stat (USER_HZ), which is the same on every architecture that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

impl Metrics {
    /// The process begins now.
    pub(super) fn note_process_start(&self) {
        let since_epoch = clock::wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.process_start.set(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX));
    }

    /// What it uses now; what the system does not say stays as it was.
    pub(super) fn note_process(&self) {
        if let Some(bytes) = resident_bytes() {
            self.process_memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        if let Some(secs) = cpu_seconds() {
            self.process_cpu.inc_by((secs - self.process_cpu.get()).max(0.0));
        }
    }
}

/// Memory of this process that is in RAM; `None` where the system does not say.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name in parentheses may hold anything; user and system time are the 12th and 13th fields behind it.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}
