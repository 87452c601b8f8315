use std::fs;

use super::*;

const VALUE: &str = "v1:AQIDBAUGBwgJCgsM:CzBVep/E6Q4zWH2ix+wRNluApcrvFDleg6jN8hc8YYar0PU=";

fn open(dir: &Path) -> Result<VersionRecords, VersionRecordsFault> {
    VersionRecords::open(Some(dir), &Arc::new(Metrics::new()))
}

fn label(label: &str) -> KeyLocator {
    KeyLocator::Label(label.into())
}

#[test]
fn what_a_number_stands_for_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let (store, value): (Arc<str>, CheckValue) = ("main".into(), VALUE.parse().unwrap());
    let records = open(dir.path()).unwrap();
    assert!(records.known(&store, "a", 1).is_none());
    records.note(&store, ("a", 1), &label("key-a"), &value, "one");
    records.note(&store, ("a", 2), &KeyLocator::Id([0, 0x2a, 0xff].into()), &value, "one");
    records.close();
    let records = open(dir.path()).unwrap();
    let known = records.known(&store, "a", 1).unwrap();
    assert_eq!((known.locator, known.check_value), (label("key-a"), value));
    assert_eq!(records.known(&store, "a", 2).unwrap().locator, KeyLocator::Id([0, 0x2a, 0xff].into()));
    assert!(records.known(&store, "b", 1).is_none());
    assert!(records.known(&"other".into(), "a", 1).is_none());
}

#[test]
fn a_record_that_cannot_be_read_is_not_taken_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let records = open(dir.path()).unwrap();
    records.note(&"main".into(), ("a", 1), &label("key-a"), &VALUE.parse().unwrap(), "one");
    records.close();
    let folder = dir.path().join("key-versions");
    let path = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read_to_string(&path).unwrap();
    for damaged in ["", &whole[..whole.len() / 2], &whole.replace("\"format\":1", "\"format\":2"), "{}"] {
        fs::write(&path, damaged).unwrap();
        let fault = open(dir.path()).err().unwrap();
        assert!(matches!(&fault, VersionRecordsFault::Damaged(at) if *at == path), "{damaged}: {fault}");
    }
    fs::write(&path, whole).unwrap();
    // What a crash leaves of a write is nothing.
    fs::write(path.with_extension("new"), "{").unwrap();
    assert!(open(dir.path()).is_ok());
}

#[test]
fn without_a_directory_it_lasts_as_long_as_the_process() {
    let records = VersionRecords::open(None, &Arc::new(Metrics::new())).unwrap();
    let store: Arc<str> = "main".into();
    records.note(&store, ("a", 1), &label("key-a"), &VALUE.parse().unwrap(), "one");
    assert!(records.known(&store, "a", 1).is_some());
    records.close();
}

#[test]
fn what_was_served_and_where_it_was_found_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let (store, value): (Arc<str>, CheckValue) = ("main".into(), VALUE.parse().unwrap());
    let tokens = [Arc::from("one"), Arc::from("two")];
    let versions = ServedVersions { primary: 2, others: vec![1] };
    let keys = [("a".to_owned(), versions.clone())].into();
    let served = ServedStore { keys, rule: Some(versions), ..ServedStore::default() };
    assert!(VersionRecords::read(&dir.path().join("absent")).unwrap().served("main").is_none());
    let records = open(dir.path()).unwrap();
    assert_eq!(records.lacking(&store, "a", 2, &tokens), tokens);
    records.note(&store, ("a", 2), &label("key-a"), &value, "two");
    assert!(records.served("main").is_none());
    records.note_served(&store, served.clone());
    records.close();
    for records in [open(dir.path()).unwrap(), VersionRecords::read(dir.path()).unwrap()] {
        assert_eq!(records.served("main"), Some(served.clone()));
        assert_eq!(records.lacking(&store, "a", 2, &tokens), [Arc::from("one")]);
        records.close();
    }
    let file = open(dir.path()).unwrap().file_of_store("main").unwrap();
    fs::write(&file, "{}").unwrap();
    assert!(matches!(open(dir.path()), Err(VersionRecordsFault::Damaged(at)) if at == file));
    fs::remove_file(&file).unwrap();
    assert!(open(dir.path()).unwrap().served("main").is_none());
}

#[test]
fn where_the_keys_of_a_rule_were_found_outlives_what_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<str> = "main".into();
    let of_rule = |primary, others: &[u32]| {
        let rule = Some(ServedVersions { primary, others: others.to_vec() });
        ServedStore { rule, ..ServedStore::default() }
    };
    let records = open(dir.path()).unwrap();
    // Found before anything was served of a store: another start is to be held to nothing by it.
    let found: FoundByRule = [1, 2].map(|number| (number, BTreeSet::from(["one".into()]))).into();
    records.note_found(&store, found.clone());
    assert!(of_rule(2, &[1]).promotions(&records.served("main").unwrap()).is_empty());
    records.note_served(&store, of_rule(1, &[2]));
    records.close();
    let records = open(dir.path()).unwrap();
    let served = records.served("main").unwrap();
    assert_eq!(served.found, found);
    assert!(served.was_found_on(2, &"one".into()));
    assert!(!served.was_found_on(2, &"two".into()) && !served.was_found_on(3, &"one".into()));
    records.note_served(&store, of_rule(2, &[]));
    assert_eq!(records.served("main").unwrap().found.into_keys().collect::<Vec<_>>(), [2]);
    records.note_served(&store, ServedStore::default());
    assert!(records.served("main").unwrap().found.is_empty());
    records.close();
}

/// Of another key nothing is known but where that one was found.
#[test]
fn a_version_of_other_material_has_not_been_found_yet() {
    let other = "v1:AQIDBAUGBwgJCgsN:CzBVep/E6Q4zWH2ix+wRNluApcrvFDleg6jN8hc8YYar0PU=";
    let (store, tokens): (Arc<str>, _) = ("main".into(), [Arc::from("one"), Arc::from("two")]);
    let records = VersionRecords::open(None, &Arc::new(Metrics::new())).unwrap();
    for token in ["one", "two"] {
        records.note(&store, ("a", 1), &label("key-a"), &VALUE.parse().unwrap(), token);
    }
    assert!(records.lacking(&store, "a", 1, &tokens).is_empty());
    records.note(&store, ("a", 1), &label("same"), &VALUE.parse().unwrap(), "one");
    assert!(records.lacking(&store, "a", 1, &tokens).is_empty(), "the same key under another name");
    records.note(&store, ("a", 1), &label("key-a"), &other.parse().unwrap(), "one");
    assert_eq!(records.lacking(&store, "a", 1, &tokens), [Arc::from("two")]);
}

#[test]
fn what_cannot_be_written_is_counted_and_written_once_it_can() {
    let wait_for = |is_so: &dyn Fn() -> bool| {
        let until = crate::clock::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(crate::clock::now() < until);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let (dir, metrics) = (tempfile::tempdir().unwrap(), Arc::new(Metrics::new()));
    let (store, value): (Arc<str>, CheckValue) = ("main".into(), VALUE.parse().unwrap());
    let records = VersionRecords::open(Some(dir.path()), &metrics).unwrap();
    let folder = dir.path().join("key-versions");
    fs::remove_dir(&folder).unwrap();
    records.note(&store, ("a", 1), &label("key-a"), &value, "one");
    wait_for(&|| metrics.version_record_write_failures.get() > 0);
    // Learnt meanwhile: what is written is not what failed, but what is known then.
    records.note(&store, ("a", 1), &label("key-a"), &value, "two");
    fs::create_dir(&folder).unwrap();
    wait_for(&|| {
        fs::read_dir(&folder).unwrap().any(|file| file.unwrap().path().extension() == Some("json".as_ref()))
    });
    let tokens = [Arc::from("one"), Arc::from("two")];
    assert!(VersionRecords::read(dir.path()).unwrap().lacking(&store, "a", 1, &tokens).is_empty());
}
