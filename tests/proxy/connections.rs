//! What connections cost and how long they last: silence, floods, the cap, broken and ambiguous requests.

mod admission;
mod bodies;
mod broken_off;
mod deadline;
mod floods;
pub(crate) mod frames;
mod framing;
mod framing_http2;
mod open_files;
mod plain;
mod silence;
mod sizes;

use xks_harness::Proxy;

/// The memory of the proxy that is in use now.
fn memory_bytes(proxy: &Proxy) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
