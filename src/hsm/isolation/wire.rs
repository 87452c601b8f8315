//! What passes between the proxy and a helper: one request and one reply at a time on each line.
//!
//! Both ends are the same binary, so that the encoding needs no versions. A frame is its length in four bytes,
//! little-endian, and a message as `postcard` encodes it. Frames are wiped: PINs and plaintexts are in them.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cryptoki::error::{Rv, RvError};
use postcard::ser_flavors::Size;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::hsm::KeyLocator;
use crate::hsm::gcm::{Failure, NewIv};
use crate::hsm::session::Access;
use crate::hsm::settings::UserType;

/// Longer frames are no messages of ours: a helper in which a module has run wild may send anything.
const MAX_FRAME_BYTES: usize = 256 << 20;
const HEADER_BYTES: usize = 4;
/// What one read takes in: most messages, whole.
const CHUNK_BYTES: usize = 512;

/// What a helper is asked. The comment says what the reply is.
#[derive(Serialize, Deserialize)]
pub(super) enum Request<'a> {
    /// `Result<(), ModuleFault>`
    Load { module: &'a str },
    /// `Option<u64>`: bytes of the helper's memory that are in RAM. The proxy may not see for itself: the helper is closed to
    /// debuggers, and a service manager may hide such processes.
    Memory,
    /// `Result<Vec<(u64, TokenInfo)>, Code>`, by slot id
    Tokens,
    /// `Result<TokenInfo, Code>`
    Token { slot: u64 },
    /// `Result<bool, Code>`
    HasAesGcm { slot: u64 },
    /// `Result<(), Code>`: what follows on the line is about this session.
    OpenSession { slot: u64, access: Access },
    /// `Result<(), Code>`
    LogIn { user_type: UserType, pin: &'a str },
    /// `bool`
    IsLoggedIn,
    /// `Result<Vec<u64>, Code>`
    FindKeys { locator: Option<KeyLocator> },
    /// `Result<Option<KeyObject>, Code>`
    ReadKey { key: u64 },
    /// `Result<u64, Code>`
    MakeSessionKey,
    /// `Result<Bytes, Code>`
    Random { bytes: usize },
    /// `Result<(Bytes, Bytes), FailedCall>`: IV, and ciphertext with tag
    Encrypt {
        key: u64,
        new_iv: NewIv,
        #[serde(borrow)]
        aad: Bytes<'a>,
        plaintext: Bytes<'a>,
    },
    /// `Result<Bytes, FailedCall>`
    Decrypt { key: u64, iv: Bytes<'a>, aad: Bytes<'a>, ciphertext_and_tag: Bytes<'a> },
    /// `()`: the line is about to close, and the session is not to be closed with it.
    Forget,
}

/// Bytes that are not copied to be encoded or decoded.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Self)
    }
}

/// A return code by its number.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Code(u64);

impl From<RvError> for Code {
    fn from(code: RvError) -> Self {
        // The standard's codes are below this.
        const END: u64 = 0x400;
        Self(match code {
            RvError::VendorDefined(number) | RvError::UnknownErrorCode(number) => number,
            named => {
                let is_it = |number: &u64| Rv::from(*number) == Rv::Error(named);
                (0..END).find(is_it).unwrap_or(cryptoki_sys::CKR_GENERAL_ERROR)
            }
        })
    }
}

impl From<Code> for RvError {
    fn from(Code(number): Code) -> Self {
        match Rv::from(number) {
            Rv::Error(code) => code,
            // A failure of which nothing is known.
            Rv::Ok => Self::GeneralError,
        }
    }
}

/// The function of AES-GCM that failed, and its return code.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct FailedCall {
    call: AesGcmCall,
    code: Code,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum AesGcmCall {
    EncryptInit,
    Encrypt,
    DecryptInit,
    Decrypt,
}

impl From<Failure> for FailedCall {
    fn from((call, code): Failure) -> Self {
        let call = match call {
            "C_EncryptInit" => AesGcmCall::EncryptInit,
            "C_Encrypt" => AesGcmCall::Encrypt,
            "C_DecryptInit" => AesGcmCall::DecryptInit,
            _ => AesGcmCall::Decrypt,
        };
        Self { call, code: code.into() }
    }
}

impl From<FailedCall> for Failure {
    fn from(FailedCall { call, code }: FailedCall) -> Self {
        let call = match call {
            AesGcmCall::EncryptInit => "C_EncryptInit",
            AesGcmCall::Encrypt => "C_Encrypt",
            AesGcmCall::DecryptInit => "C_DecryptInit",
            AesGcmCall::Decrypt => "C_Decrypt",
        };
        (call, code.into())
    }
}

/// One end of a line. Whoever asks waits for the reply before asking again.
pub(super) struct Line(pub(super) Arc<UnixStream>);

impl Line {
    /// Sends a message, and wipes what it was encoded in.
    pub(super) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let frame = encode(message).map_err(io::Error::other)?;
        (&*self.0).write_all(&frame)
    }

    /// The next message, to be [decoded](decode). An error where the other end is gone.
    pub(super) fn receive(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut chunk = Zeroizing::new([0; CHUNK_BYTES]);
        let mut read = 0;
        while read < HEADER_BYTES {
            match (&*self.0).read(&mut chunk[read..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => read += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let (header, begun) = chunk[..read].split_at(HEADER_BYTES);
        let length = header.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if length > MAX_FRAME_BYTES || begun.len() > length {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = Zeroizing::new(vec![0; length]);
        message[..begun.len()].copy_from_slice(begun);
        (&*self.0).read_exact(&mut message[begun.len()..])?;
        Ok(message)
    }
}

fn encode(message: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, postcard::Error> {
    // Measured first: a buffer that grows leaves copies of secrets behind.
    let length = postcard::serialize_with_flavor(message, Size::default())?;
    let mut frame = Zeroizing::new(vec![0; HEADER_BYTES + length]);
    let header = u32::try_from(length).map_err(|_| postcard::Error::SerializeBufferFull)?;
    frame[..HEADER_BYTES].copy_from_slice(&header.to_le_bytes());
    postcard::to_slice(message, &mut frame[HEADER_BYTES..])?;
    Ok(frame)
}

/// The message in what was received.
pub(super) fn decode<'m, T: Deserialize<'m>>(message: &'m [u8]) -> io::Result<T> {
    // The error's text says nothing of the content.
    postcard::from_bytes(message).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> (Line, Line) {
        let (one, other) = UnixStream::pair().unwrap();
        (Line(Arc::new(one)), Line(Arc::new(other)))
    }

    #[test]
    fn return_codes_go_both_ways() {
        for number in (1..0x400).chain([0x8000_0000, 0x8000_0042, u64::MAX]) {
            let Rv::Error(code) = Rv::from(number) else { continue };
            assert_eq!(RvError::from(Code::from(code)), code, "{number:#x}");
        }
    }

    #[test]
    fn a_message_of_any_size_arrives() {
        let (proxy, helper) = lines();
        for bytes in [0, 1, CHUNK_BYTES - 20, CHUNK_BYTES, 100_000] {
            let plaintext = vec![7; bytes];
            let sent = plaintext.clone();
            let sender = Line(Arc::clone(&proxy.0));
            let sending = std::thread::spawn(move || {
                let request = Request::Encrypt {
                    key: 5,
                    new_iv: NewIv::Given([3; 12]),
                    aad: Bytes(b"aad"),
                    plaintext: Bytes(&sent),
                };
                sender.send(&request).unwrap();
            });
            let message = helper.receive().unwrap();
            let Request::Encrypt { key: 5, new_iv: NewIv::Given(iv), aad, plaintext: arrived } =
                decode(&message).unwrap()
            else {
                panic!("another request arrived");
            };
            assert!(iv == [3; 12] && aad.0 == b"aad" && arrived.0 == plaintext, "{bytes}");
            sending.join().unwrap();
        }
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for sent in [&b""[..], b"\x01", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00\x01", b"\x05\x00\x00\x00ab"] {
            let (proxy, helper) = lines();
            (&*helper.0).write_all(sent).unwrap();
            drop(helper);
            assert!(proxy.receive().is_err(), "{sent:?}");
        }
        assert!(decode::<Request<'_>>(b"\xff").is_err());
        assert!(decode::<Result<Bytes<'_>, FailedCall>>(b"\x00\x09a").is_err());
    }
}
