//! A ciphertext blob taken apart layer by layer, to show who saw which bytes.

use zeroize::Zeroizing;

use super::Stop;
use super::folder::{EXTERNAL_KEY_ID, Folder};
use super::terminal::{Terminal, Tone};
use crate::api::Service;
use crate::kms::blob::{Blob, Layers};
use crate::kms::context::EncryptionContext;
use crate::kms::crypto;
use crate::xks::{Ciphertext, Client, Proxy, RequestMetadata};

/// Every layer of one blob.
pub(super) struct Peeled {
    /// What the caller gave or got.
    pub(super) plaintext: Zeroizing<Vec<u8>>,
    /// Encrypted under KMS's own key material: the proxy's plaintext.
    pub(super) inner: Zeroizing<Vec<u8>>,
    /// Encrypted again in the HSM.
    pub(super) outer: Ciphertext,
    /// What binds both layers to the encryption context.
    pub(super) aad: Vec<u8>,
    /// What the caller keeps.
    pub(super) blob: Vec<u8>,
}

/// Takes a blob apart by other means than KMS's Decrypt: the proxy opens the outer layer, the key material in this KMS's
/// memory the inner one.
pub(super) async fn peel(
    service: &Service,
    client: &Client,
    folder: &Folder,
    blob: &[u8],
    context: &EncryptionContext,
) -> Result<Peeled, Stop> {
    let not_proven = |text: String| Stop::NotProven(text);
    let Blob { key_id, layers } = Blob::decode(blob).map_err(|error| not_proven(error.to_string()))?;
    let Layers::Outer(outer) = layers else {
        return Err(not_proven("the ciphertext blob has no layer of the proxy's".to_owned()));
    };
    let home = &service.settings.home;
    let secret = &folder.secret_access_key;
    let proxy = Proxy::new("localhost", &folder.uri_path, &folder.access_key_id, secret, &home.region);
    let metadata = RequestMetadata {
        aws_principal_arn: Some(format!("arn:aws:iam::{}:user/auditor", home.account_id)),
        kms_key_arn: Some(home.key_arn(&key_id)),
        kms_operation: Some("Decrypt".to_owned()),
        kms_request_id: Some("demo-takes-the-blob-apart".to_owned()),
        ..RequestMetadata::default()
    };
    let aad = context.canonical();
    let exchange = client.decrypt(&proxy, EXTERNAL_KEY_ID, &metadata, &outer, Some(&aad)).await;
    let inner = exchange
        .outcome
        .map_err(|failure| not_proven(format!("the proxy opens the outer layer: {failure}")))?;
    let material = service.read(|state, _| state.keys.get(&key_id).map(|key| key.material.clone()));
    let opened = material.and_then(|material| crypto::open(&key_id, &material, context, &inner));
    let plaintext =
        opened.ok_or_else(|| not_proven("KMS's key material opens the inner layer".to_owned()))?;
    Ok(Peeled { plaintext, inner, outer, aad, blob: blob.to_vec() })
}

impl Peeled {
    pub(super) fn show(&self, terminal: &Terminal) -> std::io::Result<()> {
        terminal.bytes("data key", &self.plaintext, Tone::Secret, "the caller and KMS")?;
        terminal.bytes(
            "encrypted by KMS",
            &self.inner,
            Tone::Once,
            "the proxy and the HSM, as their plaintext",
        )?;
        terminal.bytes("encrypted again by the HSM", &self.outer.ciphertext, Tone::Twice, "everybody")?;
        terminal.bytes("  initialization vector", &self.outer.iv, Tone::Plain, "made by the proxy")?;
        terminal.bytes("  authentication tag", &self.outer.tag, Tone::Plain, "made by the HSM")?;
        let metadata = self.outer.metadata.as_deref().unwrap_or_default();
        terminal.bytes(
            "  ciphertext metadata",
            metadata,
            Tone::Plain,
            "made by the proxy: the key's version",
        )?;
        terminal.bytes(
            "  authenticated along",
            &self.aad,
            Tone::Plain,
            "made by KMS of the encryption context",
        )?;
        terminal.bytes("ciphertext blob", &self.blob, Tone::Twice, "what the caller keeps")
    }
}

/// Whether `needle` occurs in `haystack`, or any 8 bytes of it do.
pub(super) fn share_bytes(haystack: &[u8], needle: &[u8]) -> bool {
    needle.windows(8).any(|window| haystack.windows(8).any(|other| other == window))
}

#[cfg(test)]
mod tests {
    use super::share_bytes;

    #[test]
    fn eight_common_bytes_are_found() {
        assert!(share_bytes(b"xx12345678xx", b"yyy12345678"));
        assert!(!share_bytes(b"xx1234567xx", b"yyy12345678"));
        assert!(!share_bytes(b"", b"yyy12345678"));
    }
}
