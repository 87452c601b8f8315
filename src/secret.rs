//! Secrets, and the places they are read from. They lie in locked memory, are wiped when dropped and never shown by Debug.

mod locked;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use locked::LockedBytes;
pub use locked::{is_all_locked, warn_if_unlocked};

/// What to do where [`is_all_locked`] says no.
pub const UNLOCKED_ADVICE: &str = "the system lets this process lock too little memory: secrets may be swapped out to disk; \
    raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity, containers: --ulimit memlock=-1) to a page for each secret";

/// The directory in which systemd puts what `LoadCredential=` names.
const SYSTEMD_CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";
/// Longer files are no secrets but mistakes.
const MAX_SECRET_BYTES: usize = 64 * 1024;

/// A secret text. Its clones share one copy.
#[derive(Clone)]
pub struct Secret(SecretBytes);

impl Secret {
    /// A copy of `text`.
    #[must_use]
    pub fn copy_of(text: &str) -> Self {
        Self(SecretBytes::copy_of(text.as_bytes()))
    }

    /// The text, to be handed on at once and not kept.
    #[must_use]
    pub fn expose(&self) -> &str {
        // INVARIANT: it was copied from a text.
        std::str::from_utf8(self.0.expose()).unwrap_or_default()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose().as_bytes().ct_eq(other.expose().as_bytes()).into()
    }
}

impl Eq for Secret {}

/// Secret bytes. Its clones share one copy.
#[derive(Clone)]
pub struct SecretBytes(Arc<LockedBytes>);

impl SecretBytes {
    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self(Arc::new(LockedBytes::copy_of(bytes)))
    }

    /// The bytes, to be handed on at once and not kept.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In the configuration itself.
    Inline(Secret),
    /// In a file; one line break at its end does not count.
    File(PathBuf),
    /// In an environment variable.
    Environment(String),
    /// In a systemd credential of that name.
    SystemdCredential(String),
}

impl SecretSource {
    /// The file that the secret is in, if it is in one.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Inline(_) | Self::Environment(_) => None,
            Self::File(path) => Some(path.clone()),
            Self::SystemdCredential(name) => systemd_credential(name),
        }
    }

    /// Reads the secret as it is now.
    ///
    /// # Errors
    /// [`SecretFault`] with the place and the reason, never the content.
    pub fn read(&self) -> Result<Secret, SecretFault> {
        match self {
            Self::Inline(secret) => Ok(secret.clone()),
            Self::File(path) => read_file(path.clone()),
            Self::Environment(name) => read_environment(name),
            Self::SystemdCredential(name) => {
                let file = systemd_credential(name)
                    .ok_or_else(|| SecretFault::NoCredentialsDirectory(name.clone()))?;
                read_file(file)
            }
        }
    }
}

fn systemd_credential(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from(environment_variable(SYSTEMD_CREDENTIALS_VARIABLE)?).join(name))
}

fn read_file(path: PathBuf) -> Result<Secret, SecretFault> {
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) => return Err(SecretFault::File { path, reason: error.kind() }),
    };
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(SecretFault::TooLong(path));
    }
    let Ok(text) = std::str::from_utf8(&bytes) else { return Err(SecretFault::NotUtf8(path)) };
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() { Err(SecretFault::Empty(path)) } else { Ok(Secret::copy_of(text)) }
}

fn read_environment(name: &str) -> Result<Secret, SecretFault> {
    let mut value = environment_variable(name).ok_or_else(|| SecretFault::Environment(name.to_owned()))?;
    let secret = Secret::copy_of(&value);
    value.zeroize();
    Ok(secret)
}

/// An environment variable that is set, not empty and UTF-8.
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the environment")]
fn environment_variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Why a secret could not be read. The texts name neither file nor variable: who mistook the one for the other wrote the
/// secret there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SecretFault {
    /// The file cannot be read.
    #[error("cannot read the secret file: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: std::io::ErrorKind,
    },
    /// The file holds nothing.
    #[error("the secret file is empty")]
    Empty(PathBuf),
    /// The file is not text.
    #[error("the secret file is not UTF-8 text")]
    NotUtf8(PathBuf),
    /// The file is too long to be a secret.
    #[error("the secret file is longer than 64 KiB")]
    TooLong(PathBuf),
    /// The environment variable is not there.
    #[error("the environment variable is not set, empty or not UTF-8")]
    Environment(String),
    /// Not started by systemd with credentials.
    #[error(
        "there are no systemd credentials: CREDENTIALS_DIRECTORY is not set; does the unit say LoadCredential=NAME:…? By \
         hand, give the folder that it loads from: CREDENTIALS_DIRECTORY=FOLDER xks-proxy …"
    )]
    NoCredentialsDirectory(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary_file(name: &str, content: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xks-secret-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn one_line_break_at_the_end_does_not_count() {
        for (name, content, expected) in [
            ("lf", "pin\n", "pin"),
            ("crlf", "pin\r\n", "pin"),
            ("two", "pin\n\n", "pin\n"),
            ("none", " pin ", " pin "),
        ] {
            let path = temporary_file(name, content.as_bytes());
            assert_eq!(SecretSource::File(path.clone()).read().unwrap().expose(), expected);
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn faults_show_neither_content_nor_name() {
        let path = temporary_file("binary", b"hunter2\xff");
        let fault = SecretSource::File(path.clone()).read().unwrap_err();
        assert_eq!(fault, SecretFault::NotUtf8(path.clone()));
        assert!(!format!("{fault} {fault:?}").contains("hunter2"));
        std::fs::remove_file(path).unwrap();
        for source in
            [SecretSource::Environment("hunter2".into()), SecretSource::File("/nonexistent/hunter2".into())]
        {
            assert!(!source.read().unwrap_err().to_string().contains("hunter2"));
        }
    }

    #[test]
    fn a_secret_comes_from_the_environment_without_its_name() {
        // cargo sets it for tests.
        let read = SecretSource::Environment("CARGO_PKG_NAME".into()).read().unwrap();
        assert_eq!(read.expose(), env!("CARGO_PKG_NAME"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let source = SecretSource::Inline(Secret::copy_of("hunter2"));
        assert!(!format!("{source:?}").contains("hunter2"));
    }
}
