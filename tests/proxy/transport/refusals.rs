//! What is not spoken: cleartext, old versions, other suites.

use std::process::{Command, Output, Stdio};

use rustls::crypto::aws_lc_rs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xks_harness::{Proxy, Setup};

use super::{Abilities, HAS_CHACHA20, served_suites};

#[tokio::test]
async fn every_other_suite_of_the_library_is_refused() {
    let ours: Vec<_> = served_suites().into_iter().map(|(suite, ..)| suite).collect();
    let others: Vec<_> = aws_lc_rs::ALL_CIPHER_SUITES.iter().filter(|suite| !ours.contains(suite)).collect();
    assert!(others.len() >= 5);
    let proxy = Proxy::start(&Setup::default()).await;
    for suite in others {
        let refusal = Abilities::of_suite(*suite).connect(proxy.address).await.unwrap_err().to_string();
        assert!(refusal.contains("received fatal alert"), "{:?}: {refusal}", suite.suite());
    }
}

/// OpenSSL as a client, since rustls speaks nothing weak.
fn openssl(proxy: &Proxy, arguments: &[&str]) -> Output {
    let address = proxy.address.to_string();
    let ca = proxy.folder().join("ca.pem");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address, "-verify_return_error", "-CAfile"]).arg(ca);
    // The lowest security level: it is the proxy that is to refuse, and not the client.
    command.args(["-cipher", "ALL:@SECLEVEL=0"]).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[tokio::test]
async fn openssl_agrees_on_what_is_spoken_and_what_is_not() {
    let proxy = Proxy::start(&Setup::default()).await;
    let chacha20 = &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"][..];
    let mut spoken = vec![
        (&["-tls1_3"][..], "TLS_AES_256_GCM_SHA384"),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"], "ECDHE-ECDSA-AES256-GCM-SHA384"),
        (&["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"], "ECDHE-RSA-AES256-GCM-SHA384"),
    ];
    let mut unspoken = vec![
        &["-tls1"][..],
        &["-tls1_1"],
        &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"],
        &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"],
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        &["-tls1_2", "-cipher", "ECDHE-RSA-CHACHA20-POLY1305"],
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES256-SHA384:ECDHE-RSA-AES256-SHA@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "DHE-RSA-AES256-GCM-SHA384"],
        &["-tls1_2", "-cipher", "AES256-GCM-SHA384:AES128-SHA@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"],
    ];
    if HAS_CHACHA20 {
        spoken.push((chacha20, "TLS_CHACHA20_POLY1305_SHA256"));
    } else {
        unspoken.push(chacha20);
    }
    for (arguments, suite) in spoken {
        let output = openssl(&proxy, arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {text}");
        assert!(text.contains(&format!("Cipher is {suite}")), "{arguments:?}: {text}");
    }
    for arguments in unspoken {
        let output = openssl(&proxy, arguments);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(!output.status.success(), "{arguments:?}: {text}");
        // It was the proxy that refused, by an alert.
        assert!(text.contains("alert"), "{arguments:?}: {text}");
    }
}

/// What sslscan finds enabled: protocols, and suites by protocol.
fn sslscan(proxy: &Proxy) -> (Vec<String>, Vec<String>) {
    let mut command = Command::new("sslscan");
    command.args(["--no-colour", "--no-fallback", "--no-renegotiation", "--no-groups", "--xml=-"]);
    let output = command.arg(proxy.address.to_string()).output().expect("sslscan is not installed");
    let xml = String::from_utf8(output.stdout).unwrap();
    let attribute = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}=\""))?;
        Some(rest.split('"').next().unwrap().to_owned())
    };
    let lines = |element: &str| {
        let start = format!("<{element} ");
        xml.lines().map(str::trim).filter(move |line| line.starts_with(&start)).collect::<Vec<_>>()
    };
    let enabled = lines("protocol").into_iter().filter(|line| attribute(line, "enabled").unwrap() == "1");
    let protocols = enabled
        .map(|line| format!("{} {}", attribute(line, "type").unwrap(), attribute(line, "version").unwrap()));
    let suites = lines("cipher").into_iter().map(|line| {
        format!("{} {}", attribute(line, "sslversion").unwrap(), attribute(line, "cipher").unwrap())
    });
    let (mut protocols, mut suites) = (protocols.collect::<Vec<_>>(), suites.collect::<Vec<_>>());
    protocols.sort();
    suites.sort();
    (protocols, suites)
}

#[tokio::test]
async fn sslscan_agrees_on_protocols_and_suites() {
    let file = |kind: &str| format!("{{ chain_file = \"{kind}.pem\", key_file = \"{kind}.key\" }}");
    let (rsa, ecdsa) = ("TLSv1.2 ECDHE-RSA-AES256-GCM-SHA384", "TLSv1.2 ECDHE-ECDSA-AES256-GCM-SHA384");
    for (kinds, of_certificates) in
        [(&["rsa"][..], &[rsa][..]), (&["ecdsa"], &[ecdsa]), (&["ecdsa", "rsa"], &[ecdsa, rsa])]
    {
        let certificates = kinds.iter().map(|kind| file(kind)).collect::<Vec<_>>().join(", ");
        let setup = Setup { certificates: format!("[{certificates}]"), ..Setup::default() };
        let proxy = Proxy::start(&setup).await;
        let (protocols, suites) = tokio::task::spawn_blocking(move || sslscan(&proxy)).await.unwrap();
        // Its hello of TLS 1.2 is without the extended master secret, which the FIPS module insists on (RFC 7627).
        let is_fips = cfg!(feature = "fips");
        assert_eq!(protocols, if is_fips { &["tls 1.3"][..] } else { &["tls 1.2", "tls 1.3"] }, "{kinds:?}");
        let mut expected = if is_fips { Vec::new() } else { of_certificates.to_vec() };
        expected.push("TLSv1.3 TLS_AES_256_GCM_SHA384");
        expected.extend(HAS_CHACHA20.then_some("TLSv1.3 TLS_CHACHA20_POLY1305_SHA256"));
        assert_eq!(suites, expected, "{kinds:?}");
    }
}

#[tokio::test]
async fn nothing_is_served_in_the_clear() {
    let proxy = Proxy::start(&Setup::default()).await;
    for bytes in [
        &b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n"[..],
        b"POST /main/kms/xks/v1/health HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
    }
}

/// Whoever connects can bring such lines about, and must not fill the disk with them.
#[tokio::test]
async fn handshakes_that_fail_have_lines_of_the_log_but_not_without_end() {
    const SUPPRESSED: &str = "xks_log_lines_suppressed_total";
    let mut proxy = Proxy::start(&Setup::default()).await;
    let mut failed = 0_usize;
    while proxy.metric(SUPPRESSED).await == 0.0 {
        for _ in 0..100 {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        failed += 100;
        assert!(failed < 10_000, "no line is left out");
    }
    let closed = format!("xks_connections_closed_total{{reason=\"handshake_failed\"}} {failed}\n");
    proxy.wait_for("/metrics", |_, text| text.contains(&closed)).await;
    let suppressed = proxy.metric(SUPPRESSED).await;
    proxy.signal("TERM");
    assert!(proxy.wait_for_exit().success());
    let _ = proxy.wait_for_log(|line| line["message"] == "stopped");
    let lines = proxy.log_lines();
    let told: Vec<_> = lines.iter().filter(|line| line["message"] == "the TLS handshake failed").collect();
    assert!(told.iter().all(|line| line["level"] == "INFO" && line["address"].is_string()), "{told:?}");
    assert_eq!(told.len() as f64 + suppressed, failed as f64);
}
