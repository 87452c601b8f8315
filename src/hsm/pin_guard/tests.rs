use std::os::unix::fs::PermissionsExt;

use super::*;

fn secret(text: &str) -> Secret {
    Secret::copy_of(text)
}

fn id() -> LoginId {
    LoginId { module: "/usr/lib/hsm.so".into(), token_serial: "0123".into(), user_type: UserType::User }
}

/// A folder with a record that says that `pin` was refused.
fn folder_with_refused(pin: &str) -> (tempfile::TempDir, Folder) {
    let state = tempfile::tempdir().unwrap();
    let folder = Folder::open(state.path()).unwrap();
    let mut record = Record::with(None, &id(), &Derivation::with_new_salt(&secret(pin)));
    record.refuse_last("CKR_PIN_INCORRECT");
    folder.put(&id(), &record).unwrap();
    (state, folder)
}

fn files(state: &tempfile::TempDir) -> Vec<PathBuf> {
    let folder = fs::read_dir(state.path().join("refused-pins")).unwrap();
    folder.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_record_tells_the_pin_that_was_refused_from_others() {
    let (_state, folder) = folder_with_refused("4711");
    let record = folder.read(&id()).unwrap().unwrap();
    let code = record.past_of(&record.derive(&secret("4711"))).unwrap().code;
    assert_eq!(code.as_deref(), Some("CKR_PIN_INCORRECT"));
    for other in ["4712", "471", "47110", ""] {
        assert!(record.past_of(&record.derive(&secret(other))).is_none(), "{other}");
    }
    let both = Record::with(Some(&record), &id(), &record.derive(&secret("4712")));
    for pin in ["4711", "4712"] {
        assert!(both.past_of(&both.derive(&secret(pin))).is_some(), "{pin}");
    }
}

#[test]
fn equal_pins_of_two_entries_do_not_look_equal() {
    let hashes = [folder_with_refused("4711"), folder_with_refused("4711")].map(|(state, _)| {
        let [file] = files(&state).try_into().unwrap();
        fs::read_to_string(file).unwrap()
    });
    assert_ne!(hashes[0], hashes[1]);
}

#[test]
fn a_file_is_its_owners_alone_and_holds_no_pin() {
    let (state, _) = folder_with_refused("pin-4711");
    for file in files(&state) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        let text = fs::read_to_string(file).unwrap();
        assert!(!text.contains("pin-4711") && !text.contains("cGluLTQ3MTE="), "{text}");
    }
    let mode = state.path().join("refused-pins").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn what_is_no_record_of_this_login_is_damaged() {
    let (state, folder) = folder_with_refused("4711");
    let [file] = files(&state).try_into().unwrap();
    let good = fs::read_to_string(&file).unwrap();
    for bad in [
        String::new(),
        good[..good.len() / 2].to_owned(),
        good.replace("\"format\":1", "\"format\":2"),
        good.replace("0123", "0124"),
        good.replace("\"iterations\":600000", "\"iterations\":0"),
        good.replace("\"iterations\":600000", "\"iterations\":4000000000"),
        good.replace("\"saltB64\":\"", "\"saltB64\":\"?"),
        good.replace("\"user\"", "\"owner\""),
    ] {
        assert_ne!(bad, good);
        fs::write(&file, &bad).unwrap();
        assert_eq!(folder.read(&id()).err(), Some(PinFault::Damaged(file.clone())), "{bad}");
    }
    fs::write(&file, good).unwrap();
    assert!(folder.read(&id()).unwrap().is_some());
}
