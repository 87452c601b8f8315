//! Faults after which an application has to do something: open sessions, log in, search, begin anew.

use crate::support::*;
use cryptoki::error::RvError;
use cryptoki::object::Attribute;
use pkcs11_fault::{Fault, Function, Hang, Rule};
use std::thread;

staged! {
    fn dropped_sessions_stay_invalid(stage) {
        let token = stage.token();
        let (one, two) = (token.log_in(), token.open());
        let key = make_key(&one, "key");
        let rule = Rule::new(Fault::DropSessions);
        stage.rule(&rule);
        assert_eq!(refusal(encrypt(&one, key)), RvError::SessionHandleInvalid);
        assert_eq!(refusal(two.get_session_info()), RvError::SessionHandleInvalid);
        assert_eq!(stage.fired(&rule), 1);
        // New sessions work while the rule is still there: it is spent. The login went with the old ones.
        let three = token.open();
        assert!(find_keys(&three, "key").unwrap().is_empty());
        log_in(&three).unwrap();
        assert_works(&three, find_key(&three, "key"));
        assert!(three.handle() != one.handle() && three.handle() != two.handle());
        stage.control.clear().unwrap();
        assert_eq!(refusal(one.get_session_info()), RvError::SessionHandleInvalid);
        assert_works(&three, find_key(&three, "key"));
        assert_eq!(refusal(one.close()), RvError::SessionHandleInvalid);
    }

    /// A call that is at work in the token keeps the real session, and neither the login nor the handle.
    fn a_dropped_session_is_closed_when_its_last_call_returns(stage) {
        let inner = stage.instance("inner", &softhsm());
        let outer = stage.instance("outer", &inner.module);
        let token = Token::new(load(&outer.module), "first");
        let session = token.log_in();
        make_key(&session, "key");
        let number = session.handle();
        inner.control.write(&[Rule::new(Fault::Hang(Hang::UntilRemoved)).on(Function::GenerateRandom)]).unwrap();
        let at_work = thread::spawn(move || {
            let result = session.generate_random_vec(4);
            (session, result)
        });
        eventually("the call is in the token", || inner.counts().inside(Function::GenerateRandom) == 1);
        outer.control.write(&[Rule::new(Fault::DropSessions)]).unwrap();
        let other = token.open();
        assert_ne!(other.handle(), number);
        assert!(find_keys(&other, "key").unwrap().is_empty());
        let closed = inner.counts().calls(Function::CloseSession);
        inner.control.clear().unwrap();
        let (session, result) = at_work.join().unwrap();
        result.unwrap();
        assert_eq!(inner.counts().calls(Function::CloseSession), closed + 1);
        assert_eq!(refusal(session.get_session_info()), RvError::SessionHandleInvalid);
        log_in(&other).unwrap();
        assert_works(&other, find_key(&other, "key"));
    }

    fn sessions_are_dropped_at_the_chosen_call_and_token(stage) {
        let first = stage.token();
        let second = Token::new(first.pkcs11.clone(), "second");
        let (one, two) = (first.log_in(), second.log_in());
        let (key_one, key_two) = (make_key(&one, "key"), make_key(&two, "key"));
        let rule = Rule::new(Fault::DropSessions).on(Function::EncryptInit).token("second").after(1);
        stage.rule(&rule);
        assert_works(&two, key_two);
        assert_works(&one, key_one);
        two.get_session_info().unwrap();
        assert_eq!(refusal(encrypt(&two, key_two)), RvError::SessionHandleInvalid);
        assert_eq!(refusal(two.get_session_info()), RvError::SessionHandleInvalid);
        assert_works(&one, key_one);
        assert_eq!(stage.fired(&rule), 1);
    }

    fn sessions_drop_again_and_again_if_told(stage) {
        let token = stage.token();
        let rule = Rule::new(Fault::DropSessions).on(Function::GenerateRandom).times(3);
        stage.rule(&rule);
        for _ in 0..3 {
            assert_eq!(refusal(token.open().generate_random_vec(4)), RvError::SessionHandleInvalid);
        }
        token.open().generate_random_vec(4).unwrap();
        assert_eq!(stage.fired(&rule), 3);
    }

    fn a_forgotten_login_must_be_repeated(stage) {
        let token = stage.token();
        let (one, two) = (token.log_in(), token.open());
        let key = make_key(&one, "key");
        let rule = Rule::new(Fault::ForgetLogins);
        stage.rule(&rule);
        assert_eq!(refusal(encrypt(&one, key)), RvError::UserNotLoggedIn);
        assert_eq!(refusal(two.get_attributes(key, &[])), RvError::UserNotLoggedIn);
        // Private objects are out of sight, as for anybody who is not logged in.
        assert!(find_keys(&one, "key").unwrap().is_empty());
        stage.control.clear().unwrap();
        assert_eq!(refusal(encrypt(&two, key)), RvError::UserNotLoggedIn);
        assert_eq!(stage.fired(&rule), 1);
        let logins = stage.counts().calls(Function::Login);
        log_in(&two).unwrap();
        assert_eq!(stage.counts().calls(Function::Login), logins + 1);
        assert_works(&one, find_key(&two, "key"));
    }

    /// A rule that stands there from the beginning is not used up by calls before the login.
    fn logins_are_forgotten_only_once_there_are_any(stage) {
        let rule = Rule::new(Fault::ForgetLogins);
        stage.rule(&rule);
        let token = stage.token();
        let before = stage.fired(&rule);
        // The token was made with a login of its own, which is what the rule struck.
        assert_eq!(before, 1);
        stage.control.clear().unwrap();
        let session = token.open();
        // Put back after a call without it, the rule begins anew.
        stage.rule(&rule);
        session.generate_random_vec(4).unwrap();
        assert_eq!(stage.fired(&rule), before);
        log_in(&session).unwrap();
        assert_eq!(refusal(session.generate_key(&cryptoki::mechanism::Mechanism::AesKeyGen, &[])), RvError::UserNotLoggedIn);
        assert_eq!(stage.fired(&rule), before + 1);
    }

    fn invalid_handles_must_be_searched_again(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let rule = Rule::new(Fault::InvalidateHandles);
        stage.rule(&rule);
        assert_eq!(refusal(encrypt(&session, key)), RvError::KeyHandleInvalid);
        assert_eq!(refusal(session.get_attributes(key, &[])), RvError::ObjectHandleInvalid);
        let found = find_key(&session, "key");
        assert_ne!(found, key);
        assert_works(&session, found);
        assert_eq!(stage.fired(&rule), 1);
        stage.control.clear().unwrap();
        // The old handle stays what it is, and the new one too.
        assert_eq!(refusal(encrypt(&session, key)), RvError::KeyHandleInvalid);
        assert_eq!(find_key(&session, "key"), found);
        assert_works(&session, make_key(&session, "other"));
    }

    fn permuted_handles_lead_to_other_objects(stage) {
        let token = stage.token();
        let session = token.log_in();
        let (one, two) = (make_key(&session, "one"), make_key(&session, "two"));
        let (of_one, of_two) = (encrypt(&session, one).unwrap(), encrypt(&session, two).unwrap());
        let rule = Rule::new(Fault::PermuteHandles);
        stage.rule(&rule);
        assert_eq!(decrypt(&session, one, &of_two).unwrap(), PLAINTEXT);
        assert_eq!(decrypt(&session, two, &of_one).unwrap(), PLAINTEXT);
        assert_eq!(refusal(decrypt(&session, one, &of_one)), RvError::GeneralError);
        assert_eq!(session.get_attributes(one, &[cryptoki::object::AttributeType::Label]).unwrap(), [Attribute::Label(b"two".to_vec())]);
        // A new search is right: it finds each object under the handle that leads to it.
        assert_eq!((find_key(&session, "one"), find_key(&session, "two")), (two, one));
        assert_eq!(stage.fired(&rule), 1);
        stage.control.clear().unwrap();
        assert_eq!(decrypt(&session, one, &of_two).unwrap(), PLAINTEXT);
        assert_works(&session, find_key(&session, "one"));
    }

    /// One handle that the application holds is enough, if the token has another object of its kind.
    fn permuting_takes_in_objects_that_were_not_handed_out(stage) {
        let token = stage.token();
        let of_other = {
            let session = token.log_in();
            make_key(&session, "mine");
            let other = make_key(&session, "other");
            encrypt(&session, other).unwrap()
        };
        token.pkcs11.finalize().unwrap();
        let token = Token::find(stage.load(), "first");
        let session = token.log_in();
        let mine = find_key(&session, "mine");
        stage.rule(&Rule::new(Fault::PermuteHandles).on(Function::DecryptInit));
        assert_eq!(decrypt(&session, mine, &of_other).unwrap(), PLAINTEXT);
    }

    /// A rule that fired has permuted something.
    fn a_lonely_key_is_not_permuted(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let rule = Rule::new(Fault::PermuteHandles);
        stage.rule(&rule);
        assert_works(&session, key);
        assert_eq!(stage.counts().rule(&rule).map(|count| (count.fired, count.matched)), Some((0, 0)));
        let other = make_key(&session, "other");
        let ciphertext = encrypt(&session, key).unwrap();
        assert_eq!(stage.fired(&rule), 1);
        assert_eq!(refusal(decrypt(&session, other, &ciphertext)), RvError::GeneralError);
        assert_eq!((find_key(&session, "key"), find_key(&session, "other")), (other, key));
    }

    fn a_token_that_needs_reinitialisation(stage) {
        let token = stage.token();
        let session = token.log_in();
        make_key(&session, "key");
        let rule = Rule::new(Fault::NeedReinit("CKR_DEVICE_ERROR".parse().unwrap()));
        stage.rule(&rule);
        for _ in 0..3 {
            assert_eq!(refusal(session.generate_random_vec(4)), RvError::DeviceError);
            assert_eq!(refusal(token.pkcs11.open_rw_session(token.slot)), RvError::DeviceError);
            assert_eq!(refusal(token.pkcs11.get_all_slots()), RvError::DeviceError);
        }
        stage.control.clear().unwrap();
        // Neither the end of the rule nor C_Initialize alone helps.
        assert_eq!(refusal(session.generate_random_vec(4)), RvError::DeviceError);
        let arguments = cryptoki::context::CInitializeArgs::new(cryptoki::context::CInitializeFlags::OS_LOCKING_OK);
        assert!(token.pkcs11.initialize(arguments).is_err());
        assert_eq!(refusal(session.generate_random_vec(4)), RvError::DeviceError);
        assert_eq!(stage.fired(&rule), 1);
        std::mem::forget(session);
        token.pkcs11.finalize().unwrap();
        let token = Token::find(stage.load(), "first");
        let session = token.log_in();
        assert_works(&session, find_key(&session, "key"));
    }

    fn a_removed_token_comes_back(stage) {
        let first = stage.token();
        let second = Token::new(first.pkcs11.clone(), "second");
        let (one, two) = (first.log_in(), second.log_in());
        let (key_one, key_two) = (make_key(&one, "key"), make_key(&two, "key"));
        let pkcs11 = &first.pkcs11;
        let with_token = pkcs11.get_slots_with_token().unwrap();
        let rule = Rule::new(Fault::RemoveToken(None)).slot(first.slot.id());
        stage.rule(&rule);

        let left: Vec<_> = with_token.iter().copied().filter(|slot| *slot != first.slot).collect();
        assert_eq!(pkcs11.get_slots_with_token().unwrap(), left);
        assert_eq!(pkcs11.get_all_slots().unwrap().len(), with_token.len());
        assert!(!pkcs11.get_slot_info(first.slot).unwrap().token_present());
        assert!(pkcs11.get_slot_info(second.slot).unwrap().token_present());
        assert_eq!(refusal(pkcs11.get_token_info(first.slot)), RvError::TokenNotPresent);
        assert_eq!(refusal(pkcs11.open_ro_session(first.slot)), RvError::TokenNotPresent);
        assert_eq!(refusal(encrypt(&one, key_one)), RvError::DeviceRemoved);
        assert_eq!(refusal(one.get_session_info()), RvError::DeviceRemoved);
        assert_works(&two, key_two);
        assert!(stage.fired(&rule) >= 4);

        stage.control.clear().unwrap();
        assert_eq!(pkcs11.get_slots_with_token().unwrap(), with_token);
        assert!(pkcs11.get_slot_info(first.slot).unwrap().token_present());
        assert_eq!(pkcs11.get_token_info(first.slot).unwrap().label(), "first");
        // Its sessions went with it.
        assert_eq!(refusal(one.get_session_info()), RvError::SessionHandleInvalid);
        let session = first.log_in();
        assert_works(&session, find_key(&session, "key"));
        assert_works(&two, key_two);
    }

    fn a_removed_token_answers_as_told(stage) {
        let token = stage.token();
        let session = token.open();
        let rule = Rule::new(Fault::RemoveToken(Some("CKR_TOKEN_NOT_RECOGNIZED".parse().unwrap()))).times(2);
        stage.rule(&rule);
        assert_eq!(refusal(session.generate_random_vec(4)), RvError::TokenNotRecognized);
        assert_eq!(refusal(token.pkcs11.open_ro_session(token.slot)), RvError::TokenNotRecognized);
        token.open().generate_random_vec(4).unwrap();
        assert_eq!(stage.fired(&rule), 2);
    }
}
