//! Every test that docs/threat-model.md names exists, and every line of defence has one.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn sources(path: &Path, text: &mut String) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| sources(&entry.unwrap().path(), text));
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        text.push_str(&fs::read_to_string(path).unwrap());
    }
}

/// The last cells of the rows of tables whose last column is "shown by".
fn evidence(document: &str) -> Vec<String> {
    let mut cells = Vec::new();
    let mut is_evidence = false;
    for line in document.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            is_evidence = false;
            continue;
        };
        let last = row.rsplit('|').next().unwrap().trim();
        match last {
            "shown by" => is_evidence = true,
            _ if is_evidence && !last.starts_with("---") => cells.push(last.to_owned()),
            _ => {}
        }
    }
    cells
}

#[test]
fn every_defence_names_tests_that_exist() {
    let document = fs::read_to_string(Path::new(ROOT).join("docs/threat-model.md")).unwrap();
    let mut text = String::new();
    ["src", "tests", "xks-spec"].iter().for_each(|folder| sources(&Path::new(ROOT).join(folder), &mut text));
    let cells = evidence(&document);
    assert!(cells.len() > 30, "{} defences", cells.len());
    for cell in cells {
        let names: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty() || cell.contains("(#what-is-not-promised)"), "no test: {cell}");
        for name in names {
            let is_test = ["#[test]\n", "#[tokio::test]\n", ")]\n"].iter().any(|attribute| {
                ["", "async "].iter().any(|kind| {
                    ["", "    "]
                        .iter()
                        .any(|indent| text.contains(&format!("{attribute}{indent}{kind}fn {name}()")))
                })
            });
            assert!(is_test, "there is no test {name}");
        }
    }
}
