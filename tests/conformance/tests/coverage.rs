//! Every requirement that binds the proxy is checked by a case, or stands on the list of those that are not, with a reason;
//! and no case is stricter than its source.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use xks_conformance::case::{Case, Level};
use xks_conformance::cases;
use xks_conformance::coverage::NOT_CHECKED;
use xks_conformance::run::Profile;
use xks_conformance::target::Need;
use xks_saboteur::Fault;

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
    let rows = rows();
    let idle: Vec<_> = excused.iter().filter(|id| rows[**id].binds != "proxy").collect();
    assert!(idle.is_empty(), "excused, though they do not bind the proxy: {idle:?}");
    assert_eq!(excused.len(), NOT_CHECKED.len(), "an id is excused twice");
    assert!(NOT_CHECKED.iter().all(|(_, reason)| reason.len() > 10), "an excuse without a reason");
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
    // A report has one table a section.
    let mut sections: Vec<_> = all.iter().map(|case| case.section).collect();
    sections.dedup();
    let different: BTreeSet<_> = sections.iter().collect();
    assert_eq!(different.len(), sections.len(), "a section stands in two places: {sections:?}");
}

/// What is our own choice is never a MUST for others: the first requirement, which the case is about, has its weight at
/// least, or another source has.
#[test]
fn no_case_is_stricter_than_its_source() {
    let rows = rows();
    let level_of = |id: &str| match rows[id].level.as_str() {
        "MUST" => Level::Must,
        "SHOULD" => Level::Should,
        _ => Level::May,
    };
    let is_backed = |case: &Case| {
        let first = case.requirements.first();
        !case.source.is_empty() || first.is_some_and(|id| level_of(id) >= case.level)
    };
    let all = cases::all();
    let strict = all.iter().filter(|case| case.level != Level::May && !is_backed(case));
    let strict: Vec<_> = strict.map(|case| format!("{} is a {}", case.id, case.level.name())).collect();
    assert_eq!(strict, [""; 0], "stricter than the first requirement");
}

/// The numbers that the document gives are those of the code.
#[test]
fn the_document_counts_right() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md");
    let document = fs::read_to_string(path).unwrap();
    let all = cases::all();
    let count = |profile: Profile| all.iter().filter(|case| profile.has(case)).count();
    let faults = Fault::ALL.len();
    let rows = [
        format!("| `must` | {} |", count(Profile::Must)),
        format!("| `should` | {} |", count(Profile::Should)),
        format!("| `full` | {} |", count(Profile::Full)),
        format!("| client | faults noticed, of the {faults} of"),
        format!("| this suite | {faults} |"),
    ];
    let missing: Vec<_> = rows.iter().filter(|row| !document.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "the document does not say: {missing:#?}");
    // Each flag that the document names is one, and each declaration is named.
    for need in Need::ALL {
        assert!(document.contains(need.declaration()), "the document does not name {}", need.declaration());
    }
}
