//! The table of layers in docs/architecture.md holds: a module imports only from rows above its own.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Module → row, from the table in docs/architecture.md.
fn rows() -> BTreeMap<String, usize> {
    let document = fs::read_to_string(Path::new(ROOT).join("docs/architecture.md")).unwrap();
    let (_, section) = document.split_once("## Layers of `src/`").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut rows = BTreeMap::new();
    for line in section.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, row, modules, ..] = cells.as_slice() else { continue };
        let Ok(row) = row.parse() else { continue };
        for module in modules.split(',') {
            rows.insert(module.trim().trim_matches('`').to_owned(), row);
        }
    }
    rows
}

/// The source files of each module of src/.
fn modules() -> BTreeMap<String, Vec<PathBuf>> {
    let mut modules = BTreeMap::new();
    for entry in fs::read_dir(Path::new(ROOT).join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "lib" || name == "main" {
            continue;
        }
        let mut files = Vec::new();
        collect(&path, &mut files);
        modules.insert(name, files);
    }
    modules
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), files);
        }
    } else {
        files.push(path.to_owned());
    }
}

/// The modules that a source text names after `crate::`, in `use` trees as well as in paths.
fn imports(source: &str) -> Vec<String> {
    let mut imports = Vec::new();
    for (at, _) in source.match_indices("crate::") {
        // `xks_crate::` and the like are other words.
        if source[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let rest = &source[at + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(tree) => tree.split('}').next().unwrap().split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let end = |c: char| !(c.is_alphanumeric() || c == '_');
            imports.push(name.trim().split(end).next().unwrap().to_owned());
        }
    }
    imports
}

#[test]
fn every_module_is_in_the_table_and_imports_only_from_rows_above() {
    let rows = rows();
    let modules = modules();
    assert_eq!(rows.keys().collect::<Vec<_>>(), modules.keys().collect::<Vec<_>>(), "table and src/ differ");
    let mut violations = Vec::new();
    for (module, files) in &modules {
        for file in files {
            for import in imports(&fs::read_to_string(file).unwrap()) {
                if import != *module && rows.get(&import).is_none_or(|row| *row >= rows[module]) {
                    violations.push(format!("{} imports {import}", file.display()));
                }
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn imports_are_found_in_every_form() {
    let source = "use crate::hsm::Token;\nuse crate::{clock, tls::Config};\nfn f() { crate::error::g(); my_crate::no() }";
    assert_eq!(imports(source), ["hsm", "clock", "tls", "error"]);
}

/// `unsafe` is where docs/architecture.md says and nowhere else.
#[test]
fn unsafe_code_is_in_two_modules() {
    let allowed = ["src/hsm/gcm.rs", "src/wiping_allocator.rs"].map(|file| Path::new(ROOT).join(file));
    for file in modules().into_values().flatten() {
        let source = fs::read_to_string(&file).unwrap();
        assert!(!source.contains("allow(unsafe_code") || allowed.contains(&file), "{}", file.display());
    }
}

/// Client-side crates do not share code with the proxy: a shared verifier would hide a shared bug.
#[test]
fn test_crates_do_not_depend_on_the_proxy() {
    for entry in fs::read_dir(Path::new(ROOT).join("tests")).unwrap() {
        let manifest = entry.unwrap().path().join("Cargo.toml");
        let Ok(text) = fs::read_to_string(&manifest) else { continue };
        assert!(!text.lines().any(|line| line.starts_with("xks-proxy")), "{}", manifest.display());
    }
}
