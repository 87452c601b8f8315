//! The program as its user runs it: flags, environment, the console's file, exit status, reports.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "tests")]

mod on_saboteur;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use xks_conformance::report::head;
use xks_saboteur::{Fault, HOST, STORES, Saboteur, keys, setup};

/// The program with these arguments and nothing of this process's environment that could name a target.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xks-conformance"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs while the saboteur, which shares this process, goes on.
async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// A saboteur as a target of the program's, by flags, with `more` behind.
async fn examine(saboteur: &Saboteur, folder: &TempDir, more: &[&str]) -> Output {
    let mut command = program();
    command.args(&on_saboteur::command_line(saboteur, folder.path())[1..]).args(more);
    run(command).await
}

/// The names that AWS's test client has, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_of_awss_client_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let saboteur = Saboteur::start(None).await;
    saboteur.write_certificates(folder.path()).unwrap();
    let mut command = program();
    command
        .env("XKS_PROXY_HOST", format!("{HOST}:{}", saboteur.addr().port()))
        .env("URI_PREFIX", STORES[0].uri_path_prefix)
        .env("SIGV4_ACCESS_KEY_ID", STORES[0].credential.access_key_id)
        .env("SIGV4_SECRET_ACCESS_KEY", STORES[0].credential.secret_access_key)
        .env("REGION", setup::REGION)
        .env("KEY_ID", keys::USABLE)
        .env("ENCRYPT_ONLY_KEY_ID", keys::ENCRYPT_ONLY)
        .env("DECRYPT_ONLY_KEY_ID", keys::DECRYPT_ONLY)
        .env("IMPOTENT_KEY_ID", keys::IMPOTENT)
        .env("CURL_CA_BUNDLE", folder.path().join("ca.pem"))
        .env("RESOLVE", saboteur.addr().to_string())
        .args(["--only", "encrypt.", "--no-disabled-key", "--no-disabled-store"]);
    let output = run(command).await;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("pass MUST   encrypt.encrypt-only-key"), "{text}");
    assert!(text.contains("--trust-ca "), "{text}");
    assert!(!text.contains(STORES[0].credential.secret_access_key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_consoles_file_gives_path_and_credential() {
    let folder = tempfile::tempdir().unwrap();
    let saboteur = Saboteur::start(None).await;
    saboteur.write_certificates(folder.path()).unwrap();
    let [main, ..] = &STORES;
    let file = folder.path().join("console.json");
    let content = json!({
        "XksProxyUriPath": format!("{}/kms/xks/v1", main.uri_path_prefix),
        "XksProxyAuthenticationCredential": {
            "AccessKeyId": main.credential.access_key_id,
            "RawSecretAccessKey": main.credential.secret_access_key,
        },
    });
    let examine = async |content: &str| {
        fs::write(&file, content).unwrap();
        let mut command = program();
        command
            .args(["--endpoint", &format!("https://{HOST}:{}", saboteur.addr().port())])
            .args(["--resolve", &saboteur.addr().to_string(), "--key-id", keys::USABLE])
            .args(["--only", "transport.json-", "--console-json", file.to_str().unwrap()])
            .arg("--trust-ca")
            .arg(folder.path().join("ca.pem"));
        run(command).await
    };
    let output = examine(&content.to_string()).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    // Neither a file that is none nor one with another type quotes the secret.
    let secret = main.credential.secret_access_key;
    let content = content.to_string();
    for wrong in [
        &content[..content.len() - 1],
        &*content.replace("AccessKeyId", "AccessKey"),
        &*format!("{secret}{content}"),
    ] {
        let output = examine(wrong).await;
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(
            text(&output).contains("console.json") && !text(&output).contains(secret),
            "{}",
            text(&output)
        );
    }
}

/// A run that looks at nothing would end well, and say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_case_is_no_run() {
    for (arguments, expected) in [
        (&["--only", "sigv5."][..], "--only sigv5.: no case has an id that begins so"),
        (&["--only", "metadata.", "--only", "encript."], "--only encript.: no case has an id that begins so"),
        (&["--requirement", "ENC-IV-999"], "--requirement ENC-IV-999: no case checks it"),
        (&["--profile", "must", "--only", "tls.expiry"], "profile must, --only tls.expiry: no case is left"),
        (&["--profile", "load", "--only", "sigv4."], "profile load has no cases to choose from"),
    ] {
        for list in [&[][..], &["--list"]] {
            let mut command = program();
            command.args(arguments).args(list);
            let output = run(command).await;
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
            assert!(text(&output).contains(expected), "{arguments:?}: {}", text(&output));
        }
    }
}

/// The three files of one run, in which cases fail, pass, are noted, do not apply and are skipped.
struct Reports {
    terminal: String,
    json: Value,
    junit: String,
    html: String,
    html_file: std::path::PathBuf,
    status: Option<i32>,
}

async fn reports(folder: &TempDir) -> Reports {
    let saboteur = Saboteur::start(Some(Fault::KeySpecWrong)).await;
    let file = |name: &str| folder.path().join(name);
    let files = ["report.json", "report.xml", "report.html"].map(|name| file(name).display().to_string());
    let more = [
        ["--json", &files[0], "--junit", &files[1], "--html", &files[2]].as_slice(),
        &["--only", "metadata.", "--only", "tls.", "--only", "latency.metadata", "--only", "aad."],
        &["--no-public-ca", "--product", "Saboteur <1.0> & \"more\""],
    ]
    .concat();
    let output = examine(&saboteur, folder, &more).await;
    let read =
        |file: &str| fs::read_to_string(Path::new(file)).unwrap_or_else(|_| panic!("{}", text(&output)));
    Reports {
        json: serde_json::from_str(&read(&files[0])).unwrap(),
        junit: read(&files[1]),
        html: read(&files[2]),
        html_file: file("report.html"),
        terminal: text(&output),
        status: output.status.code(),
    }
}

fn count(report: &Value, outcomes: &[&str]) -> usize {
    let cases = report["cases"].as_array().unwrap();
    cases.iter().filter(|case| outcomes.contains(&case["outcome"].as_str().unwrap())).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_report_says_what_a_citation_needs_and_counts_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let reports = reports(&folder).await;
    let json = &reports.json;
    assert_eq!(reports.status, Some(1), "{}", reports.terminal);
    assert!(
        count(json, &["failed"]) > 0 && count(json, &["noted"]) > 4 && count(json, &["notApplicable"]) > 0
    );

    let commit = json["commit"].as_str().unwrap();
    let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(commit == "unknown" || is_commit(commit.trim_end_matches("-changed")), "{commit}");
    assert_eq!(json["product"], "Saboteur <1.0> & \"more\"");
    assert_eq!(json["profile"], "full");
    assert_eq!(json["filters"][0], "--only metadata.");
    assert!(json["declarations"].as_array().unwrap().contains(&json!("--no-public-ca")));
    assert!(json["reported"]["proxyVendor"].is_string(), "{json}");
    let began = json["began"].as_str().unwrap();
    assert!(began.len() == 20 && began.ends_with('Z') && began.as_bytes()[10] == b'T', "{began}");

    // JUnit: what its attributes count is there, and a failure of a MAY is none.
    let document = roxmltree::Document::parse(&reports.junit).unwrap();
    let suite = document.root_element();
    let elements = |name: &str| suite.descendants().filter(|node| node.has_tag_name(name)).count();
    let attribute = |name: &str| suite.attribute(name).unwrap().parse::<usize>().unwrap();
    assert_eq!(
        (elements("testcase"), attribute("tests")),
        (attribute("tests"), json["cases"].as_array().unwrap().len())
    );
    assert_eq!(
        (elements("skipped"), attribute("skipped")),
        (attribute("skipped"), count(json, &["skipped", "notApplicable"]))
    );
    let heavy = json["cases"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|case| case["outcome"] == "failed" && case["level"] != "MAY");
    assert_eq!((elements("failure"), attribute("failures")), (attribute("failures"), heavy.count()));
    let failure = suite.descendants().find(|node| node.has_tag_name("failure")).unwrap();
    assert!(failure.text().unwrap().contains("curl -sS"), "{:?}", failure.text());

    // Each head has every row, with the value that JSON has.
    let values = [
        &json["target"],
        &json["product"],
        &json["commit"],
        &json["suite"],
        &json["began"],
        &json["profile"],
    ];
    let properties: Vec<_> = suite.descendants().filter(|node| node.has_tag_name("property")).collect();
    for value in values.map(|value| value.as_str().unwrap()) {
        assert!(properties.iter().any(|property| property.attribute("value") == Some(value)), "{value}");
        assert!(reports.terminal.contains(value), "{value}");
        let escaped =
            value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        assert!(reports.html.contains(&escaped), "{value}");
    }
    for name in [
        "Target",
        "Product",
        "Says of itself",
        "Suite",
        "Commit",
        "Specification",
        "Profile",
        "Filters",
        "Began",
        "Declared",
    ] {
        assert!(properties.iter().any(|property| property.attribute("name") == Some(name)), "{name}");
        assert!(
            reports.html.contains(&format!("<dt>{name}</dt>")) && reports.terminal.contains(name),
            "{name}"
        );
    }
    assert_eq!(properties.len(), head::NAMES.len());
}

/// One file: it asks for nothing, and a browser has nothing to complain of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_opens_in_a_browser_without_a_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let reports = reports(&folder).await;
    for reference in ["src=", "<script", "<link", "url(", "href=\"http", "@import"] {
        assert!(!reports.html.contains(reference), "{reference}");
    }
    let (page, complaints) = browse(&reports.html_file, &folder);
    assert_eq!(complaints, [""; 0]);
    for expected in ["<h1>XKS proxy conformance</h1>", "<svg", "metadata.key-spec"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    let cases = reports.json["cases"].as_array().unwrap().len();
    assert_eq!(page.matches("<tr class=\"case\">").count(), cases);
}

/// The page as a browser has it, and what the browser complained of.
fn browse(file: &Path, folder: &TempDir) -> (String, Vec<String>) {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let is_there = |name: &&str| {
        Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let browser = names.into_iter().find(is_there);
    let browser = browser.expect("Chromium is not installed (Debian: apt-get install chromium)");
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let complaints = errors.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    (String::from_utf8_lossy(&output.stdout).into_owned(), complaints)
}
