//! The lines that a report gives to be pasted: a real shell, with a real curl and openssl, gets the answer that the case got.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod on_saboteur;

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::iter;
use mock_kms::xks::{HttpVersion, Proxy, Request};
use serde_json::Value;
use tempfile::TempDir;
use xks_conformance::case::{Case, Section};
use xks_conformance::cases;
use xks_conformance::target::{Need, Target};
use xks_conformance::wire::{Journal, Trace, Wire, body_of};
use xks_saboteur::{Accepted, STORES};
use xks_spec::Operation;

/// Lines that are tried at once.
const AT_ONCE: usize = 4;

/// Longest answer that a report shows whole.
const SHOWN_BYTES: usize = 4000;

/// Sections whose cases leave nothing to paste that a second try would answer in the same way: they change the target, send
/// much at once, take their time, or look at what others sent.
const LEFT_OUT: [Section; 8] = [
    Section::Tls,
    Section::Rotation,
    Section::Health,
    Section::Iv,
    Section::Concurrency,
    Section::Latency,
    Section::Slow,
    Section::Errors,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_case_sent_last_can_be_pasted() {
    let folder = tempfile::tempdir().unwrap();
    let (_saboteur, target) = on_saboteur::start(None, &folder).await;
    let is_wanted = |case: &Case| {
        !LEFT_OUT.contains(&case.section)
            && !case.needs.contains(&Need::HsmCorrupting)
            && case.needs.iter().all(|need| target.lacks(*need).is_none())
    };
    let wanted: Vec<_> = cases::all().into_iter().filter(is_wanted).collect();
    let tried: Vec<_> = iter(wanted.into_iter().enumerate())
        .map(|(number, case)| {
            let (target, folder) = (Arc::clone(&target), &folder);
            async move {
                let wire = Wire::new(target, &case.id, Journal::default());
                let _ = case.run(wire.clone()).await;
                compared(&case.id, &wire.trace(), folder, if number % 2 == 0 { "sh" } else { "bash" }).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let of = |kind: &str| tried.iter().filter(|tried| tried.kind == kind).count();
    assert!(of("curl") > 350 && of("openssl") > 25, "curl {}, openssl {}", of("curl"), of("openssl"));
    assert!(of("nothing") == 0, "nothing to paste: {:?}", ids(&tried, |tried| tried.kind == "nothing"));
    let wrong: Vec<_> = tried.iter().filter_map(|tried| tried.difference.as_deref()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_store_and_credential_has_its_variables() {
    let folder = tempfile::tempdir().unwrap();
    let (saboteur, target) = on_saboteur::start(None, &folder).await;
    saboteur.accept(Accepted::Both);
    for (proxy, variable) in [
        (&target.proxy, "\"$SIGV4_"),
        (target.second.as_ref().unwrap(), "\"$SECOND_SIGV4_"),
        (target.disabled.as_ref().unwrap(), "\"$DISABLED_SIGV4_"),
        (target.next.as_ref().unwrap(), "\"$NEXT_SIGV4_"),
    ] {
        let trace = sent(&target, proxy, HttpVersion::Http2, &health(proxy)).await;
        assert!(trace.request.contains(variable), "{}", trace.request);
        assert!(trace.answer.starts_with("HTTP/2 200"), "{}", trace.answer);
        assert_eq!(compared(variable, &trace, &folder, "sh").await.difference, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_no_word_can_hold_is_sent_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (_saboteur, target) = on_saboteur::start(None, &folder).await;
    let quotes = br#"{"requestMetadata":{"kmsOperation":"it's $(id) `id` \\ %s","kmsRequestId":"x"}}"#;
    let long =
        format!("{{\"requestMetadata\":{{\"kmsRequestId\":\"x\"}},\"more\":\"{}\"}}", "a".repeat(40_000));
    let right = body_of(Operation::GetHealthStatus).to_string();
    let padded = right.clone() + &" ".repeat(110_000);
    for body in [
        &b"@/etc/hostname"[..],
        b"\0\xff\xfe\r\n\t",
        quotes,
        long.as_bytes(),
        padded.as_bytes(),
        b"",
        right.as_bytes(),
    ] {
        let mut request = health(&target.proxy);
        request.body = body.to_vec().into();
        let trace = sent(&target, &target.proxy, HttpVersion::Http1, &request).await;
        // What is signed is the body that arrives: were it another, the answer would be 401.
        assert!(!trace.answer.contains(" 401"), "{}", trace.answer);
        assert_eq!(compared("body", &trace, &folder, "sh").await.difference, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_has_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let (_saboteur, target) = on_saboteur::start(None, &folder).await;
    let mut request = health(&target.proxy);
    request.signing.secret_access_key = Some(target.second.as_ref().unwrap().secret_access_key.to_string());
    for request in [health(&target.proxy), request] {
        let line = sent(&target, &target.proxy, HttpVersion::Http1, &request).await.request;
        for store in &STORES {
            assert!(!line.contains(store.credential.secret_access_key), "{line}");
        }
    }
}

/// Of several requests at once, the one that failed is shown, whichever came last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_at_once_shows_the_request_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let (_saboteur, target) = on_saboteur::start(None, &folder).await;
    for wrong in [0, 3, 7] {
        let wire = Wire::new(Arc::clone(&target), "paste", Journal::default());
        let one = |wire: Wire, number| async move {
            let mut request = health(wire.proxy());
            request.signing.is_off = number == wrong;
            wire.send(&request).await?.ok()
        };
        wire.at_once(8, one).await.unwrap_err();
        let trace = wire.trace();
        assert!(trace.request.contains("curl ") && !trace.request.contains("SIGV4"), "{}", trace.request);
        assert!(trace.answer.starts_with("HTTP/1.1 401"), "{}", trace.answer);
    }
}

/// A request that is given up is shown, and not the one before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_waited_for_in_vain_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (_saboteur, target) = on_saboteur::start(None, &folder).await;
    // Takes connections and never says a word.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut args = target.args.clone();
    args.resolve = Some(silent.local_addr().unwrap());
    let wire = Wire::new(Arc::new(args.target().await.unwrap()), "paste", Journal::default());
    wire.note("the request before", "its answer");
    let request = health(wire.proxy());
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(100), wire.send(&request)).await;
    assert!(given_up.is_err());
    let trace = wire.trace();
    assert!(trace.request.contains("curl ") && trace.answer == "none yet", "{trace:?}");
    let at_once = wire.at_once(2, |wire, _| async move { wire.send(&health(wire.proxy())).await });
    assert!(tokio::time::timeout(std::time::Duration::from_millis(100), at_once).await.is_err());
    assert_eq!(wire.trace().answer, "none yet");
}

fn health(proxy: &Proxy) -> Request {
    Request::post(proxy.health_path(), body_of(Operation::GetHealthStatus).to_string())
}

async fn sent(target: &Arc<Target>, proxy: &Proxy, version: HttpVersion, request: &Request) -> Trace {
    let wire = Wire::new(Arc::clone(target), "paste", Journal::default());
    wire.try_send(proxy, version, request).await.unwrap();
    wire.trace()
}

struct Tried {
    id: String,
    kind: &'static str,
    difference: Option<String>,
}

fn ids(tried: &[Tried], is_meant: impl Fn(&Tried) -> bool) -> Vec<&str> {
    tried.iter().filter(|tried| is_meant(tried)).map(|tried| &*tried.id).collect()
}

/// Runs the line of a trace and compares the answers.
async fn compared(id: &str, trace: &Trace, folder: &TempDir, shell: &'static str) -> Tried {
    let kind = match &*trace.request {
        "" => "nothing",
        line if line.contains("openssl s_client") => "openssl",
        line if line.contains("curl ") => "curl",
        _ => "another",
    };
    let is_repeated = matches!(kind, "curl" | "openssl");
    let expected = Answer::of(&trace.answer);
    let file = folder.path().join(format!("{id}-{}.sh", trace.request.len()));
    std::fs::write(&file, &trace.request).unwrap();
    let run = move || pasted(shell, &file, kind == "openssl");
    let seen = if is_repeated { tokio::task::spawn_blocking(run).await.unwrap() } else { String::new() };
    let mut answer = Answer::of(&seen);
    if trace.answer.len() > SHOWN_BYTES {
        // The report shows a part of it, which is no JSON.
        answer.members = expected.members.clone();
    }
    let differs = is_repeated && answer != expected;
    let difference = differs.then(|| {
        let [request, was, is] =
            [&trace.request, &trace.answer, &seen].map(|text| text.chars().take(2000).collect::<String>());
        format!("{id}: {shell}: {request}\nthe case got:\n{was}\nthe line gets:\n{is}")
    });
    Tried { id: id.to_owned(), kind, difference }
}

/// What a line prints. A connection that stays open is left after the first answer.
fn pasted(shell: &str, file: &std::path::Path, is_raw: bool) -> String {
    let [main, second, disabled] = &STORES;
    let mut child = Command::new(shell)
        .arg(file)
        .env("SIGV4_ACCESS_KEY_ID", main.credential.access_key_id)
        .env("SIGV4_SECRET_ACCESS_KEY", main.credential.secret_access_key)
        .env("NEXT_SIGV4_ACCESS_KEY_ID", main.next_credential.access_key_id)
        .env("NEXT_SIGV4_SECRET_ACCESS_KEY", main.next_credential.secret_access_key)
        .env("SECOND_SIGV4_ACCESS_KEY_ID", second.credential.access_key_id)
        .env("SECOND_SIGV4_SECRET_ACCESS_KEY", second.credential.secret_access_key)
        .env("DISABLED_SIGV4_ACCESS_KEY_ID", disabled.credential.access_key_id)
        .env("DISABLED_SIGV4_SECRET_ACCESS_KEY", disabled.credential.secret_access_key)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut output, mut seen) = (child.stdout.take().unwrap(), Vec::new());
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..count]);
        if is_raw
            && String::from_utf8_lossy(&seen).split("\r\n\r\n").nth(1).is_some_and(|body| !body.is_empty())
        {
            break;
        }
    }
    drop(output);
    let _ = child.kill();
    let _ = child.wait();
    String::from_utf8_lossy(&seen).into_owned()
}

/// What two answers to the same request have in common, though ciphertexts and dates differ.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// `HTTP/1.1 401`, the version and the status; empty where there is none.
    status: String,
    /// Value of an error's name, and the names of all members.
    error_name: Option<String>,
    members: BTreeSet<String>,
}

impl Answer {
    fn of(text: &str) -> Self {
        let text = text.replace("\r\n", "\n");
        let blocks: Vec<_> = text.split("\n\n").collect();
        let first = blocks.iter().position(|block| block.starts_with("HTTP/") && !block.contains(" 100"));
        let Some(first) = first else {
            return Self { status: String::new(), error_name: None, members: BTreeSet::new() };
        };
        let status: Vec<_> = blocks[first].split_whitespace().take(2).collect();
        let body = blocks.get(first + 1).copied().unwrap_or_default();
        let body = serde_json::Deserializer::from_str(body).into_iter::<Value>().next();
        let object = body.and_then(Result::ok).and_then(|body| body.as_object().cloned()).unwrap_or_default();
        Self {
            status: status.join(" "),
            error_name: object.get("errorName").and_then(Value::as_str).map(str::to_owned),
            members: object.into_iter().map(|(name, _)| name).collect(),
        }
    }
}
