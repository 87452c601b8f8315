//! Where cargo put the workspace's programs and libraries.

use std::path::PathBuf;

/// The folder of the profile that the running test was built for, such as `target/debug`.
#[must_use]
pub fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap();
    // Tests are in deps; programs are beside it.
    if folder.ends_with("deps") { folder.parent().unwrap().to_owned() } else { folder.to_owned() }
}

/// A program of the workspace.
///
/// # Panics
/// If it has not been built: `cargo test --workspace` builds all; for a part, run `cargo build --workspace` before.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = profile_folder().join(name);
    assert!(path.is_file(), "{} is not there: run `cargo build --workspace` first", path.display());
    path
}

/// A shared library of the workspace, such as `pkcs11_fault`.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn library(name: &str) -> PathBuf {
    let file = format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let folder = profile_folder();
    let found = [folder.join("deps").join(&file), folder.join(&file)].into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{file} is not built: run `cargo build --workspace` first"))
}
