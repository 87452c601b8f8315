//! What tests install from package registries: clients of KMS, kept under cargo's own folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use xks_harness::binary::profile_folder;

/// Clients, and the lists of what they want.
pub(crate) fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// A folder for what clients install, under cargo's own; the lock holds off other test processes.
pub(crate) fn installed(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let folder = profile_folder().join("mock-kms-clients");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let place = folder.join(name);
    let is_done = place.join("installed");
    if !is_done.exists() {
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir_all(&place).unwrap();
        install(&place);
        File::create(is_done).unwrap();
    }
    place
}

/// The programs of a Python environment with pinned packages.
pub(crate) fn python_environment(requirements: &str) -> PathBuf {
    let file = clients().join(requirements);
    // Other versions are another environment.
    let content = std::fs::read(&file).unwrap();
    let digest = mock_kms::kms::name::hex(
        &aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &content).as_ref()[..8],
    );
    let environment = installed(&format!("python-{digest}"), |place| {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(place));
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        succeed(Command::new(place.join("bin/python")).args(pip).arg(&file));
    });
    environment.join("bin")
}

pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}:\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}
