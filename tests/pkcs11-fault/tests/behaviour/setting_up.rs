//! The control file, the counters file, and where an instance finds them.

use crate::support::*;
use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use pkcs11_fault::{Counts, Fault, Function, MODULE_VARIABLE, Rule, Setup};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

staged! {
    /// Replacing a file may bring back the inode number, size and time of an earlier one.
    fn every_replacement_is_seen_by_the_next_call(stage) {
        let token = stage.token();
        let session = token.open();
        let answers = ["CKR_HOST_MEMORY", "CKR_PIN_EXPIRED", "CKR_PIN_INVALID", "CKR_CURVE_NOT_SUPPORTED"];
        let refusals = [RvError::HostMemory, RvError::PinExpired, RvError::PinInvalid, RvError::CurveNotSupported];
        let rules = answers.map(|answer| Rule::new(fail(answer)).on(Function::GenerateRandom));
        for round in 0..3000 {
            // Several replacements between two calls, of the same length but for the last.
            for skipped in 0..round % 4 {
                stage.rule(&rules[(round + skipped) % 3]);
            }
            let now = round % 4;
            stage.rule(&rules[now]);
            assert_eq!(refusal(session.generate_random_vec(4)), refusals[now], "round {round}");
        }
        fs::remove_file(stage.control.path()).unwrap();
        session.generate_random_vec(4).unwrap();
        stage.rule(&rules[0]);
        session.generate_random_vec(4).unwrap_err();
    }

    /// While some threads call, a file that is replaced is never seen by halves.
    fn replacements_are_seen_whole(stage) {
        let token = stage.token();
        let delay = |ms| Rule::new(Fault::DelayMs(ms)).on(Function::Login);
        let refuse = Rule::new(fail("CKR_PIN_EXPIRED")).on(Function::GenerateRandom);
        stage.control.write(&[delay(1), refuse.clone()]).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                let session = token.open();
                let done = &done;
                scope.spawn(move || {
                    while !done.load(Ordering::SeqCst) {
                        assert_eq!(refusal(session.generate_random_vec(4)), RvError::PinExpired);
                    }
                });
            }
            for round in 0..300 {
                stage.control.write(&[delay(round), refuse.clone()]).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        assert_eq!(stage.counts().control_errors(), 0);
    }

    fn a_file_written_in_place_is_seen_too(stage) {
        let token = stage.token();
        let session = token.open();
        fs::write(stage.control.path(), "* fail=CKR_DEVICE_ERROR\n").unwrap();
        assert_eq!(refusal(session.generate_random_vec(4)), RvError::DeviceError);
        fs::write(stage.control.path(), "# nothing\n").unwrap();
        session.generate_random_vec(4).unwrap();
    }

    fn an_unusable_control_file_fails_every_call(stage) {
        let token = stage.token();
        let session = token.log_in();
        let key = make_key(&session, "key");
        stage.control.write_text("C_Encrypt delay_ms=1\nC_Encrypt delay=1\n").unwrap();
        for _ in 0..3 {
            assert_eq!(refusal(session.generate_random_vec(4)), RvError::GeneralError);
            assert_eq!(refusal(token.pkcs11.get_all_slots()), RvError::GeneralError);
        }
        assert_eq!(stage.counts().control_errors(), 1);
        fs::remove_file(stage.control.path()).unwrap();
        fs::create_dir(stage.control.path()).unwrap();
        assert_eq!(refusal(session.generate_random_vec(4)), RvError::GeneralError);
        assert_eq!(stage.counts().control_errors(), 2);
        fs::remove_dir(stage.control.path()).unwrap();
        assert_works(&session, key);
    }

    fn a_writer_refuses_what_the_module_would(stage) {
        let rule = Rule::new(Fault::DelayMs(1));
        stage.rule(&rule);
        assert!(stage.control.write(&[Rule::new(Fault::DelayMs(1)).every(0)]).is_err());
        assert!(stage.control.write(&[rule.clone(), rule.clone()]).is_err());
        assert_eq!(fs::read_to_string(stage.control.path()).unwrap(), "* delay_ms=1\n");
        assert_eq!(fs::read_dir(&stage.directory).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().contains(".new")
        }).count(), 0);
    }

    /// Two differently directed instances in one process: two copies of the shared object, each with a sidecar file.
    fn two_instances_live_in_one_process(stage) {
        let instance = |name: &str| {
            let real = stage.directory.join(format!("{name}.real.so"));
            fs::copy(softhsm(), &real).unwrap();
            stage.instance(name, &real)
        };
        let (first_module, second_module) = (instance("one"), instance("two"));
        // The first token is made before the second module looks for tokens.
        let first = Token::new(load(&first_module.module), "first");
        let second = Token::new(load(&second_module.module), "second");
        let (one, two) = (first.log_in(), second.log_in());
        let (key_one, key_two) = (make_key(&one, "key"), make_key(&two, "key"));
        let rule = Rule::new(fail("CKR_DEVICE_ERROR")).on(Function::EncryptInit);
        first_module.control.write(std::slice::from_ref(&rule)).unwrap();
        assert_eq!(refusal(encrypt(&one, key_one)), RvError::DeviceError);
        assert_works(&two, key_two);
        second_module.control.write(&[Rule::new(Fault::NeedReinit("CKR_DEVICE_REMOVED".parse().unwrap()))]).unwrap();
        first_module.control.clear().unwrap();
        assert_works(&one, key_one);
        assert_eq!(refusal(two.generate_random_vec(4)), RvError::DeviceRemoved);
        let (one, two) = (first_module.counts(), second_module.counts());
        assert_eq!((one.fired(&rule), two.fired(&rule)), (1, 0));
        assert_eq!((one.calls(Function::GenerateRandom), two.calls(Function::GenerateRandom)), (0, 1));
        // What the environment names was not touched.
        assert!(!stage.directory.join("counts").exists());
    }

    /// The layout that the manual gives to programs in other languages.
    fn the_counters_file_is_laid_out_as_documented(stage) {
        let token = stage.token();
        let session = token.open();
        let rule = Rule::new(fail("CKR_DEVICE_ERROR")).on(Function::GenerateRandom).times(2);
        stage.rule(&rule);
        for _ in 0..3 {
            drop(session.generate_random_vec(4));
        }
        let bytes = fs::read(stage.directory.join("counts")).unwrap();
        let number = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let text = |at: usize, length: usize| {
            String::from_utf8(bytes[at..at + length].to_vec()).unwrap().trim_end_matches('\0').to_owned()
        };
        assert_eq!((text(0, 8), number(8), number(16), number(24)), ("P11FAULT".to_owned(), 1, 1, 0));
        for (index, function) in Function::ALL.into_iter().enumerate() {
            let at = 64 + 64 * index;
            assert_eq!(text(at + 24, 40), function.name());
            let counts = stage.counts();
            let expected = [counts.calls(function), counts.most_inside(function), counts.inside(function)];
            assert_eq!([number(at), number(at + 8), number(at + 16)], expected);
        }
        assert_eq!(number(64 + 64 * 64), 3, "C_GenerateRandom is the 65th function");
        assert_eq!((number(4416), number(4424), text(4432, 496)), (2, 3, rule.to_string()));
    }

    fn a_module_that_is_not_set_up_does_not_load(stage) {
        let path = stage.directory.join("copy.so");
        fs::copy(module(), &path).unwrap();
        fs::write(stage.directory.join("copy.so.conf"), "module=/nowhere/at/all.so\n").unwrap();
        assert!(matches!(Pkcs11::new(&path), Err(Error::Pkcs11(RvError::GeneralError, _))));
    }

    fn a_foreign_counters_file_is_not_overwritten(stage) {
        let path = stage.directory.join("copy.so");
        let counts = stage.directory.join("precious");
        fs::write(&counts, "data").unwrap();
        let setup = Setup { counts: Some(counts.clone()), ..stage.setup() };
        setup.install(&module(), &path).unwrap();
        assert!(matches!(Pkcs11::new(&path), Err(Error::Pkcs11(RvError::GeneralError, _))));
        assert_eq!(fs::read_to_string(&counts).unwrap(), "data");
        assert!(Counts::read(&counts).is_err());
    }
}

#[test]
fn what_is_wrong_is_said_on_standard_error() {
    let name = concat!(module_path!(), "::what_is_wrong_is_said_on_standard_error");
    let load_and_break = |stage: &Stage| {
        let token = stage.token();
        stage.control.write_text("C_Encrypt delay_ms=1\nC_Login corrupt=tag\n").unwrap();
        token.pkcs11.get_all_slots().unwrap_err();
        token.pkcs11.get_all_slots().unwrap_err();
        let path = stage.directory.join("copy.so");
        fs::copy(module(), &path).unwrap();
        fs::write(stage.directory.join("copy.so.conf"), "control=/tmp/control\n").unwrap();
        assert!(Pkcs11::new(&path).is_err());
    };
    in_own_process(name, load_and_break, |_, status, output| {
        assert!(status.success(), "{output}");
        assert_eq!(output.matches("line 2: corrupt never acts in C_Login").count(), 1, "{output}");
        assert!(output.contains("copy.so.conf: module= is missing"), "{output}");
        assert!(!output.contains(MODULE_VARIABLE), "{output}");
    });
}
