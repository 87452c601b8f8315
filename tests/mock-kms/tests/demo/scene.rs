//! Development folders and running demos.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xks_harness::binary::program;

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The proxy's deadlines, out of the way.
const PATIENT_PROXY: &[u8] = b"[server.timeouts]\nanswer_ms = 30000\nfirst_answer_ms = 30000\n";

/// `mock-kms demo` in `folder`, with the real proxy.
pub(crate) fn demo(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mock-kms"));
    command.arg("demo").arg("--dir").arg(folder).arg("--proxy").arg(program("xks-proxy"));
    // A busy machine is not what these tests are about.
    command.args(["--proxy-timeout-ms", "30000"]);
    command.env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

/// A development folder for all tests that do not change it.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(new_folder).path()
}

/// A development folder of one's own.
pub(crate) fn new_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../softhsm-setup.sh");
    let output = Command::new(script).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let configuration = OpenOptions::new().append(true).open(folder.path().join("xks-proxy.toml"));
    configuration.unwrap().write_all(PATIENT_PROXY).unwrap();
    folder
}

/// What is in a folder, sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A demo that keeps running; killed when dropped.
pub(crate) struct Running {
    child: Child,
    // Open to the end: a closed pipe would stop the demo.
    _lines: Lines<BufReader<ChildStdout>>,
    /// All that it printed.
    pub(crate) output: String,
    /// Where the KMS is.
    pub(crate) url: String,
}

impl Running {
    /// Starts a demo in `folder` and waits until it has told its story.
    pub(crate) fn start(folder: &Path) -> Self {
        let mut child = demo(folder).arg("--keep-running").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut output = String::new();
        // The last line to paste ends what it prints.
        while !output.contains(r#""KeyId": "alias/demo"}'"#) {
            output += &lines.next().unwrap_or_else(|| panic!("the demo ended\n{output}")).unwrap();
            output.push('\n');
        }
        let start = output.find("http://127.0.0.1:").unwrap();
        let url: String = output[start..].chars().take_while(|c| !c.is_whitespace() && *c != ',').collect();
        Self { child, _lines: lines, output, url }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The lines to paste from `# once in a shell` and from `heading` on.
    pub(crate) fn paste(&self, heading: &str) -> String {
        let section = |heading: &str| {
            let lines = self.output.lines().skip_while(|line| *line != heading).skip(1);
            lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
        };
        format!("{}\n{}\n", section("# once in a shell"), section(heading))
    }

    /// Runs shell commands that must succeed.
    pub(crate) fn shell(commands: &str) -> String {
        let output: Output = Command::new("bash").arg("-euc").arg(commands).output().unwrap();
        assert!(output.status.success(), "{}\n{commands}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn interrupt(mut self) -> ExitStatus {
        assert!(
            Command::new("kill").args(["-s", "INT", &self.pid().to_string()]).status().unwrap().success()
        );
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not SIGKILL at first: the proxy is the demo's to end.
        let _ =
            Command::new("kill").args(["-s", "INT", &self.pid().to_string()]).stderr(Stdio::null()).status();
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
    }
}
