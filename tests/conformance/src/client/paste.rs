//! Command lines that repeat a request, credentials as variables.

use mock_kms::xks::{HttpVersion, Request};

use crate::target::Target;

/// Longest body that is written out.
const MAX_BODY_CHARS: usize = 20_000;

/// A curl line. Where the signature is KMS's, curl signs anew; otherwise the headers stand as they were sent, good for five
/// minutes.
#[must_use]
pub fn curl(target: &Target, request: &Request, version: HttpVersion, url_path: &str) -> String {
    let mut line = "curl -sS -i --path-as-is".to_owned();
    line.push_str(if version == HttpVersion::Http2 { " --http2" } else { " --http1.1" });
    line.push_str(&connection_options(target));
    let mut sent = http::Request::new(request.body.clone());
    if let Some(edit) = &request.edit {
        edit(&mut sent);
    }
    let body = sent.body().clone();
    let is_plain = request.edit.is_none() && !request.signing.is_off && request.signing.skew_secs == 0;
    if is_plain {
        line.push_str(&format!(
            " --aws-sigv4 {}",
            quoted(&format!("aws:amz:{}:kms-xks-proxy", target.proxy.region))
        ));
        line.push_str(" --user \"$SIGV4_ACCESS_KEY_ID:$SIGV4_SECRET_ACCESS_KEY\"");
    }
    line.push_str(&format!(" -X {}", request.method));
    for (name, value) in &request.headers {
        line.push_str(&format!(" -H {}", quoted(&format!("{name}: {value}"))));
    }
    for (name, value) in sent.headers() {
        line.push_str(&format!(
            " -H {}",
            quoted(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        ));
    }
    let text = String::from_utf8_lossy(&body);
    if text.len() > MAX_BODY_CHARS {
        line.push_str(&format!(" --data-binary @body.json # {} bytes", text.len()));
    } else {
        line.push_str(&format!(" --data-binary {}", quoted(&text)));
    }
    line.push_str(&format!(" {}", quoted(&format!("https://{}{url_path}", target.proxy.host))));
    line
}

fn connection_options(target: &Target) -> String {
    let mut text = String::new();
    if let Some(file) = &target.args.trust_ca {
        text.push_str(&format!(" --cacert {}", quoted(&file.display().to_string())));
    }
    if let Some(address) = &target.args.resolve {
        text.push_str(&format!(
            " --connect-to {}",
            quoted(&format!("{}:{}:{address}", target.host, target.port))
        ));
    }
    if let (Some(chain), Some(key)) = (&target.args.client_cert, &target.args.client_key) {
        text.push_str(&format!(
            " --cert {} --key {}",
            quoted(&chain.display().to_string()),
            quoted(&key.display().to_string())
        ));
    }
    text
}

/// Bytes over TLS with openssl.
#[must_use]
pub fn openssl(target: &Target, bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(4000)];
    let escaped: String = shown
        .iter()
        .map(|byte| match byte {
            b'\'' => "\\047".to_owned(),
            b'\\' => "\\\\".to_owned(),
            b'%' => "%%".to_owned(),
            b'\r' => "\\r".to_owned(),
            b'\n' => "\\n".to_owned(),
            0x20..=0x7e => char::from(*byte).to_string(),
            _ => format!("\\{byte:03o}"),
        })
        .collect();
    format!(
        "printf '{escaped}' | openssl s_client -quiet -servername {} -connect {}",
        quoted(&target.host),
        target.address
    )
}

/// A word for a shell.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_ends_where_it_should() {
        assert_eq!(quoted("a'b; $(c)"), "'a'\\''b; $(c)'");
    }
}
