//! One program for all targets: XKS_FUZZ_TARGET says which. `fuzz/run` builds and runs it.
#![no_main]

mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<targets::Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("XKS_FUZZ_TARGET").expect("XKS_FUZZ_TARGET names a target");
        let target = targets::TARGETS.iter().find(|(known, _)| *known == name);
        let (_, run) = target.unwrap_or_else(|| panic!("there is no target {name}"));
        TARGET.get_or_init(|| *run);
    },
    |data: &[u8]| {
        if let Some(run) = TARGET.get() {
            run(data);
        }
    }
);
