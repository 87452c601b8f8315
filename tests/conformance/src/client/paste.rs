//! Command lines that repeat what was sent, credentials as variables.

use std::net::SocketAddr;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderName, HeaderValue, Method};
use mock_kms::xks::{HttpVersion, Proxy, Request, Signing};

use crate::client::raw::Transcript;
use crate::target::{Route, Target};

/// Longest body that stands in the line as a word. Linux hands no longer argument than 128 KiB to a program.
const MAX_WORD_BYTES: usize = 100_000;

/// A curl line that sends the same request over the same route.
///
/// What KMS could have signed is signed anew by curl, which covers `content-type` too. Any other signature stands in the line
/// as it was sent, and is good for as long as the proxy takes its date: five minutes.
#[must_use]
pub fn curl(
    target: &Target,
    route: &Route,
    proxy: &Proxy,
    version: HttpVersion,
    request: &Request,
) -> String {
    let mut line = "curl -sS -i -g --path-as-is".to_owned();
    line.push_str(if version == HttpVersion::Http2 { " --http2" } else { " --http1.1" });
    line.push_str(&connection_options(target, route));
    let (method, headers, body) = match variables(target, proxy, version, request) {
        Some(prefix) => {
            let signing = &request.signing;
            let region = signing.region.as_deref().unwrap_or(&proxy.region);
            line.push_str(&format!(
                " --aws-sigv4 {} --user \"${prefix}_ACCESS_KEY_ID:${prefix}_SECRET_ACCESS_KEY\"",
                quoted(&format!("aws:amz:{region}:{}", mock_kms::xks::SERVICE))
            ));
            let headers = request.headers.iter();
            let headers = headers.map(|(name, value)| format!("{name}: {value}").into_bytes()).collect();
            (request.method.clone(), headers, request.body.clone())
        }
        None => as_sent(proxy, version, request),
    };
    line.push_str(&method_option(&method));
    for header in &headers {
        line.push_str(&format!(" -H {}", word(header)));
    }
    let mut before = String::new();
    if has_body(&method, &body) {
        match std::str::from_utf8(&body) {
            Ok(text) if body.len() <= MAX_WORD_BYTES && !text.contains(is_lost_in_a_terminal) => {
                line.push_str(&format!(" --data-raw {}", quoted(text)));
            }
            _ => {
                before = format!("printf %s '{}' | base64 -d | ", STANDARD.encode(&body));
                line.push_str(" --data-binary @-");
            }
        }
    }
    if is_plain_path(&request.path) {
        line.push_str(&format!(" {}", quoted(&format!("https://{}{}", proxy.host, request.path))));
    } else {
        let target = word(request.path.as_bytes());
        line.push_str(&format!(" --request-target {target} {}", quoted(&format!("https://{}/", proxy.host))));
    }
    before + &line
}

/// The variables' beginning, where curl's own signature does: the credential is one of the target's, and nothing differs
/// from what KMS signs.
fn variables(
    target: &Target,
    proxy: &Proxy,
    version: HttpVersion,
    request: &Request,
) -> Option<&'static str> {
    let Signing { is_off, skew_secs, access_key_id, secret_access_key, region, .. } = &request.signing;
    let Signing { service, method, path, host, body, headers, .. } = &request.signing;
    let is_altered = *is_off
        || *skew_secs != 0
        || [service, method, path, host].into_iter().any(Option::is_some)
        || region.as_deref().is_some_and(|region| !region.bytes().all(is_plain_byte))
        || body.is_some()
        || !headers.is_empty()
        || request.edit.is_some();
    let is_json = |(name, value): &(String, String)| name == "content-type" && value == "application/json";
    if is_altered
        || !matches!(*request.headers, [ref one] if is_json(one))
        || !is_plain_path(&request.path)
        || request.method != Method::POST
        || (version == HttpVersion::Http1 && proxy.host.ends_with(":443"))
    {
        return None;
    }
    let id = access_key_id.as_ref().unwrap_or(&proxy.access_key_id);
    let secret = secret_access_key.as_deref().unwrap_or(&proxy.secret_access_key);
    let known = [
        (Some(&target.proxy), "SIGV4"),
        (target.second.as_ref(), "SECOND_SIGV4"),
        (target.disabled.as_ref(), "DISABLED_SIGV4"),
        (target.next.as_ref(), "NEXT_SIGV4"),
    ];
    let is_its = |known: &Proxy| known.access_key_id == *id && known.secret_access_key.as_str() == secret;
    known.into_iter().find_map(|(known, prefix)| known.filter(|known| is_its(known)).map(|_| prefix))
}

/// Method, header lines and body as the client sends them, signed and edited.
fn as_sent(proxy: &Proxy, version: HttpVersion, request: &Request) -> (Method, Vec<Vec<u8>>, Bytes) {
    let mut sent = http::Request::new(request.body.clone());
    *sent.method_mut() = request.method.clone();
    if let Ok(uri) = request.path.parse() {
        *sent.uri_mut() = uri;
    }
    for (name, value) in &request.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            sent.headers_mut().append(name, value);
        }
    }
    let (method, now) = (request.method.as_str(), SystemTime::now());
    if !request.signing.is_off
        && let Ok(signature) = request.signing.sign(proxy, method, &request.path, &request.body, now)
    {
        sent.headers_mut().insert("x-amz-date", signature.date);
        sent.headers_mut().insert("authorization", signature.authorization);
    }
    let host = HeaderValue::from_str(&proxy.host).ok();
    if version == HttpVersion::Http1
        && let Some(host) = &host
    {
        sent.headers_mut().insert(HOST, host.clone());
    }
    if let Some(edit) = &request.edit {
        edit(&mut sent);
    }
    // curl writes the same host by itself, but for a port that it takes for granted.
    if sent.headers().get(HOST) == host.as_ref() && !proxy.host.ends_with(":443") {
        sent.headers_mut().remove(HOST);
    }
    let length = HeaderValue::from(sent.body().len());
    if sent.headers().get(CONTENT_LENGTH) == Some(&length) {
        sent.headers_mut().remove(CONTENT_LENGTH);
    }
    let line = |(name, value): (&HeaderName, &HeaderValue)| match value.as_bytes() {
        // Written with a colon it would take the header away.
        b"" => format!("{name};").into_bytes(),
        value => [name.as_str().as_bytes(), b": ", value].concat(),
    };
    let mut headers: Vec<_> = sent.headers().iter().map(line).collect();
    if has_body(sent.method(), sent.body()) && !sent.headers().contains_key(CONTENT_TYPE) {
        headers.push(b"content-type:".to_vec());
    }
    (sent.method().clone(), headers, sent.into_body())
}

/// As hyper sees it: these methods send a length even where it is zero.
fn has_body(method: &Method, body: &Bytes) -> bool {
    !body.is_empty() || ![Method::GET, Method::HEAD, Method::DELETE, Method::CONNECT].contains(method)
}

fn method_option(method: &Method) -> String {
    // With -X curl would wait for the body that an answer to HEAD announces.
    if *method == Method::HEAD { " --head".to_owned() } else { format!(" -X {}", quoted(method.as_str())) }
}

fn connection_options(target: &Target, route: &Route) -> String {
    let mut text = String::new();
    if let Some(file) = &target.args.trust_ca {
        text.push_str(&format!(" --cacert {}", quoted(&file.display().to_string())));
    }
    match &route.address {
        Some(address) => {
            let rule = format!("{}:{}:{address}", target.host, target.port);
            text.push_str(&format!(" --connect-to {}", quoted(&rule)));
        }
        // As KMS, which knows no other.
        None => text.push_str(" --ipv4"),
    }
    if let Some((chain, key)) = &route.identity {
        let [chain, key] = [chain, key].map(|file| quoted(&file.display().to_string()));
        text.push_str(&format!(" --cert {chain} --key {key}"));
    }
    text
}

/// What was sent over a connection, to the last byte, with openssl. It ends when the proxy closes the connection.
#[must_use]
pub fn openssl(target: &Target, route: &Route, transcript: &Transcript) -> String {
    let mut line = format!(
        "printf '{}' | openssl s_client -quiet{} -servername {} -connect {}",
        escaped(&transcript.sent),
        if transcript.has_alpn { " -alpn http/1.1" } else { "" },
        quoted(&target.host),
        route.address.unwrap_or(target.address)
    );
    if let Some((chain, key)) = &route.identity {
        let [chain, key] = [chain, key].map(|file| quoted(&file.display().to_string()));
        line.push_str(&format!(" -cert {chain} -cert_chain {chain} -key {key}"));
    }
    line
}

/// Bytes over TCP with netcat, and the answer's bytes in hexadecimal.
#[must_use]
pub fn netcat(address: SocketAddr, bytes: &[u8]) -> String {
    format!("printf '{}' | nc -w 5 {} {} | od -An -tx1", escaped(bytes), address.ip(), address.port())
}

/// A word for a shell.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A word for a shell, of any bytes but NUL, which none can hold.
fn word(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(is_lost_in_a_terminal) => quoted(text),
        _ => format!("\"$(printf '{}')\"", escaped(bytes)),
    }
}

/// Bytes as a format of the shell's `printf`, within single quotes.
fn escaped(bytes: &[u8]) -> String {
    let one = |(at, byte): (usize, &u8)| match byte {
        b'\\' => "\\\\".to_owned(),
        b'%' => "%%".to_owned(),
        b'\r' => "\\r".to_owned(),
        b'\n' => "\\n".to_owned(),
        // The one would end the format, the other make an option of it.
        b'\'' => format!("\\{byte:03o}"),
        b'-' if at == 0 => format!("\\{byte:03o}"),
        0x20..=0x7e => char::from(*byte).to_string(),
        _ => format!("\\{byte:03o}"),
    };
    bytes.iter().enumerate().map(one).collect()
}

/// What a terminal takes for a command when it is pasted.
fn is_lost_in_a_terminal(c: char) -> bool {
    c.is_control() && c != '\n'
}

/// A path that curl sends and signs as it stands: of characters that need no encoding, without empty or dotted segments.
fn is_plain_path(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| {
        rest.bytes().all(|byte| is_plain_byte(byte) || byte == b'/')
            && rest.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
    })
}

const fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_ends_where_it_should() {
        assert_eq!(quoted("a'b; $(c)"), "'a'\\''b; $(c)'");
        assert_eq!(word(b"x: \xe9\t'"), "\"$(printf 'x: \\351\\011\\047')\"");
    }

    #[test]
    fn what_printf_would_read_is_escaped() {
        assert_eq!(escaped(b"-%\\\r\n\0a-"), "\\055%%\\\\\\r\\n\\000a-");
    }

    #[test]
    fn a_path_that_curl_might_change_is_not_plain() {
        assert!(is_plain_path("/p/kms/xks/v1/keys/Key.with_every-Character.0/encrypt"));
        for path in ["", "*", "//", "/a/../b", "/a/./b", "/a?b", "/a%2fb", "/a{b}"] {
            assert!(!is_plain_path(path), "{path}");
        }
    }
}
