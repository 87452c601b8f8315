//! The corpora of the fuzzers, run once through their targets (fuzz/README.md): what was found stays found.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "these are tests")]
#![cfg(feature = "cedar")]

#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn every_file_of_the_corpora_passes_its_target() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let folders =
        fs::read_dir(&corpora).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let folders: BTreeSet<_> = folders.collect();
    let names: BTreeSet<_> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, names, "each target has a corpus");
    for (name, run) in targets::TARGETS {
        let mut files = 0;
        for entry in fs::read_dir(corpora.join(name)).unwrap() {
            run(&fs::read(entry.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files >= 4, "{name} has no seeds");
    }
}
