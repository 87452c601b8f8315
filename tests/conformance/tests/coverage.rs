//! Every requirement that binds the proxy is checked by a case, or stands on the list of those that are not, with a reason;
//! and no case is stricter than its source.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use xks_conformance::case::Level;
use xks_conformance::cases;
use xks_conformance::coverage::NOT_CHECKED;

struct Row {
    level: String,
    binds: String,
}

fn rows() -> BTreeMap<String, Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xks-spec/README.md");
    let table = fs::read_to_string(path).unwrap();
    let lines = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| id "));
    lines
        .map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            (cells[1].to_owned(), Row { level: cells[2].to_owned(), binds: cells[3].to_owned() })
        })
        .collect()
}

fn cited() -> BTreeSet<&'static str> {
    cases::all().into_iter().flat_map(|case| case.requirements).collect()
}

#[test]
fn every_requirement_of_the_proxy_is_checked_or_has_a_reason_why_not() {
    let (cited, excused): (_, BTreeSet<_>) = (cited(), NOT_CHECKED.iter().map(|(id, _)| *id).collect());
    let missing: Vec<_> = rows()
        .into_iter()
        .filter(|(id, row)| {
            row.binds == "proxy" && !cited.contains(id.as_str()) && !excused.contains(id.as_str())
        })
        .map(|(id, _)| id)
        .collect();
    assert!(missing.is_empty(), "neither a case nor a reason: {missing:?}");
    let both: Vec<_> = cited.intersection(&excused).collect();
    assert!(both.is_empty(), "checked, and excused all the same: {both:?}");
}

#[test]
fn every_id_is_one_of_the_table_and_every_case_has_its_own() {
    let rows = rows();
    assert!(rows.len() > 300);
    let excused = NOT_CHECKED.iter().map(|(id, _)| *id);
    let unknown: Vec<_> = cited().into_iter().chain(excused).filter(|id| !rows.contains_key(*id)).collect();
    assert!(unknown.is_empty(), "not in the table: {unknown:?}");
    let all = cases::all();
    let ids: BTreeSet<_> = all.iter().map(|case| &case.id).collect();
    assert_eq!(ids.len(), all.len(), "an id stands twice");
    assert!(all.len() > 150, "{} cases", all.len());
}

/// What is our own choice is never a MUST for others.
#[test]
fn no_case_is_stricter_than_its_source() {
    let rows = rows();
    for case in cases::all().iter().filter(|case| case.level != Level::May) {
        let has = |level: &str| case.requirements.iter().any(|id| rows[*id].level == level);
        let is_backed = match case.level {
            Level::Must => has("MUST") || !case.source.is_empty(),
            _ => !case.requirements.is_empty() || !case.source.is_empty(),
        };
        assert!(is_backed, "{} is a {} without one", case.id, case.level.name());
    }
}
