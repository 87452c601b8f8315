//! Faults in what encryption and decryption do.

use crate::support::*;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys::CK_GCM_PARAMS;
use pkcs11_fault::{Corrupt, Fault, Function, GcmIv, Random, Rule};
use std::collections::HashSet;

/// Encrypts without an IV: NULL and length 0.
fn encrypt_without_iv(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, Error> {
    session.encrypt(&Mechanism::VendorDefined(without_iv(&no_iv_parameters())), key, PLAINTEXT)
}

fn no_iv_parameters() -> CK_GCM_PARAMS {
    CK_GCM_PARAMS {
        pIv: std::ptr::null_mut(),
        ulIvLen: 0,
        ulIvBits: 0,
        pAAD: AAD.as_ptr().cast_mut(),
        ulAADLen: AAD.len().try_into().unwrap(),
        ulTagBits: 128,
    }
}

fn without_iv(parameters: &CK_GCM_PARAMS) -> VendorDefinedMechanism<'_> {
    VendorDefinedMechanism::new(MechanismType::AES_GCM, Some(parameters))
}

/// Encrypts in two parts.
fn encrypt_in_parts(session: &Session, mechanism: &Mechanism, key: ObjectHandle) -> Result<Vec<u8>, Error> {
    session.encrypt_init(mechanism, key)?;
    let mut ciphertext = session.encrypt_update(&PLAINTEXT[..5])?;
    ciphertext.extend(session.encrypt_update(&PLAINTEXT[5..])?);
    ciphertext.extend(session.encrypt_final()?);
    Ok(ciphertext)
}

fn flipped(mut bytes: Vec<u8>, index: usize) -> Vec<u8> {
    bytes[index] ^= 1;
    bytes
}

staged! {
    fn a_ciphertext_or_tag_is_corrupted(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let right = encrypt(&session, key).unwrap();
        for (part, index) in [(Corrupt::Ciphertext, 0), (Corrupt::Tag, right.len() - 1)] {
            let rule = Rule::new(Fault::Corrupt(part));
            stage.rule(&rule);
            let corrupted = encrypt(&session, key).unwrap();
            // Once, although cryptoki asked for the length first.
            assert_eq!(stage.fired(&rule), 1);
            assert_eq!(corrupted, flipped(right.clone(), index));
            assert_eq!(refusal(decrypt(&session, key, &corrupted)), RvError::GeneralError);
            stage.control.clear().unwrap();
            assert_eq!(encrypt(&session, key).unwrap(), right);
            assert_eq!(stage.fired(&rule), 1);
        }
    }

    fn a_ciphertext_in_parts_is_corrupted(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let right = encrypt(&session, key).unwrap();
        for (rule, index) in [
            (Rule::new(Fault::Corrupt(Corrupt::Ciphertext)).times(1), 0),
            (Rule::new(Fault::Corrupt(Corrupt::Tag)), right.len() - 1),
        ] {
            stage.rule(&rule);
            let mut iv = IV;
            let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, AAD, 128.into()).unwrap());
            assert_eq!(encrypt_in_parts(&session, &mechanism, key).unwrap(), flipped(right.clone(), index));
            assert_eq!(stage.fired(&rule), 1);
        }
        stage.control.clear().unwrap();
        assert_works(&session, key);
    }

    fn an_empty_ciphertext_is_not_corrupted(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let mut iv = IV;
        let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, AAD, 128.into()).unwrap());
        let right = session.encrypt(&mechanism, key, b"").unwrap();
        let rule = Rule::new(Fault::Corrupt(Corrupt::Ciphertext));
        stage.rule(&rule);
        assert_eq!(session.encrypt(&mechanism, key, b"").unwrap(), right);
        assert_eq!(stage.fired(&rule), 0);
    }

    fn a_plaintext_is_corrupted(stage) {
        let token = stage.token();
        let session = token.log_in();
        let (key, other) = (make_key(&session, "key"), make_key(&session, "other"));
        let (ciphertext, of_other) = (encrypt(&session, key).unwrap(), encrypt(&session, other).unwrap());
        let rule = Rule::new(Fault::Corrupt(Corrupt::Plaintext)).label("key");
        stage.rule(&rule);
        assert_eq!(decrypt(&session, key, &ciphertext).unwrap(), flipped(PLAINTEXT.to_vec(), 0));
        assert_eq!(decrypt(&session, other, &of_other).unwrap(), PLAINTEXT);
        assert_eq!(stage.fired(&rule), 1);
        stage.control.clear().unwrap();
        assert_eq!(decrypt(&session, key, &ciphertext).unwrap(), PLAINTEXT);
    }

    fn a_plaintext_is_said_to_be_shorter(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let ciphertext = encrypt(&session, key).unwrap();
        let rule = Rule::new(Fault::Corrupt(Corrupt::Length)).label("key");
        stage.rule(&rule);
        assert_eq!(decrypt(&session, key, &ciphertext).unwrap(), PLAINTEXT[..PLAINTEXT.len() - 1]);
        assert_eq!(stage.fired(&rule), 1);
        stage.control.clear().unwrap();
        assert_eq!(decrypt(&session, key, &ciphertext).unwrap(), PLAINTEXT);
    }

    fn a_label_holds_another_value(stage) {
        let token = stage.token();
        let session = token.log_in();
        let (key, other) = (make_key(&session, "key"), make_key(&session, "other"));
        let right = encrypt(&session, key).unwrap();
        let value = |session: &Session, key| session.get_attributes(key, &[AttributeType::Value]).unwrap();
        let right_value = value(&session, key);
        let objects = session.find_objects(&[]).unwrap().len();
        let rule = Rule::new(Fault::OtherValue).label("key");
        stage.rule(&rule);
        let wrong = encrypt(&session, key).unwrap();
        assert_ne!(wrong, right);
        assert_eq!(refusal(decrypt(&session, key, &right)), RvError::GeneralError);
        // Consistent with itself, in every session.
        assert_eq!(decrypt(&token.open(), key, &wrong).unwrap(), PLAINTEXT);
        assert_ne!(value(&session, key), right_value);
        assert_works(&session, other);
        // What stands in is not found, and everything else about the key is as before.
        assert_eq!(session.find_objects(&[]).unwrap().len(), objects);
        assert_eq!(find_key(&session, "key"), key);
        assert_eq!(session.get_attributes(key, &[AttributeType::Label]).unwrap(), [Attribute::Label(b"key".to_vec())]);
        assert!(stage.fired(&rule) >= 3);
        stage.control.clear().unwrap();
        assert_eq!(encrypt(&session, key).unwrap(), right);
        assert_eq!(value(&session, key), right_value);
        assert_eq!(refusal(decrypt(&session, key, &wrong)), RvError::GeneralError);
    }

    fn only_an_aes_key_has_another_value(stage) {
        let token = stage.token();
        let session = token.log_in();
        let template = [
            Attribute::Label(b"key".to_vec()),
            Attribute::ValueLen(32.into()),
            Attribute::Sign(true),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
        ];
        let key = session.generate_key(&Mechanism::GenericSecretKeyGen, &template).unwrap();
        let right = session.sign(&Mechanism::Sha256Hmac, key, PLAINTEXT).unwrap();
        let rule = Rule::new(Fault::OtherValue).label("key");
        stage.rule(&rule);
        assert_eq!(session.sign(&Mechanism::Sha256Hmac, key, PLAINTEXT).unwrap(), right);
        assert_eq!(stage.fired(&rule), 0);
    }

    fn the_other_value_outlives_the_initialisation(stage) {
        let token = stage.token();
        let rule = Rule::new(Fault::OtherValue).label("key");
        stage.rule(&rule);
        let wrong = {
            let session = token.log_in();
            let key = make_key(&session, "key");
            encrypt(&session, key).unwrap()
        };
        token.pkcs11.finalize().unwrap();
        let token = Token::find(stage.load(), "first");
        let session = token.log_in();
        assert_eq!(decrypt(&session, find_key(&session, "key"), &wrong).unwrap(), PLAINTEXT);
    }

    fn substitutes_do_not_cut_a_search_short(stage) {
        let token = stage.token();
        let session = token.log_in();
        stage.rule(&Rule::new(Fault::OtherValue).label("key"));
        // Keys and substitutes in turn, so that every page of the token's answer has some of both.
        let make_and_use = |_| {
            let key = make_key(&session, "key");
            encrypt(&session, key).unwrap();
            key
        };
        let mut keys: Vec<_> = (0..25).map(make_and_use).collect();
        let mut found = session.find_objects(&[Attribute::KeyType(KeyType::AES)]).unwrap();
        keys.sort_by_key(ObjectHandle::handle);
        found.sort_by_key(ObjectHandle::handle);
        assert_eq!(found, keys);
    }

    fn an_iv_is_written_back(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let rule = Rule::new(Fault::GcmIv(GcmIv::WrittenBack));
        stage.rule(&rule);
        let mut seen = HashSet::new();
        for _ in 0..3 {
            let mut iv = [0; 12];
            let ciphertext = encrypt_with(&session, key, &mut iv).unwrap();
            assert_eq!(ciphertext.len(), PLAINTEXT.len() + TAG_BYTES);
            assert!(iv != [0; 12] && seen.insert(iv), "{iv:?}");
            assert_eq!(decrypt_with(&session, key, &iv, &ciphertext).unwrap(), PLAINTEXT);
        }
        assert_eq!(stage.fired(&rule), 3);
        // An IV of the caller's own is refused, and leaves no operation behind.
        assert_eq!(refusal(encrypt_with(&session, key, &mut [7; 12])), RvError::MechanismParamInvalid);
        assert_eq!(refusal(encrypt_with(&session, key, &mut [0; 16])), RvError::MechanismParamInvalid);
        assert_eq!(refusal(encrypt_without_iv(&session, key)), RvError::MechanismParamInvalid);
        stage.control.clear().unwrap();
        let mut iv = [7; 12];
        encrypt_with(&session, key, &mut iv).unwrap();
        assert_eq!(iv, [7; 12]);
    }

    fn an_iv_is_written_back_when_the_last_part_is_done(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        stage.rule(&Rule::new(Fault::GcmIv(GcmIv::WrittenBack)));
        let mut iv = [0; 12];
        let mut mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, AAD, 128.into()).unwrap());
        session.encrypt_init(&mechanism, key).unwrap();
        let mut ciphertext = session.encrypt_update(PLAINTEXT).unwrap();
        let Mechanism::AesGcm(parameters) = &mut mechanism else { unreachable!() };
        assert_eq!(parameters.iv(), [0; 12]);
        ciphertext.extend(session.encrypt_final().unwrap());
        assert_ne!(parameters.iv(), [0; 12]);
        let iv = parameters.iv().to_vec();
        assert_eq!(decrypt_with(&session, key, &iv, &ciphertext).unwrap(), PLAINTEXT);
    }

    fn a_zeroed_iv_is_used_as_it_is(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let rule = Rule::new(Fault::GcmIv(GcmIv::Zeros));
        stage.rule(&rule);
        for given in [[0; 12], [7; 12]] {
            let mut iv = given;
            let ciphertext = encrypt_with(&session, key, &mut iv).unwrap();
            assert_eq!(iv, given);
            assert_eq!(decrypt_with(&session, key, &[0; 12], &ciphertext).unwrap(), PLAINTEXT);
        }
        assert_eq!(refusal(encrypt_without_iv(&session, key)), RvError::MechanismParamInvalid);
        assert_eq!(stage.fired(&rule), 3);
        stage.control.clear().unwrap();
        assert_works(&session, key);
    }

    fn an_iv_is_appended(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let rule = Rule::new(Fault::GcmIv(GcmIv::Appended));
        stage.rule(&rule);
        let mut seen = HashSet::new();
        for in_parts in [false, false, true] {
            let parameters = no_iv_parameters();
            let mechanism = Mechanism::VendorDefined(without_iv(&parameters));
            let output = if in_parts {
                encrypt_in_parts(&session, &mechanism, key)
            } else {
                session.encrypt(&mechanism, key, PLAINTEXT)
            };
            let output = output.unwrap();
            assert_eq!(output.len(), PLAINTEXT.len() + TAG_BYTES + 16);
            let (ciphertext, iv) = output.split_at(PLAINTEXT.len() + TAG_BYTES);
            assert!(seen.insert(iv.to_vec()) && iv != [0; 16]);
            assert_eq!(decrypt_with(&session, key, iv, ciphertext).unwrap(), PLAINTEXT);
        }
        assert_eq!(stage.fired(&rule), 3);
        assert_eq!(refusal(encrypt_with(&session, key, &mut [0; 12])), RvError::MechanismParamInvalid);
        // An empty IV that is not NULL is one of the caller's own.
        assert_eq!(refusal(encrypt_with(&session, key, &mut [])), RvError::MechanismParamInvalid);
        stage.control.clear().unwrap();
        assert_works(&session, key);
    }

    fn a_corrupted_tag_is_the_tag_and_not_the_appended_iv(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        stage.rule(&Rule::new(Fault::GcmIv(GcmIv::AppendedRepeated)));
        let right = encrypt_without_iv(&session, key).unwrap();
        let tag = Rule::new(Fault::Corrupt(Corrupt::Tag));
        stage.control.write(&[Rule::new(Fault::GcmIv(GcmIv::AppendedRepeated)), tag]).unwrap();
        assert_eq!(encrypt_without_iv(&session, key).unwrap(), flipped(right, PLAINTEXT.len() + TAG_BYTES - 1));
    }

    fn an_iv_is_repeated(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let rule = Rule::new(Fault::GcmIv(GcmIv::Repeated));
        stage.rule(&rule);
        let [mut first, mut second] = [[0; 12]; 2];
        let ciphertext = encrypt_with(&session, key, &mut first).unwrap();
        assert_eq!(encrypt_with(&session, key, &mut second).unwrap(), ciphertext);
        assert!(first == second && first != [0; 12]);
        assert_eq!(decrypt_with(&session, key, &first, &ciphertext).unwrap(), PLAINTEXT);
        assert_eq!(stage.fired(&rule), 2);

        let rule = Rule::new(Fault::GcmIv(GcmIv::AppendedRepeated));
        stage.rule(&rule);
        let output = encrypt_without_iv(&session, key).unwrap();
        assert_eq!(encrypt_without_iv(&session, key).unwrap(), output);
        let (ciphertext, iv) = output.split_at(PLAINTEXT.len() + TAG_BYTES);
        assert_eq!(decrypt_with(&session, key, iv, ciphertext).unwrap(), PLAINTEXT);
        assert_eq!(stage.fired(&rule), 2);
        stage.control.clear().unwrap();
        assert_works(&session, key);
    }

    fn a_random_source_is_none(stage) {
        let token = stage.token();
        let session = token.open();
        for (random, is_zero) in [(Random::Zeros, true), (Random::Repeated, false)] {
            let rule = Rule::new(Fault::Random(random));
            stage.rule(&rule);
            let bytes = session.generate_random_vec(300).unwrap();
            assert_eq!(session.generate_random_vec(300).unwrap(), bytes);
            assert_eq!(bytes == [0; 300], is_zero);
            assert_eq!(stage.fired(&rule), 2);
            stage.control.clear().unwrap();
            assert_ne!(session.generate_random_vec(300).unwrap(), bytes);
        }
    }

    fn a_bad_tag_has_many_names(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let right = encrypt(&session, key).unwrap();
        let wrong = flipped(right.clone(), right.len() - 1);
        for (name, answer) in [
            ("CKR_GENERAL_ERROR", RvError::GeneralError),
            ("CKR_FUNCTION_FAILED", RvError::FunctionFailed),
            ("CKR_ENCRYPTED_DATA_INVALID", RvError::EncryptedDataInvalid),
            ("CKR_ENCRYPTED_DATA_LEN_RANGE", RvError::EncryptedDataLenRange),
        ] {
            let rule = Rule::new(Fault::BadTag(name.parse().unwrap())).label("key");
            stage.rule(&rule);
            assert_eq!(decrypt(&session, key, &right).unwrap(), PLAINTEXT);
            assert_eq!(stage.fired(&rule), 0);
            assert_eq!(refusal(decrypt(&session, key, &wrong)), answer);
            assert_eq!(stage.fired(&rule), 1);
        }
        stage.control.clear().unwrap();
        assert_eq!(refusal(decrypt(&session, key, &wrong)), RvError::GeneralError);
    }

    /// A failure of another kind is not a bad tag.
    fn only_a_decryption_has_a_bad_tag(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let rule = Rule::new(Fault::BadTag("CKR_ENCRYPTED_DATA_INVALID".parse().unwrap()));
        stage.control.write(&[rule.clone(), Rule::new(fail("CKR_GENERAL_ERROR")).on(Function::Decrypt)]).unwrap();
        let ciphertext = encrypt(&session, key).unwrap();
        assert_eq!(refusal(decrypt(&session, key, &ciphertext)), RvError::GeneralError);
        stage.rule(&rule);
        assert_eq!(refusal(session.decrypt_final()), RvError::OperationNotInitialized);
        assert_eq!(stage.fired(&rule), 0);
    }
}
