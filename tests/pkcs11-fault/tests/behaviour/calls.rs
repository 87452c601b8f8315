//! Faults of single calls: delays, hangs, refusals, aborts; how often they strike, and where.

use crate::support::*;
use cryptoki::error::RvError;
use pkcs11_fault::{Ckr, Fault, Function, Hang, Rule};
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

staged! {
    fn a_call_is_delayed(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let rule = Rule::new(Fault::DelayMs(60)).on(Function::EncryptInit);
        stage.rule(&rule);
        let started = Instant::now();
        assert_works(&session, key);
        assert!(started.elapsed() >= Duration::from_millis(60));
        assert_eq!(stage.fired(&rule), 1);
        stage.control.clear().unwrap();
        assert_works(&session, key);
        assert_eq!(stage.fired(&rule), 1);
    }

    fn a_hang_blocks_its_own_call_only_and_ends_with_the_rule(stage) {
        let token = stage.token();
        let (stuck, free) = (token.log_in(), token.open());
        let (stuck_key, free_key) = (make_key(&stuck, "stuck"), make_key(&free, "free"));
        let rule = Rule::new(Fault::Hang(Hang::UntilRemoved)).on(Function::Encrypt).label("stuck");
        stage.rule(&rule);
        let hanging = thread::spawn(move || encrypt(&stuck, stuck_key).map(|ciphertext| (stuck, ciphertext)));
        eventually("the call hangs", || stage.fired(&rule) == 1);
        for _ in 0..20 {
            assert_works(&free, free_key);
        }
        // Another rule beside it does not end the hang.
        stage.control.write(&[Rule::new(Fault::DelayMs(1)).on(Function::Login), rule.clone()]).unwrap();
        assert_works(&free, free_key);
        assert_eq!(stage.counts().inside(Function::Encrypt), 1);
        assert!(!hanging.is_finished());
        stage.control.clear().unwrap();
        let (session, ciphertext) = hanging.join().unwrap().unwrap();
        assert_eq!(decrypt(&session, stuck_key, &ciphertext).unwrap(), PLAINTEXT);
        assert_eq!(stage.counts().inside(Function::Encrypt), 0);
        assert_eq!(stage.fired(&rule), 1);
    }

    fn memory_is_left_behind(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let rule = Rule::new(Fault::LeakKib(8 * 1024)).on(Function::Encrypt);
        stage.rule(&rule);
        let before = resident_kib();
        assert_works(&session, key);
        let leaked = 8 * 1024 * stage.fired(&rule);
        let after = resident_kib();
        assert!(leaked > 0 && after >= before + leaked * 9 / 10, "{before} and {leaked}: {after}");
    }

    fn a_call_hangs_forever(stage) {
        let token = stage.token();
        let (stuck, free) = (token.log_in(), token.open());
        let key = make_key(&free, "key");
        let rule = Rule::new(Fault::Hang(Hang::Forever)).on(Function::GenerateRandom);
        stage.rule(&rule);
        let hanging = thread::spawn(move || stuck.generate_random_vec(8));
        eventually("the call hangs", || stage.fired(&rule) == 1);
        stage.control.clear().unwrap();
        // The rule is gone, the call that it hit is not: new calls work.
        assert_works(&free, key);
        free.generate_random_vec(8).unwrap();
        assert!(!hanging.is_finished());
        assert_eq!(stage.counts().inside(Function::GenerateRandom), 1);
    }

    fn a_hanging_call_does_not_outlive_finalisation(stage) {
        let token = stage.token();
        let stuck = token.open();
        let rule = Rule::new(Fault::Hang(Hang::UntilRemoved)).on(Function::GenerateRandom);
        stage.rule(&rule);
        let hanging = thread::spawn(move || {
            let result = stuck.generate_random_vec(8);
            // Its handle belongs to the past.
            std::mem::forget(stuck);
            result
        });
        eventually("the call hangs", || stage.fired(&rule) == 1);
        let again = token.pkcs11.clone();
        token.pkcs11.finalize().unwrap();
        let again = { drop(again); Token::find(load(&module()), "first") };
        let session = again.open();
        stage.control.clear().unwrap();
        assert_eq!(refusal(hanging.join().unwrap()), RvError::CryptokiNotInitialized);
        session.generate_random_vec(8).unwrap();
    }

    fn a_call_fails_without_reaching_the_token(stage) {
        let token = stage.token();
        let session = token.log_in();
        let rule = Rule::new(fail("CKR_DEVICE_MEMORY")).on(Function::GenerateKey);
        stage.rule(&rule);
        let template = [cryptoki::object::Attribute::Label(b"key".to_vec()), cryptoki::object::Attribute::ValueLen(32.into())];
        let mechanism = cryptoki::mechanism::Mechanism::AesKeyGen;
        assert_eq!(refusal(session.generate_key(&mechanism, &template)), RvError::DeviceMemory);
        assert!(find_keys(&session, "key").unwrap().is_empty());
        assert_eq!(stage.fired(&rule), 1);
        stage.control.clear().unwrap();
        session.generate_key(&mechanism, &template).unwrap();
        assert_eq!(stage.fired(&rule), 1);
    }

    fn a_call_fails_after_the_token_has_done_it(stage) {
        let token = stage.token();
        let session = token.log_in();
        let rule = Rule::new(Fault::ForwardThenFail("CKR_DEVICE_ERROR".parse().unwrap())).on(Function::GenerateKey);
        stage.rule(&rule);
        let template = [cryptoki::object::Attribute::Label(b"key".to_vec()), cryptoki::object::Attribute::ValueLen(32.into())];
        let mechanism = cryptoki::mechanism::Mechanism::AesKeyGen;
        assert_eq!(refusal(session.generate_key(&mechanism, &template)), RvError::DeviceError);
        assert_eq!(find_keys(&session, "key").unwrap().len(), 1);
        assert_eq!(stage.fired(&rule), 1);
        stage.control.clear().unwrap();
        session.generate_key(&mechanism, &template).unwrap();
        assert_eq!(find_keys(&session, "key").unwrap().len(), 2);
    }

    /// By the standard an error ends the operation, so the next one can begin.
    fn a_failed_call_ends_its_operation(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        let ciphertext = encrypt(&session, key).unwrap();
        for fault in [fail("CKR_DEVICE_ERROR"), Fault::ForwardThenFail("CKR_DEVICE_ERROR".parse().unwrap())] {
            for function in [Function::EncryptInit, Function::Encrypt, Function::DecryptInit, Function::Decrypt] {
                let rule = Rule::new(fault.clone()).on(function).times(1);
                stage.rule(&rule);
                let result = encrypt(&session, key).and_then(|_| decrypt(&session, key, &ciphertext));
                assert_eq!(refusal(result), RvError::DeviceError, "{rule}");
                assert_eq!(stage.fired(&rule), 1);
                let is_init = matches!(function, Function::EncryptInit | Function::DecryptInit);
                if is_init && matches!(fault, Fault::ForwardThenFail(_)) {
                    // The token has begun what the application believes has failed.
                    assert_eq!(refusal(encrypt(&session, key)), RvError::OperationActive, "{rule}");
                    return_to_idle(&session, function);
                }
                assert_works(&session, key);
            }
        }
        for (function, digest) in [(Function::DigestUpdate, false), (Function::DigestFinal, false), (Function::Digest, true)] {
            let rule = Rule::new(fail("CKR_DEVICE_ERROR")).on(function);
            stage.rule(&rule);
            let sha256 = cryptoki::mechanism::Mechanism::Sha256;
            let run = || if digest {
                session.digest(&sha256, PLAINTEXT)
            } else {
                session.digest_init(&sha256).and_then(|()| session.digest_update(PLAINTEXT)).and_then(|()| session.digest_final())
            };
            assert_eq!(refusal(run()), RvError::DeviceError, "{rule}");
            stage.control.clear().unwrap();
            assert_eq!(run().unwrap().len(), 32, "{rule}");
        }
    }

    fn a_busy_token_refuses_work(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        for (name, answer) in [("CKR_FUNCTION_FAILED", RvError::FunctionFailed), ("CKR_OPERATION_ACTIVE", RvError::OperationActive)] {
            let rule = Rule::new(Fault::Busy(name.parse().unwrap())).times(2);
            stage.rule(&rule);
            assert_eq!(find_key(&session, "key"), key);
            assert_eq!(refusal(encrypt(&session, key)), answer);
            assert_eq!(refusal(encrypt(&session, key)), answer);
            assert_works(&session, key);
            assert_eq!(stage.fired(&rule), 2);
        }
        let rule = Rule::new(Fault::Busy(Ckr(cryptoki_sys::CKR_FUNCTION_FAILED)));
        stage.rule(&rule);
        assert_eq!(refusal(encrypt(&session, key)), RvError::FunctionFailed);
        stage.control.clear().unwrap();
        assert_works(&session, key);
    }

    fn after_every_and_times_choose_the_calls(stage) {
        let token = stage.token();
        let session = token.open();
        let hits = |rule: &Rule, calls: usize| {
            stage.rule(rule);
            let hit: Vec<_> = (1..=calls).filter(|_| session.generate_random_vec(4).is_err()).collect();
            assert_eq!(stage.counts().rule(rule).map(|count| count.matched), Some(calls as u64));
            assert_eq!(stage.fired(rule), hit.len() as u64);
            hit
        };
        let rule = Rule::new(fail("CKR_DEVICE_ERROR")).on(Function::GenerateRandom);
        assert_eq!(hits(&rule, 3), [1, 2, 3]);
        assert_eq!(hits(&rule.clone().times(2), 5), [1, 2]);
        assert_eq!(hits(&rule.clone().after(3), 6), [4, 5, 6]);
        assert_eq!(hits(&rule.clone().every(3), 9), [3, 6, 9]);
        assert_eq!(hits(&rule.clone().after(1).every(2).times(3), 12), [3, 5, 7]);
        stage.control.clear().unwrap();
        session.generate_random_vec(4).unwrap();
    }

    fn a_rule_that_stays_goes_on_counting(stage) {
        let token = stage.token();
        let session = token.open();
        let rule = Rule::new(fail("CKR_DEVICE_ERROR")).on(Function::GenerateRandom).times(2);
        stage.rule(&rule);
        session.generate_random_vec(4).unwrap_err();
        stage.control.write(&[Rule::new(Fault::DelayMs(0)).on(Function::Login), rule.clone()]).unwrap();
        session.generate_random_vec(4).unwrap_err();
        session.generate_random_vec(4).unwrap();
        assert_eq!(stage.fired(&rule), 2);
        // Removed and put back it begins anew; its counters add up.
        stage.control.clear().unwrap();
        session.generate_random_vec(4).unwrap();
        stage.rule(&rule);
        session.generate_random_vec(4).unwrap_err();
        assert_eq!(stage.fired(&rule), 3);
    }

    fn a_rule_keeps_to_its_slot_token_and_label(stage) {
        let first = stage.token();
        let second = Token::new(first.pkcs11.clone(), "second token");
        let (one, two) = (first.log_in(), second.log_in());
        let (key_one, key_two) = (make_key(&one, "key"), make_key(&two, "key"));
        let other = make_key(&one, "other key");
        let rule = Rule::new(fail("CKR_DEVICE_ERROR")).on(Function::EncryptInit);

        stage.rule(&rule.clone().slot(first.slot.id()));
        assert_eq!(refusal(encrypt(&one, key_one)), RvError::DeviceError);
        assert_works(&two, key_two);

        stage.rule(&rule.clone().token("second token"));
        assert_works(&one, key_one);
        assert_eq!(refusal(encrypt(&two, key_two)), RvError::DeviceError);

        stage.rule(&rule.clone().label("other key"));
        assert_works(&one, key_one);
        assert_works(&two, key_two);
        assert_eq!(refusal(encrypt(&one, other)), RvError::DeviceError);

        // The label of a running operation is that of its key.
        stage.rule(&Rule::new(fail("CKR_DEVICE_ERROR")).on(Function::Encrypt).label("other key").token("first"));
        assert_works(&one, key_one);
        assert_eq!(refusal(encrypt(&one, other)), RvError::DeviceError);
        stage.control.clear().unwrap();
        assert_works(&one, other);
    }

    fn rules_act_in_their_order(stage) {
        let token = stage.token();
        let session = token.open();
        let first = Rule::new(fail("CKR_DEVICE_ERROR")).on(Function::GenerateRandom).times(1);
        let second = Rule::new(fail("CKR_DEVICE_MEMORY")).on(Function::GenerateRandom).times(1);
        stage.control.write(&[first.clone(), second.clone()]).unwrap();
        assert_eq!(refusal(session.generate_random_vec(4)), RvError::DeviceError);
        assert_eq!(stage.fired(&second), 0);
        assert_eq!(refusal(session.generate_random_vec(4)), RvError::DeviceMemory);
        session.generate_random_vec(4).unwrap();
    }
}

/// Ends an operation that a lost answer to an `Init` has left behind.
fn return_to_idle(session: &cryptoki::session::Session, function: Function) {
    match function {
        Function::EncryptInit => drop(session.encrypt_final()),
        _ => drop(session.decrypt_final()),
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_process_aborts_inside_a_call() {
    let rule = Rule::new(Fault::Abort).on(Function::EncryptInit).after(1);
    let dies = |stage: &Stage| {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        stage.rule(&rule);
        assert_works(&session, key);
        drop(encrypt(&session, key));
        panic!("still alive");
    };
    in_own_process("behaviour::calls::a_process_aborts_inside_a_call", dies, |stage, status, output| {
        assert_eq!(status.signal(), Some(6), "{status}\n{output}");
        let counts = stage.counts();
        assert_eq!(counts.fired(&rule), 1);
        assert_eq!(counts.calls(Function::EncryptInit), 2);
        assert_eq!(counts.inside(Function::EncryptInit), 1);
    });
}
