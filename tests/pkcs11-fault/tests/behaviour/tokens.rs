//! Faults in what a token reports of itself.

use crate::support::*;
use cryptoki::error::RvError;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeInfo, AttributeType};
use cryptoki_sys::{
    CKA_CHECK_VALUE, CKA_VALUE_LEN, CKM_AES_GCM, CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID,
    CKR_FUNCTION_FAILED, CKR_OK,
};
use pkcs11_fault::{Ckr, Fault, Function, Hang, Rule, TokenFlag};
use std::thread;

staged! {
    fn token_flags_are_set(stage) {
        let token = stage.token();
        let flags = || {
            let info = token.pkcs11.get_token_info(token.slot).unwrap();
            [info.user_pin_count_low(), info.user_pin_final_try(), info.user_pin_locked()]
        };
        for (index, flag) in TokenFlag::ALL.iter().enumerate() {
            let rule = Rule::new(Fault::TokenFlag(*flag)).token("first");
            stage.rule(&rule);
            let mut expected = [false; 3];
            expected[index] = true;
            assert_eq!(flags(), expected);
            assert_eq!(stage.fired(&rule), 1);
        }
        let all: Vec<_> = TokenFlag::ALL.iter().map(|flag| Rule::new(Fault::TokenFlag(*flag))).collect();
        stage.control.write(&all).unwrap();
        assert_eq!(flags(), [true; 3]);
        stage.control.clear().unwrap();
        assert_eq!(flags(), [false; 3]);
    }

    fn a_mechanism_is_missing(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let all = token.pkcs11.get_mechanism_list(token.slot).unwrap();
        assert!(all.contains(&MechanismType::AES_GCM));
        let rule = Rule::new(Fault::HideMechanism(pkcs11_fault::Mechanism(CKM_AES_GCM)));
        stage.rule(&rule);
        let expected: Vec<_> = all.iter().copied().filter(|mechanism| *mechanism != MechanismType::AES_GCM).collect();
        assert_eq!(token.pkcs11.get_mechanism_list(token.slot).unwrap(), expected);
        assert_eq!(refusal(token.pkcs11.get_mechanism_info(token.slot, MechanismType::AES_GCM)), RvError::MechanismInvalid);
        assert_eq!(refusal(encrypt(&session, key)), RvError::MechanismInvalid);
        token.pkcs11.get_mechanism_info(token.slot, MechanismType::AES_ECB).unwrap();
        session.digest(&Mechanism::Sha256, PLAINTEXT).unwrap();
        assert!(stage.fired(&rule) >= 3);
        stage.control.clear().unwrap();
        assert_eq!(token.pkcs11.get_mechanism_list(token.slot).unwrap(), all);
        assert_works(&session, key);
    }

    fn sessions_are_limited(stage) {
        let token = stage.token();
        let one = token.open();
        let rule = Rule::new(Fault::SessionLimit(2));
        stage.rule(&rule);
        let two = token.open();
        assert_eq!(refusal(token.pkcs11.open_ro_session(token.slot)), RvError::SessionCount);
        assert_eq!(refusal(token.pkcs11.open_rw_session(token.slot)), RvError::SessionCount);
        assert_eq!(stage.fired(&rule), 2);
        one.close().unwrap();
        let three = token.open();
        assert_eq!(refusal(token.pkcs11.open_rw_session(token.slot)), RvError::SessionCount);
        stage.control.clear().unwrap();
        let four = token.open();
        for session in [two, three, four] {
            session.generate_random_vec(4).unwrap();
        }
    }

    fn only_read_write_sessions_are_given(stage) {
        let token = stage.token();
        let rule = Rule::new(Fault::RefuseReadOnly(Ckr(CKR_FUNCTION_FAILED)));
        stage.rule(&rule);
        assert_eq!(refusal(token.pkcs11.open_ro_session(token.slot)), RvError::FunctionFailed);
        let session = token.pkcs11.open_rw_session(token.slot).unwrap();
        session.generate_random_vec(4).unwrap();
        assert_eq!(stage.fired(&rule), 1);
        stage.control.clear().unwrap();
        token.pkcs11.open_ro_session(token.slot).unwrap();
    }

    /// Sessions that the token is still opening count as well.
    fn a_limit_holds_against_sessions_opened_at_once(stage) {
        let inner = stage.instance("inner", &softhsm());
        let outer = stage.instance("outer", &inner.module);
        let token = Token::new(load(&outer.module), "first");
        let limit = Rule::new(Fault::SessionLimit(3));
        let hang = Rule::new(Fault::Hang(Hang::UntilRemoved)).on(Function::OpenSession);
        outer.control.write(std::slice::from_ref(&limit)).unwrap();
        inner.control.write(&[hang]).unwrap();
        let opened: Vec<_> = thread::scope(|scope| {
            let open = || token.pkcs11.open_ro_session(token.slot);
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            eventually("all are answered or inside", || {
                outer.counts().fired(&limit) + inner.counts().inside(Function::OpenSession) == 8
            });
            inner.control.clear().unwrap();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(opened.iter().filter(|session| session.is_ok()).count(), 3);
        assert_eq!(outer.counts().fired(&limit), 5);
    }

    fn an_attribute_is_hidden(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let types = [AttributeType::Label, AttributeType::ValueLen, AttributeType::Encrypt];
        let right = session.get_attributes(key, &types).unwrap();
        assert_eq!(right.len(), 3);
        let hide = |answer| Fault::HideAttribute { attribute: pkcs11_fault::Attribute(CKA_VALUE_LEN), answer: Ckr(answer) };
        for answer in [CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_SENSITIVE, CKR_OK] {
            let rule = Rule::new(hide(answer)).label("key");
            stage.rule(&rule);
            let info = session.get_attribute_info(key, &types).unwrap();
            match answer {
                CKR_ATTRIBUTE_TYPE_INVALID => assert!(matches!(info[1], AttributeInfo::TypeInvalid)),
                CKR_ATTRIBUTE_SENSITIVE => assert!(matches!(info[1], AttributeInfo::Sensitive)),
                _ => assert!(matches!(info[1], AttributeInfo::Unavailable)),
            }
            let shown = session.get_attributes(key, &types).unwrap();
            assert_eq!(shown, [Attribute::Label(b"key".to_vec()), Attribute::Encrypt(true)]);
            assert!(stage.fired(&rule) >= 2);
            assert_works(&session, key);
        }
        stage.control.clear().unwrap();
        assert_eq!(session.get_attributes(key, &types).unwrap(), right);
    }

    /// A check value, where the token has one, is that of the value that it works with.
    fn a_check_value_goes_with_the_value(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let check_value = || session.get_attributes(key, &[AttributeType::CheckValue]).unwrap();
        let right = check_value();
        assert_eq!(right.len(), 1, "SoftHSM2 makes check values");
        stage.rule(&Rule::new(Fault::OtherValue).label("key"));
        assert_ne!(check_value(), right);
        let hide = Fault::HideAttribute { attribute: pkcs11_fault::Attribute(CKA_CHECK_VALUE), answer: Ckr(CKR_ATTRIBUTE_TYPE_INVALID) };
        stage.rule(&Rule::new(hide));
        assert!(check_value().is_empty());
        stage.control.clear().unwrap();
        assert_eq!(check_value(), right);
    }
}
