//! Runs the blocks of commands that say so, as they stand in the documents, in a folder with a SoftHSM2 token and a configuration
//! with the names that the documents use.

use std::path::{Path, PathBuf};
use std::process::Command;

use xks_harness::binary::profile_folder;

use super::markdown::blocks;
use super::{ROOT, read};

/// The documents, so that blocks.rs can see that their blocks are run; with how many each has.
const DOCUMENTS: [(&str, usize); 10] = [
    ("README.md", 1),
    ("docs/audit.md", 1),
    ("docs/configuration.md", 1),
    ("docs/credential-rotation.md", 1),
    ("docs/disaster-recovery.md", 2),
    ("docs/getting-started.md", 3),
    ("docs/hsm/README.md", 1),
    ("docs/key-rotation.md", 2),
    ("docs/reload.md", 2),
    ("docs/runbook.md", 1),
];

/// Before each block. `serve` ends by itself once it has served; `$PID` is a proxy that serves meanwhile; ports are free ones.
const PREAMBLE: &str = r#"
set -eu
xks-proxy() {
  [ "$1" = serve ] || { command xks-proxy "$@"; return; }
  rm -f serve.log
  command xks-proxy "$@" >serve.log &
  local pid=$!
  until grep -qs 'connected to the token' serve.log; do kill -0 "$pid"; sleep 0.1; done
  kill "$pid"
  wait "$pid"
}
curl() { command curl "${@//127.0.0.1:9464/$ADMIN}"; }
rm -f background.log
command xks-proxy serve --config background.toml >background.log &
PID=$!
trap 'kill $PID; wait $PID' EXIT
until grep -qs 'connected to the token' background.log && [ -s audit.log ]; do kill -0 "$PID"; sleep 0.1; done
ADMIN=$(sed -n 's/.*"address":"\([^"]*\)","purpose":"operators".*/\1/p' background.log)
"#;

/// A folder as an operator has one.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    /// With a key that is called `ledger`, or without, where a document makes one.
    fn new(has_ledger: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let setup =
            Command::new(Path::new(ROOT).join("softhsm-setup.sh")).arg(folder.path()).output().unwrap();
        assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
        let desk = Self { folder };
        let config = std::fs::read_to_string(desk.config()).unwrap();
        let config = config
            .replace("127.0.0.1:8443\"", "127.0.0.1:0\"\nlame_duck_secs = 0")
            .replace("127.0.0.1:9464", "127.0.0.1:0")
            .replace("name = \"demo\"", "name = \"payments\"")
            .replace("uri_path_prefix = \"/demo\"\n", "uri_path_prefix = \"/payments\"\n")
            .replace(
                "external_key_id = \"demo-2\"",
                if has_ledger { "external_key_id = \"ledger\"" } else { "external_key_id = \"cards\"" },
            );
        // Keys that are made for tests of what must not work.
        let (before, rest) = config.split_once("# The rest are for tests").unwrap();
        let config = format!("{before}# A prefix {}", rest.split_once("# A prefix ").unwrap().1);
        // Each proxy has an audit file of its own; that of the one in the background is there.
        let with_audit = |name: &str| format!("{config}\n[audit]\npath = \"{name}\"\n");
        std::fs::write(desk.folder.path().join("background.toml"), with_audit("audit.log")).unwrap();
        std::fs::write(desk.config(), with_audit("own-audit.log")).unwrap();
        std::os::unix::fs::symlink(".", desk.folder.path().join(".dev")).unwrap();
        desk
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("xks-proxy.toml")
    }

    /// Runs a block.
    fn run(&self, place: &str, content: &str) {
        let content = content.replace("/etc/xks-proxy/xks-proxy.toml", "xks-proxy.toml");
        let programs = profile_folder();
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display());
        let output = Command::new("bash")
            .args(["-c", &format!("{PREAMBLE}{content}")])
            .current_dir(self.folder.path())
            .env("PATH", path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{place}: {:?}\n{content}\n{text}", output.status);
    }
}

/// Runs what this file runs of a document, from top to bottom on one desk.
fn run_blocks_of(document: &str) {
    let mark = "tests/documents/commands.rs runs this block";
    let found = blocks(&read(document));
    let found: Vec<_> = found.into_iter().filter(|block| block.mark.as_deref() == Some(mark)).collect();
    let (_, expected) = DOCUMENTS.iter().find(|(name, _)| *name == document).unwrap();
    assert_eq!(found.len(), *expected, "blocks of {document}");
    let desk = Desk::new(document != "README.md");
    for block in found {
        desk.run(&format!("{document}:{}", block.line), &block.content);
    }
}

/// Each document on a desk of its own.
macro_rules! documents {
    ($($test:ident: $document:literal;)+) => {
        $(#[test]
        fn $test() {
            run_blocks_of($document);
        })+

        #[test]
        fn each_document_of_the_list_is_run() {
            assert_eq!(DOCUMENTS.map(|(document, _)| document), [$($document),+]);
        }
    };
}

documents! {
    the_readme_can_be_followed: "README.md";
    the_audit_log_can_be_verified: "docs/audit.md";
    configuration_can_be_followed: "docs/configuration.md";
    credential_rotation_can_be_followed: "docs/credential-rotation.md";
    disaster_recovery_can_be_followed: "docs/disaster-recovery.md";
    getting_started_can_be_followed: "docs/getting-started.md";
    the_guide_to_hsms_can_be_followed: "docs/hsm/README.md";
    key_rotation_can_be_followed: "docs/key-rotation.md";
    reload_can_be_followed: "docs/reload.md";
    the_runbook_can_be_followed: "docs/runbook.md";
}

/// A block that is marked as run in a document that is not on the list would never be.
#[test]
fn every_document_with_such_blocks_is_on_the_list() {
    for document in super::documents() {
        let is_marked = read(&document).contains("<!-- tests/documents/commands.rs runs this block -->");
        let is_listed = DOCUMENTS.iter().any(|(name, _)| *name == document);
        // CONTRIBUTING.md explains the mark.
        assert!(is_marked == is_listed || document == "CONTRIBUTING.md", "{document}");
    }
}
