//! What the documents say is so: their commands run, their links lead somewhere, their TOML is configuration, and what is written
//! from the source is as the source says. CONTRIBUTING.md has the rules for who writes them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod blocks;
mod commands;
mod generated;
mod links;
mod markdown;
mod monitoring;
mod runbook;

use std::path::{Path, PathBuf};

/// The repository.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The text of a file of the repository.
fn read(path: &str) -> String {
    let path = Path::new(ROOT).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a folder of the repository with one of these endings, by their paths in it.
fn files(folder: &str, endings: &[&str]) -> Vec<String> {
    fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && name != "node_modules" && !name.starts_with('.') {
                collect(&path, files);
            } else if path.is_file() {
                files.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&Path::new(ROOT).join(folder), &mut found);
    let in_repository = |path: PathBuf| path.strip_prefix(ROOT).unwrap().to_string_lossy().into_owned();
    let mut found: Vec<_> = found.into_iter().map(in_repository).collect();
    found.retain(|path| endings.iter().any(|ending| path.ends_with(ending)));
    found.sort();
    found
}

/// Every document, by its path in the repository.
fn documents() -> Vec<String> {
    files("", &[".md"])
}
