//! The table of faults agrees with the requirements, with the code and with its document.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use xks_saboteur::Fault;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../..");

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// The cells of a document's table rows, the heading and its line among them.
fn rows(document: &str) -> Vec<Vec<&str>> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.map(|row| row.split(" | ").collect()).collect()
}

#[test]
fn names_are_kebab_case_and_each_its_own() {
    let names: BTreeSet<_> = Fault::ALL.iter().map(|fault| fault.name()).collect();
    assert_eq!(names.len(), Fault::ALL.len());
    for fault in Fault::ALL {
        let is_kebab = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!(fault.name().bytes().all(is_kebab), "{fault:?}");
        assert_eq!(Fault::by_name(fault.name()), Some(*fault));
    }
}

#[test]
fn every_fault_breaks_a_requirement_of_the_specification() {
    let document = read("xks-spec/README.md");
    let known: BTreeSet<_> = rows(&document).into_iter().map(|row| row[0]).collect();
    for fault in Fault::ALL {
        for id in fault.requirements() {
            assert!(known.contains(id), "{}: there is no requirement {id}", fault.name());
        }
    }
}

/// Outside the table, which writes no `Fault::`, each variant has at least one place where it is made.
#[test]
fn every_fault_is_made_somewhere() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut text = String::new();
    for folder in [source.clone(), source.join("operations")] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                text += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric();
    for fault in Fault::ALL {
        let name = format!("Fault::{fault:?}");
        let mut ends = text.match_indices(&name).map(|(start, _)| start + name.len());
        assert!(
            ends.any(|end| !is_letter(&text.as_bytes()[end])),
            "{name} is switched on and nothing changes"
        );
    }
}

/// The document's table is the table of faults, and its count of noticed ones is right.
#[test]
fn the_document_lists_every_fault() {
    let document = read("docs/conformance-faults.md");
    let rows = rows(&document);
    let faults: Vec<_> = rows.iter().filter(|row| row[0].starts_with('`')).collect();
    for (fault, row) in Fault::ALL.iter().zip(&faults) {
        let expected =
            [&*format!("`{}`", fault.name()), fault.description(), &fault.requirements().join(", ")];
        assert_eq!(row[..3], expected);
        assert!(row[3] == "no" || row[3].starts_with("yes: "), "{row:?}");
    }
    assert_eq!(faults.len(), Fault::ALL.len());
    let noticed = faults.iter().filter(|row| row[3] != "no").count();
    let sentence = format!("AWS's client notices {noticed} of {} faults.", faults.len());
    assert!(document.contains(&sentence), "the document does not say: {sentence}");
}
