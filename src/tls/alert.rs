//! A fatal alert behind the end of a handshake. rustls offers none but close_notify, so the record is made here, of what
//! rustls gives out for kernels that take over the encryption.

use rustls::crypto::cipher::{AeadKey, Iv, MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion, ServerConnection,
    SupportedCipherSuite,
};

/// Bytes of a TLS 1.2 IV that come from the handshake and stand in no record (RFC 5288, section 3).
const TLS12_SALT_BYTES: usize = 4;

/// The record that ends `connection` with the alert handshake_failure, to be sent as it is and before the connection closes.
///
/// # Errors
/// Where `connection` has not ended its handshake, or still has something to send.
pub fn handshake_failure(connection: ServerConnection) -> Result<Vec<u8>, Error> {
    const FATAL: u8 = 2;
    let suite = connection.negotiated_cipher_suite().ok_or(Error::HandshakeNotComplete)?;
    let (sequence_number, secrets) = connection.dangerous_extract_secrets()?.tx;
    let mut encrypter = encrypter(suite, secrets)?;
    let alert = [FATAL, AlertDescription::HandshakeFailure.into()];
    let message = OutboundPlainMessage {
        typ: ContentType::Alert,
        version: ProtocolVersion::TLSv1_2,
        payload: OutboundChunks::Single(&alert),
    };
    Ok(encrypter.encrypt(message, sequence_number)?.encode())
}

fn encrypter(
    suite: SupportedCipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageEncrypter>, Error> {
    let (key, iv): (AeadKey, Iv) = match secrets {
        ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
        _ => return Err(Error::General("no suite of ours".to_owned())),
    };
    match suite {
        SupportedCipherSuite::Tls13(suite) => Ok(suite.aead_alg.encrypter(key, iv)),
        SupportedCipherSuite::Tls12(suite) => {
            let (salt, explicit) = iv.as_ref().split_at(TLS12_SALT_BYTES);
            Ok(suite.aead_alg.encrypter(key, salt, explicit))
        }
    }
}
