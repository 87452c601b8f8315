//! The `xks-proxy` binary.

use std::process::ExitCode;

use xks_proxy::wiping_allocator::WipingAllocator;

#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

fn main() -> ExitCode {
    xks_proxy::cli::main()
}
