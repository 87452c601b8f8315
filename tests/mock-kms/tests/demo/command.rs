//! What the command shows, leaves behind and exits with.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;
use xks_harness::binary::program;

use crate::installed::python_environment;
use crate::scene::{Running, demo, files, folder, new_folder, text};

#[test]
fn it_proves_the_round_trip() {
    let own = new_folder();
    let before = files(own.path());
    let output = demo(own.path()).output().unwrap();
    let shown = text(&output.stdout);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{shown}");
    for line in [
        "   ConnectCustomKeyStore      CONNECTING → CONNECTED",
        "   in another context         KMSInvalidStateException",
        "   Decrypt                    KMSInvalidStateException",
        "   DescribeKey                Enabled: the KMS key's state is its own",
        " ✓ a file was encrypted and decrypted byte for byte, its key wrapped by KMS and then by the HSM",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is missing in\n{shown}");
    }
    assert!(shown.contains("   encrypted by KMS              60 bytes  "), "{shown}");
    assert!(shown.lines().last().unwrap().contains("calls to the proxy, the slowest took"), "{shown}");
    assert!(!shown.contains('\x1b'), "no colours where there is no terminal");
    assert_eq!(files(own.path()), before, "nothing is left behind");
}

#[test]
fn colours_come_on_demand() {
    let output = demo(folder()).args(["--color", "always"]).output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("\x1b[32m✓\x1b[0m"));
}

#[test]
fn it_makes_the_folder_where_there_is_none() {
    let parent = tempfile::tempdir().unwrap();
    let output = demo(&parent.path().join("new")).output().unwrap();
    let shown = text(&output.stdout);
    // Its proxy keeps the usual deadlines, which a busy machine may miss.
    assert_ne!(output.status.code(), Some(2), "{}\n{shown}", text(&output.stderr));
    assert!(shown.contains(", made just now"), "{shown}");
    assert!(parent.path().join("new/xks-proxy.toml").is_file());
}

#[test]
fn it_encrypts_the_file_that_it_is_given() {
    let file = folder().join("tls/ca.pem");
    let bytes = fs::metadata(&file).unwrap().len();
    let output = demo(folder()).arg("--file").arg(&file).output().unwrap();
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}\n{shown}", text(&output.stderr));
    assert!(
        shown.contains(&format!("   the file again             {bytes:>5} bytes  2d2d2d2d2d424547494e")),
        "{shown}"
    );
    let output = demo(folder()).args(["--file", "/nowhere/to/be/found"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// A proxy that goes on decrypting under a disabled key must not pass for a good one.
#[test]
fn a_proxy_that_ignores_a_disabled_key_is_found_out() {
    let own = new_folder();
    let wrapper = own.path().join("stubborn-proxy");
    let script = format!(
        "#!/bin/sh\nsed -i 's/enabled = false/enabled = true/' \"$3\"\nexec {} \"$@\"\n",
        program("xks-proxy").display()
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mock-kms"));
    let output =
        command.args(["demo", "--dir"]).arg(own.path()).arg("--proxy").arg(&wrapper).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("not proven: Decrypt succeeded, which it must not"), "{error}");
    assert!(!text(&output.stdout).contains('✓'));
}

#[test]
fn what_cannot_be_set_up_says_so() {
    let own = new_folder();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mock-kms"));
    let output = command.args(["demo", "--proxy", "/bin/false", "--dir"]).arg(own.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("the proxy ended"), "{}", text(&output.stderr));
    let configuration = own.path().join("xks-proxy.toml");
    for content in ["secret = s3cret s3cret", "[server]"] {
        fs::write(&configuration, content).unwrap();
        let output = demo(own.path()).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("xks-proxy.toml: ") && !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn it_keeps_running_and_its_lines_can_be_pasted() {
    let running = Running::start(folder());
    let described: Value = serde_json::from_str(&Running::shell(&running.paste("# curl"))).unwrap();
    assert_eq!(described["KeyMetadata"]["Origin"], "EXTERNAL_KEY_STORE");
    let children = || {
        let output = Command::new("pgrep").args(["-P", &running.pid().to_string()]).output().unwrap();
        text(&output.stdout).trim().to_owned()
    };
    let proxy = children();
    assert!(!proxy.is_empty() && !proxy.contains('\n'), "one proxy: {proxy:?}");
    assert_eq!(running.interrupt().code(), Some(0));
    assert!(
        !Command::new("kill").args(["-0", &proxy]).output().unwrap().status.success(),
        "the proxy has ended"
    );
}

/// Clients that are older than `AWS_ENDPOINT_URL_KMS` would ask AWS. Of the newer ones, the first variable makes the same.
#[test]
fn its_lines_for_aws_cli_and_boto3_are_for_every_version() {
    let running = Running::start(folder());
    let programs = python_environment("requirements.txt");
    let environment = format!(
        "export AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true AWS_CONFIG_FILE=/dev/null AWS_MAX_ATTEMPTS=1 AWS_PAGER=
         export AWS_DEFAULT_OUTPUT=text AWS_EC2_METADATA_DISABLED=true PATH={}:$PATH\n",
        programs.display()
    );
    let shell = |heading: &str| Running::shell(&format!("{environment}{}", running.paste(heading)));
    let shown = shell("# aws-cli");
    assert!(shown.contains("EXTERNAL_KEY_STORE") && shown.contains(":key/"), "{shown}");
    let shown = shell("# boto3");
    assert!(shown.contains("Hello World!"), "{shown}");
}
