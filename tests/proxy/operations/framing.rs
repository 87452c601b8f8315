//! AES-GCM and the framing of its AAD, against an implementation that shares nothing with the proxy's.

use std::sync::Arc;

use aes_gcm::aead::consts::{U12, U16};
use aes_gcm::aead::{Aead, Payload};
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, KeyInit};
use sha2::{Digest, Sha256};
use xks_harness::request::bytes_of;
use xks_harness::{Connection, Http, Proxy, Setup, SoftHsm};

use super::{decrypt, encrypt, listed_key, refused};
use crate::oracle::{Key, answer_of, frame, import, seal};

const KEY: Key = *b"a key whose value the test knows";
const METADATA: [u8; 5] = [1, 0, 0, 0, 1];

/// A proxy whose key `known` has the value [`KEY`], and a connection to it.
async fn start() -> (Proxy, Connection) {
    let token = SoftHsm::with_keys();
    import(&token, "known", &KEY);
    let setup = Setup { keys: listed_key("known", ""), ..Setup::default() };
    let proxy = Proxy::start_on(&setup, Arc::new(token)).await;
    let connection = proxy.connect(Http::Two).await;
    (proxy, connection)
}

#[tokio::test]
async fn an_independent_aes_gcm_decrypts_under_the_specified_framing() {
    let (_proxy, mut connection) = start().await;
    let cipher = AesGcm::<Aes256, U12>::new(&KEY.into());
    for aad in [None, Some(&b""[..]), Some(b"project=nile"), Some(&[7; 256]), Some(&[8; 8192])] {
        for plaintext in [&b"x"[..], b"Hello World!", &[9; 4300]] {
            let encrypted = encrypt(&mut connection, "known", plaintext, aad).await;
            let metadata = bytes_of(&encrypted["ciphertextMetadata"]);
            assert_eq!(metadata, METADATA);
            let iv = bytes_of(&encrypted["initializationVector"]);
            let sealed =
                [bytes_of(&encrypted["ciphertext"]), bytes_of(&encrypted["authenticationTag"])].concat();
            let framed = frame(aad.unwrap_or_default(), &metadata);
            let payload = Payload { msg: &sealed, aad: &framed };
            let opened = cipher.decrypt(iv.as_slice().try_into().unwrap(), payload);
            assert_eq!(opened.unwrap(), plaintext);
        }
    }
}

#[tokio::test]
async fn a_ciphertext_made_by_hand_decrypts_with_ivs_of_12_and_of_16_bytes() {
    let (_proxy, mut connection) = start().await;
    for aad in [None, Some(&b"project=nile"[..]), Some(&[8; 8192])] {
        for plaintext in [&b"x"[..], &[9; 4300]] {
            let framed = frame(aad.unwrap_or_default(), &METADATA);
            let short = [0xa5; 12];
            let long = [0x5a; 16];
            for answer in [
                answer_of(&short, &seal::<U12>(&KEY, &short, &framed, plaintext), &METADATA),
                answer_of(&long, &seal::<U16>(&KEY, &long, &framed, plaintext), &METADATA),
            ] {
                let decrypted = decrypt(&mut connection, "known", &answer, aad).await.ok();
                assert_eq!(bytes_of(&decrypted["plaintext"]), plaintext);
            }
        }
    }
}

/// Each of these is AES-GCM under the right key: only what was authenticated along differs.
#[tokio::test]
async fn no_other_framing_decrypts() {
    let (_proxy, mut connection) = start().await;
    let (aad, iv) = (b"project=nile", [3; 12]);
    let digest = Sha256::digest(aad);
    let others = [
        ("none at all", Vec::new()),
        ("the AAD alone", aad.to_vec()),
        ("no lengths", [&aad[..], &METADATA].concat()),
        ("metadata first", frame(&METADATA, aad)),
        ("little-endian", [&[12, 0], &aad[..], &[5], &METADATA].concat()),
        ("lengths without the metadata", frame(aad, b"")),
        ("a hash for the AAD", frame(&digest, &METADATA)),
        ("a hash, and the AAD's length", [&[0, 12], &digest[..], &[5], &METADATA].concat()),
    ];
    for (what, framed) in others {
        let answer = answer_of(&iv, &seal::<U12>(&KEY, &iv, &framed, b"secret"), &METADATA);
        let refusal = decrypt(&mut connection, "known", &answer, Some(aad)).await.refusal();
        assert_eq!(refusal, refused(400, "InvalidCiphertextException"), "{what}");
    }
    let answer = answer_of(&iv, &seal::<U12>(&KEY, &iv, &frame(aad, &METADATA), b"secret"), &METADATA);
    decrypt(&mut connection, "known", &answer, Some(aad)).await.ok();
}

/// Metadata that this proxy never makes selects neither framing nor key version, though tag and framing are right.
#[tokio::test]
async fn metadata_of_another_format_or_version_is_refused_though_its_tag_is_right() {
    let (_proxy, mut connection) = start().await;
    let iv = [4; 12];
    let others: [&[u8]; 9] = [
        b"",
        &[1],
        &[0, 0, 0, 0, 1],
        &[2, 0, 0, 0, 1],
        &[1, 0, 0, 0, 0],
        &[1, 0, 0, 0, 2],
        &[1, 1, 0, 0, 0],
        &[1, 0, 0, 0, 1, 0],
        &[1; 20],
    ];
    for metadata in others {
        let answer = answer_of(&iv, &seal::<U12>(&KEY, &iv, &frame(b"aad", metadata), b"secret"), metadata);
        let refusal = decrypt(&mut connection, "known", &answer, Some(b"aad")).await.refusal();
        assert_eq!(refusal, refused(400, "InvalidCiphertextException"), "{metadata:?}");
    }
}
