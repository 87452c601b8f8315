//! Whatever is changed of a ciphertext: no plaintext.

use serde_json::{Value, json};
use xks_harness::request::{base64, bytes_of};
use xks_harness::{Answer, Http, Proxy, Setup};

use super::{decrypt, encrypt, refused};

const AAD: &[u8] = b"project=nile";

fn assert_refused(answer: &Answer, what: &str) {
    assert_eq!(answer.refusal(), refused(400, "InvalidCiphertextException"), "{what}");
}

/// `encrypted` with one field replaced.
fn with(encrypted: &Value, field: &str, bytes: &[u8]) -> Value {
    let mut changed = encrypted.clone();
    changed[field] = json!(base64(bytes));
    changed
}

#[tokio::test]
async fn every_changed_byte_is_an_invalid_ciphertext() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let encrypted =
        encrypt(&mut connection, "demo", b"forty bytes of plaintext, all of them .", Some(AAD)).await;
    for field in ["ciphertext", "initializationVector", "authenticationTag", "ciphertextMetadata"] {
        let original = bytes_of(&encrypted[field]);
        for index in 0..original.len() {
            for bit in [0x01, 0x80] {
                let mut bytes = original.clone();
                bytes[index] ^= bit;
                let changed = with(&encrypted, field, &bytes);
                let answer = decrypt(&mut connection, "demo", &changed, Some(AAD)).await;
                assert_refused(&answer, &format!("{field} {index} {bit}"));
            }
        }
    }
    for index in 0..AAD.len() {
        for bit in [0x01, 0x80] {
            let mut aad = AAD.to_vec();
            aad[index] ^= bit;
            let answer = decrypt(&mut connection, "demo", &encrypted, Some(&aad)).await;
            assert_refused(&answer, &format!("AAD {index} {bit}"));
        }
    }
    decrypt(&mut connection, "demo", &encrypted, Some(AAD)).await.ok();
}

#[tokio::test]
async fn every_changed_byte_of_a_long_ciphertext_is_noticed_wherever_it_stands() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::One).await;
    let aad = [6; 8192];
    let encrypted = encrypt(&mut connection, "demo", &[5; 4300], Some(&aad)).await;
    let ciphertext = bytes_of(&encrypted["ciphertext"]);
    for index in (0..4300).step_by(430).chain([4298, 4299]) {
        let mut bytes = ciphertext.clone();
        bytes[index] ^= 4;
        let answer =
            decrypt(&mut connection, "demo", &with(&encrypted, "ciphertext", &bytes), Some(&aad)).await;
        assert_refused(&answer, &format!("ciphertext {index}"));
    }
    for index in (0..8192).step_by(1024).chain([8190, 8191]) {
        let mut changed = aad;
        changed[index] ^= 4;
        assert_refused(
            &decrypt(&mut connection, "demo", &encrypted, Some(&changed)).await,
            &format!("AAD {index}"),
        );
    }
}

#[tokio::test]
async fn other_lengths_are_invalid_ciphertexts() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let encrypted = encrypt(&mut connection, "demo", b"seventeen bytes !", Some(AAD)).await;
    for field in ["ciphertext", "initializationVector", "authenticationTag", "ciphertextMetadata"] {
        let original = bytes_of(&encrypted[field]);
        let (shorter, longer) = (&original[..original.len() - 1], [&original[..], &[0]].concat());
        for (what, bytes) in
            [("shorter", shorter), ("longer", &longer), ("of zeros", &vec![0; original.len()])]
        {
            let changed = with(&encrypted, field, bytes);
            let answer = decrypt(&mut connection, "demo", &changed, Some(AAD)).await;
            assert_refused(&answer, &format!("{field} {what}"));
        }
    }
    let sixteen = [bytes_of(&encrypted["initializationVector"]), vec![0; 4]].concat();
    let answer =
        decrypt(&mut connection, "demo", &with(&encrypted, "initializationVector", &sixteen), Some(AAD))
            .await;
    assert_refused(&answer, "the IV filled up to 16 bytes");
}

#[tokio::test]
async fn parts_of_two_ciphertexts_do_not_mix() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let one = encrypt(&mut connection, "demo", b"one plaintext", Some(AAD)).await;
    let other = encrypt(&mut connection, "demo", b"two plaintext", Some(AAD)).await;
    for field in ["ciphertext", "initializationVector", "authenticationTag"] {
        let mixed = with(&one, field, &bytes_of(&other[field]));
        assert_refused(&decrypt(&mut connection, "demo", &mixed, Some(AAD)).await, field);
    }
}

#[tokio::test]
async fn the_aad_must_be_that_of_the_encryption() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    let with_aad = encrypt(&mut connection, "demo", b"secret", Some(AAD)).await;
    for aad in [None, Some(&b""[..]), Some(b"project=nil"), Some(b"project=nile "), Some(b"\0project=nile")] {
        assert_refused(&decrypt(&mut connection, "demo", &with_aad, aad).await, &format!("{aad:?}"));
    }
    let without = encrypt(&mut connection, "demo", b"secret", None).await;
    for aad in [&b"\0"[..], AAD] {
        assert_refused(&decrypt(&mut connection, "demo", &without, Some(aad)).await, &format!("{aad:?}"));
    }
}

#[tokio::test]
async fn bytes_do_not_move_between_aad_and_metadata() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    for aad in [&b""[..], AAD] {
        let encrypted = encrypt(&mut connection, "demo", b"secret", Some(aad)).await;
        let metadata = bytes_of(&encrypted["ciphertextMetadata"]);
        for moved in 1..=metadata.len() {
            let longer_aad = [aad, &metadata[..moved]].concat();
            let mut changed = with(&encrypted, "ciphertextMetadata", &metadata[moved..]);
            let answer = decrypt(&mut connection, "demo", &changed, Some(&longer_aad)).await;
            assert_refused(&answer, &format!("{moved} bytes from metadata to AAD"));
            if moved == metadata.len() {
                changed.as_object_mut().unwrap().remove("ciphertextMetadata");
                let answer = decrypt(&mut connection, "demo", &changed, Some(&longer_aad)).await;
                assert_refused(&answer, "all metadata to AAD, and the field gone");
            }
        }
        for moved in 1..=aad.len() {
            let (shorter, tail) = aad.split_at(aad.len() - moved);
            let changed = with(&encrypted, "ciphertextMetadata", &[tail, &metadata].concat());
            let answer = decrypt(&mut connection, "demo", &changed, Some(shorter)).await;
            assert_refused(&answer, &format!("{moved} bytes from AAD to metadata"));
        }
    }
}

#[tokio::test]
async fn a_ciphertext_of_another_key_is_refused_in_both_directions() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut connection = proxy.connect(Http::Two).await;
    for (key, other) in [("demo", "demo-2"), ("demo-2", "demo")] {
        let encrypted = encrypt(&mut connection, key, b"secret", None).await;
        assert_refused(&decrypt(&mut connection, other, &encrypted, None).await, other);
        decrypt(&mut connection, key, &encrypted, None).await.ok();
    }
}
