//! Commands, their exit codes, and what they say to a person.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use serde_json::Value;
use xks_harness::binary::program;
use xks_harness::{Proxy, Setup, SoftHsm};
use xks_spec::credential::{AccessKeyId, SecretAccessKey};

fn xks_proxy(arguments: &[&str]) -> Output {
    Command::new(program("xks-proxy")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_command_explains_itself() {
    for (command, words) in [
        (&["--help"][..], &["serve", "check", "keys", "credentials"][..]),
        (&["keys", "--help"], &["list", "create", "rotate", "check"]),
        (&["keys", "create", "--help"], &["--store", "--token", "--key", "--label", "never overwritten"]),
        (&["keys", "rotate", "--help"], &["Step 1", "Step 2", "key_rule"]),
        (&["keys", "check", "--help"], &["Exit code", "check value"]),
        (&["serve", "--help"], &["SIGTERM", "--config", "lame_duck_secs", "--force-login", "exits with 75"]),
        (&["check", "--help"], &["Exit code", "all faults at once", "--force-login"]),
        (&["doctor", "--help"], &["--force-login"]),
        (
            &["credentials", "new", "--help"],
            &["--path-prefix", "console-json", "cli-input-json", "toml", "--dir"],
        ),
    ] {
        let output = xks_proxy(command);
        assert!(output.status.success());
        // However the lines are wrapped.
        let text = stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(text.contains(word), "{command:?} does not mention {word}:\n{text}");
        }
    }
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    assert_eq!(xks_proxy(&["serve"]).status.code(), Some(2));
    assert_eq!(xks_proxy(&["credentials", "new", "--path-prefix", "no-slash"]).status.code(), Some(2));
}

#[test]
fn credentials_come_in_the_three_forms() {
    let stanza = stdout(&xks_proxy(&["credentials", "new", "--path-prefix", "/a/b"]));
    let value = |name: &str| {
        stanza.split_once(&format!("{name} = \"")).unwrap().1.split_once('"').unwrap().0.to_owned()
    };
    AccessKeyId::parse(&value("access_key_id")).unwrap();
    SecretAccessKey::parse(&value("secret_access_key")).unwrap();

    let output = xks_proxy(&["credentials", "new", "--path-prefix", "/a/b", "--format", "console-json"]);
    let console: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(console["XksProxyUriPath"], "/a/b/kms/xks/v1");
    check_credential(&console["XksProxyAuthenticationCredential"]);
    assert_eq!(console.as_object().unwrap().len(), 2);

    let output = xks_proxy(&["credentials", "new", "--path-prefix", "", "--format", "cli-input-json"]);
    let input: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(input["XksProxyUriPath"], "/kms/xks/v1");
    assert_eq!(input["CustomKeyStoreType"], "EXTERNAL_KEY_STORE");
    assert_eq!(input["XksProxyConnectivity"], "PUBLIC_ENDPOINT");
    check_credential(&input["XksProxyAuthenticationCredential"]);
}

fn check_credential(credential: &Value) {
    AccessKeyId::parse(credential["AccessKeyId"].as_str().unwrap()).unwrap();
    SecretAccessKey::parse(credential["RawSecretAccessKey"].as_str().unwrap()).unwrap();
}

#[test]
fn a_folder_gets_one_credential_in_all_forms_for_its_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("new");
    let arguments = ["credentials", "new", "--path-prefix", "/p", "--dir", dir.to_str().unwrap()];
    let output = xks_proxy(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let console: Value = serde_json::from_str(&read("console.json")).unwrap();
    let input: Value = serde_json::from_str(&read("cli-input.json")).unwrap();
    let credential = &console["XksProxyAuthenticationCredential"];
    assert_eq!(*credential, input["XksProxyAuthenticationCredential"]);
    let secret = credential["RawSecretAccessKey"].as_str().unwrap();
    assert!(read("credentials.toml").contains(secret));
    assert!(read("credentials.toml").contains("\ncreated = \"20"), "it says when it was made");
    assert!(!stdout(&output).contains(secret), "the secret is in the files alone");
    for name in ["credentials.toml", "console.json", "cli-input.json"] {
        let mode = fs::metadata(dir.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let again = xks_proxy(&arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("credentials.toml"), "{}", stderr(&again));
    assert!(read("credentials.toml").contains(secret), "nothing is overwritten");
}

#[test]
fn credentials_never_repeat() {
    let make = || stdout(&xks_proxy(&["credentials", "new", "--path-prefix", ""]));
    assert_ne!(make(), make());
}

#[test]
fn a_faulty_configuration_exits_with_2_and_says_all() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("faulty.toml");
    fs::write(&config, "[server]\nlisten = \"nowhere\"\n[log]\nlevel = 7\n").unwrap();
    for command in ["serve", "check"] {
        let output = xks_proxy(&[command, "--config", config.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        for expected in [
            "line 2 column 10: server.listen: must be an address and a port",
            "server: certificates is missing",
            "line 4 column 9: log.level: must be a string",
            "tokens is missing",
            "stores is missing",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }
}

#[test]
fn check_notices_what_every_user_of_the_machine_can_read_or_change() {
    let (folder, token) = (tempfile::tempdir_in("/tmp").unwrap(), SoftHsm::with_keys());
    let mode = |name: &str, mode| {
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let [audit, state] = ["audit", "state"].map(|name| {
        fs::create_dir(folder.path().join(name)).unwrap();
        folder.path().join(name)
    });
    for (name, content) in
        [("pin", "test-pin-1234"), ("policies.cedar", "@id(\"a\") permit(principal, action, resource);")]
    {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let setup = Setup {
        pin: "pin = { file = \"pin\" }".to_owned(),
        authorization: "authorization = \"cedar\"\npolicies = [\"policies.cedar\"]".to_owned(),
        more: format!("[audit]\npath = {:?}\n[state]\ndir = {state:?}\n", audit.join("audit.log")),
        ..Setup::default()
    };
    let config = setup.write(folder.path(), &token);
    let notices = || {
        let text = stdout(&xks_proxy(&["check", "--config", config.to_str().unwrap()]));
        let about_files =
            |line: &&str| line.starts_with("notice") && line.contains("every user of this machine");
        text.lines().filter(about_files).map(str::to_owned).collect::<Vec<_>>()
    };
    let secrets = ["ecdsa.key", "pin", "rsa.key", "xks-proxy.toml"];
    // A group may be meant, and certificates and policies are no secrets.
    secrets.iter().for_each(|name| mode(name, 0o640));
    mode(".", 0o755);
    ["ecdsa.pem", "rsa.pem", "policies.cedar"].iter().for_each(|name| mode(name, 0o644));
    ["audit", "state"].iter().for_each(|name| mode(name, 0o755));
    assert_eq!(notices(), [""; 0]);

    secrets.iter().for_each(|name| mode(name, 0o644));
    let path = |name: &str| folder.path().join(name).display().to_string();
    let said = |name: &str| {
        format!("notice  {} holds a secret that every user of this machine can read: chmod o= it", path(name))
    };
    assert_eq!(notices(), secrets.map(said));
    mode(".", 0o750);
    assert_eq!(notices(), [""; 0], "in a folder that they cannot enter");
    mode(".", 0o755);

    secrets.iter().for_each(|name| mode(name, 0o600));
    mode("policies.cedar", 0o646);
    ["audit", "state"].iter().for_each(|name| mode(name, 0o1777));
    let into = |name: &str| {
        format!(
            "notice  every user of this machine can put files, and links to others, into {}: chmod o-w it",
            path(name)
        )
    };
    let changed = format!(
        "notice  {} can be changed by every user of this machine: chmod o= it",
        path("policies.cedar")
    );
    assert_eq!(notices(), [changed, into("audit"), into("state")]);
}

#[test]
fn a_configuration_that_is_not_there_exits_with_2_and_names_it() {
    let output = xks_proxy(&["serve", "--config", "/nonexistent/xks-proxy.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/nonexistent/xks-proxy.toml"));
}

#[tokio::test]
async fn a_probe_tells_a_proxy_that_lives_from_one_that_is_ready() {
    let setup = Setup { server: "lame_duck_secs = 900".to_owned(), ..Setup::default() };
    let mut proxy = Proxy::start(&setup).await;
    let admin = proxy.admin.to_string();
    let code = |more: &[&str]| xks_proxy(&[&["probe", "--admin", &admin], more].concat()).status.code();
    assert_eq!((code(&[]), code(&["--ready"])), (Some(0), Some(0)));
    proxy.signal("TERM");
    let _ =
        proxy.wait_for_log(|line| line["message"].as_str().is_some_and(|text| text.starts_with("stopping")));
    assert_eq!((code(&[]), code(&["--ready"])), (Some(0), Some(1)));
    proxy.signal("TERM");
    proxy.wait_for_exit();
    let output = xks_proxy(&["probe", "--admin", &admin]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot ask /livez"), "{}", stderr(&output));
}
