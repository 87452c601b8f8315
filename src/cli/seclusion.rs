//! What keeps others out of the process's memory. Done before any secret is read.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Shuts out debuggers and core dumps. Where the system refuses, the process goes on: it is one wall of several.
pub(super) fn close() {
    // Only root may then trace the process or read its memory through /proc.
    #[cfg(target_os = "linux")]
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    #[cfg(debug_assertions)]
    obey_control_run();
}

/// Where memory runs out, it is this process that goes, and not the proxy. One that is [closed](close) may no longer say so.
pub(super) fn offer_itself() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
}

/// The control run of the test that looks for plaintexts in memory (tests/proxy/memory.rs) keeps what is freed. Release
/// builds know no such switch.
#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "no setting")]
fn obey_control_run() {
    if std::env::var("XKS_CONTROL_RUN").is_ok_and(|what| what == "keep-freed-memory") {
        crate::wiping_allocator::stop_wiping();
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn debuggers_are_shut_out() {
        close();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
