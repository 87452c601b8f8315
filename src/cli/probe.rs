//! `xks-proxy probe`: what a container's health check runs, where there is no curl.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{EXIT_FAILED, EXIT_OK, ProbeArgs, complain};

/// For connecting, and for each read.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn run(args: &ProbeArgs) -> u8 {
    let path = if args.ready { "/readyz" } else { "/livez" };
    match ask(args, path) {
        Ok(200) => EXIT_OK,
        Ok(status) => {
            complain(&format!("{path} says {status}"));
            EXIT_FAILED
        }
        Err(error) => {
            complain(&format!("cannot ask {path} at {}: {error}", args.admin));
            EXIT_FAILED
        }
    }
}

/// The status of the answer.
fn ask(args: &ProbeArgs, path: &str) -> Result<u16, std::io::Error> {
    let mut stream = TcpStream::connect_timeout(&args.admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", args.admin)?;
    let mut head = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut head)?;
    let status =
        head.strip_prefix(b"HTTP/1.1 ").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| std::io::Error::other("this is no answer of HTTP/1.1"))
}
