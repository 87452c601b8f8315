//! Writes the commit into the binary: a report is cited by it.

use std::process::Command;

fn main() {
    // Set where there is no checkout, such as in an image's build.
    println!("cargo::rerun-if-env-changed=XKS_CONFORMANCE_COMMIT");
    let given = std::env::var("XKS_CONFORMANCE_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(of_checkout).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=XKS_CONFORMANCE_COMMIT={commit}");
}

fn of_checkout() -> Option<String> {
    for watched in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", watched])?;
        if std::fs::exists(&path).unwrap_or(false) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    for folder in ["src", "data", "../../xks-spec/src", "../mock-kms/src", "../load/src"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let is_clean = Command::new("git").args(["diff", "--quiet", "HEAD"]).status().ok()?.success();
    Some(if is_clean { commit } else { format!("{commit}-changed") })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
