//! Blocks of commands that tests run as they stand in a document.

use std::path::Path;

/// The blocks of a document that are marked as run by `file`. `(document, count)` is the document, by
/// its path in the repository, and how many of them it has; `tests/documents` holds that against the marks.
///
/// # Panics
/// If there are more or fewer.
#[must_use]
pub fn blocks_run_by(file: &str, (document, count): (&str, usize)) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../documents/block");
    let block = |number: usize| {
        let arguments = [file, document, &count.to_string(), &number.to_string()];
        let output = std::process::Command::new(&script).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    (1..=count).map(block).collect()
}
