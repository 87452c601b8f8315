//! The table of requirements in xks-spec/README.md agrees with the `// SPEC(…)` comments and the tests.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

struct Row {
    id: String,
    level: String,
    binds: String,
    enforced: String,
    tests: String,
}

fn rows() -> Vec<Row> {
    let table = fs::read_to_string(Path::new(ROOT).join("xks-spec/README.md")).unwrap();
    let mut rows = Vec::new();
    for line in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| id ")) {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
        let [_, id, level, binds, _, enforced, tests, _] = <[String; 8]>::try_from(cells).unwrap();
        rows.push(Row { id, level, binds, enforced, tests });
    }
    rows
}

fn rust_files(folders: &[&str]) -> Vec<PathBuf> {
    fn collect(path: &Path, files: &mut Vec<PathBuf>) {
        if path.is_dir() {
            fs::read_dir(path).unwrap().for_each(|entry| collect(&entry.unwrap().path(), files));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path.to_owned());
        }
    }
    let mut files = Vec::new();
    folders.iter().for_each(|folder| collect(&Path::new(ROOT).join(folder), &mut files));
    files
}

/// The requirement ids in a file's comments; one comment may name several and run over lines.
fn spec_ids(source: &str) -> BTreeSet<String> {
    let comments: Vec<_> =
        source.lines().filter_map(|line| line.trim_start().strip_prefix("//")).map(str::trim).collect();
    let text = comments.join(" ");
    let lists = text.split("SPEC(").skip(1).map(|rest| rest.split(')').next().unwrap());
    lists.flat_map(|list| list.split(',')).map(|id| id.trim().to_owned()).collect()
}

fn enforced_in_code() -> BTreeMap<String, BTreeSet<String>> {
    let mut enforced: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in rust_files(&["src", "xks-spec/src"]) {
        let name = file.strip_prefix(ROOT).unwrap().display().to_string();
        for id in spec_ids(&fs::read_to_string(&file).unwrap()) {
            enforced.entry(id).or_default().insert(name.clone());
        }
    }
    enforced
}

fn list(cell: &str) -> BTreeSet<String> {
    cell.split(',').map(|item| item.trim().to_owned()).collect()
}

#[test]
fn the_table_is_well_formed() {
    let rows = rows();
    assert!(rows.len() > 150, "{} rows", rows.len());
    let ids: BTreeSet<_> = rows.iter().map(|row| &row.id).collect();
    assert_eq!(ids.len(), rows.len(), "an id stands twice");
    for row in &rows {
        assert!(["MUST", "SHOULD", "MAY"].contains(&row.level.as_str()), "{}", row.id);
        assert!(["proxy", "kms", "customer", "key manager"].contains(&row.binds.as_str()), "{}", row.id);
    }
}

#[test]
fn every_requirement_is_enforced_where_the_table_says() {
    let enforced = enforced_in_code();
    for row in rows() {
        match enforced.get(&row.id) {
            Some(files) => assert_eq!(list(&row.enforced), *files, "{}", row.id),
            // No code: the cell says why.
            None => assert!(!row.enforced.is_empty() && !row.enforced.contains(".rs"), "{}", row.id),
        }
    }
    let known: BTreeSet<_> = rows().into_iter().map(|row| row.id).collect();
    let unknown: Vec<_> = enforced.keys().filter(|id| !known.contains(*id)).collect();
    assert!(unknown.is_empty(), "not in the table: {unknown:?}");
}

#[test]
fn every_test_of_the_table_exists() {
    let sources: String = rust_files(&["src", "tests", "xks-spec"])
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    for row in rows() {
        for test in list(&row.tests).iter().filter(|test| *test != "-") {
            assert!(sources.contains(&format!("fn {test}(")), "{}: there is no test {test}", row.id);
        }
    }
}

/// What binds the proxy and is enforced is tested.
#[test]
fn what_the_code_enforces_a_test_checks() {
    let untested: Vec<_> = rows()
        .into_iter()
        .filter(|row| row.binds == "proxy" && row.enforced.contains(".rs") && row.tests == "-")
        .map(|row| row.id)
        .collect();
    assert!(untested.is_empty(), "{untested:?}");
}
