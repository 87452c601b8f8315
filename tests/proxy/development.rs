//! The README's way from nothing to a round trip: `softhsm-setup.sh`, `serve`, curl.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use xks_harness::binary::program;
use xks_harness::document::blocks_run_by;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The proxy that serves what the script made, on ports that are free.
struct Development {
    folder: tempfile::TempDir,
    child: Child,
    host: String,
}

impl Development {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        run_script(folder.path());
        let config = folder.path().join("xks-proxy.toml");
        let text = fs::read_to_string(&config).unwrap();
        let text = text.replace("127.0.0.1:8443", "127.0.0.1:0").replace("127.0.0.1:9464", "127.0.0.1:0");
        fs::write(&config, text).unwrap();
        let mut child = Command::new(program("xks-proxy"))
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut host = None;
        let mut admin = None;
        for line in lines.map_while(Result::ok) {
            let line: Value = serde_json::from_str(&line).unwrap();
            let port = || line["address"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
            match line["purpose"].as_str() {
                Some("KMS") => host = Some(format!("localhost:{}", port())),
                Some("operators") => admin = Some(port()),
                _ => {}
            }
            // The first probe has ended by then.
            if line["message"] == "connected to the token" {
                break;
            }
        }
        assert!(admin.is_some());
        Self { folder, child, host: host.unwrap() }
    }

    /// Runs shell commands with the script's variables, the host being the one that really listens.
    fn shell(&self, commands: &str) -> String {
        let commands = format!("set -eu\nreadonly XKS_PROXY_HOST={}\n{commands}", self.host);
        let commands = commands.replace(". .dev/env", "eval \"$(grep -v XKS_PROXY_HOST= .dev/env)\"");
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(self.folder.path(), root.path().join(".dev")).unwrap();
        let output = Command::new("bash").arg("-c").arg(&commands).current_dir(root.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}\n{commands}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Development {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run_script(folder: &Path) -> String {
    let output = Command::new(Path::new(ROOT).join("softhsm-setup.sh")).arg(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The README's block of commands behind a marker.
fn readme_block() -> String {
    blocks_run_by("tests/proxy/development.rs", ("README.md", 1)).remove(0)
}

#[test]
fn the_round_trip_of_the_readme_gives_the_plaintext_back() {
    let development = Development::start();
    let output = development.shell(&readme_block());
    let answers: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(answers[0]["ciphertext"].is_string(), "{output}");
    assert_eq!(answers[1]["plaintext"], "SGVsbG8gV29ybGQh");
    let more = format!(
        "{}\nxks health \"{{$metadata}}\"; xks \"keys/$KEY_ID/metadata\" \"{{$metadata}}\"",
        readme_block()
    );
    let output = development.shell(&more);
    let answers: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers[2]["ekmFleetDetails"][0]["healthStatus"], "ACTIVE");
    assert_eq!(answers[3]["keySpec"], "AES_256");
}

#[test]
fn the_script_may_run_again_and_changes_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    run_script(folder.path());
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    let names =
        ["pin", "so-pin", "demo.secret", "other.secret", "demo.id", "env", "xks-proxy.toml", "tls/ca.pem"];
    let before: Vec<_> = names.iter().map(|name| read(name)).collect();
    run_script(folder.path());
    let after: Vec<_> = names.iter().map(|name| read(name)).collect();
    assert!(before == after, "a second run changed something");
}

#[test]
fn what_the_script_makes_passes_check() {
    let folder = tempfile::tempdir().unwrap();
    run_script(folder.path());
    let config = folder.path().join("xks-proxy.toml");
    let output =
        Command::new(program("xks-proxy")).arg("check").arg("--config").arg(config).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("0 faults, 7 notices"), "{text}");
}

/// The file that AWS's own curl client reads.
#[test]
fn the_env_file_exports_what_clients_need() {
    let folder = tempfile::tempdir().unwrap();
    run_script(folder.path());
    let env = folder.path().join("env");
    for name in [
        "XKS_PROXY_HOST",
        "URI_PREFIX",
        "SIGV4_ACCESS_KEY_ID",
        "SIGV4_SECRET_ACCESS_KEY",
        "REGION",
        "KEY_ID",
        "ENCRYPT_ONLY_KEY_ID",
        "DECRYPT_ONLY_KEY_ID",
        "IMPOTENT_KEY_ID",
        "CURL_CA_BUNDLE",
        "KEY_ID_2",
        "AES_128_KEY_ID",
        "OTHER_URI_PREFIX",
        "OTHER_SIGV4_ACCESS_KEY_ID",
        "OTHER_SIGV4_SECRET_ACCESS_KEY",
        "SOFTHSM2_CONF",
    ] {
        let command = format!(". '{}' && sh -c 'test -n \"${name}\"'", env.display());
        assert!(Command::new("sh").arg("-c").arg(command).status().unwrap().success(), "{name}");
    }
}
