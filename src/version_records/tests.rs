use std::fs;

use super::*;

const VALUE: &str = "v1:AQIDBAUGBwgJCgsM:CzBVep/E6Q4zWH2ix+wRNluApcrvFDleg6jN8hc8YYar0PU=";

fn label(label: &str) -> KeyLocator {
    KeyLocator::Label(label.into())
}

#[test]
fn what_a_number_stands_for_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let (store, value): (Arc<str>, CheckValue) = ("main".into(), VALUE.parse().unwrap());
    let records = VersionRecords::open(Some(dir.path())).unwrap();
    assert!(records.known(&store, "a", 1).is_none());
    records.note(&store, "a", 1, &label("key-a"), &value);
    records.note(&store, "a", 2, &KeyLocator::Id([0, 0x2a, 0xff].into()), &value);
    records.close();
    let records = VersionRecords::open(Some(dir.path())).unwrap();
    let known = records.known(&store, "a", 1).unwrap();
    assert_eq!((known.locator, known.check_value), (label("key-a"), value));
    assert_eq!(records.known(&store, "a", 2).unwrap().locator, KeyLocator::Id([0, 0x2a, 0xff].into()));
    assert!(records.known(&store, "b", 1).is_none());
    assert!(records.known(&"other".into(), "a", 1).is_none());
}

#[test]
fn a_record_that_cannot_be_read_is_not_taken_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let records = VersionRecords::open(Some(dir.path())).unwrap();
    records.note(&"main".into(), "a", 1, &label("key-a"), &VALUE.parse().unwrap());
    records.close();
    let folder = dir.path().join("key-versions");
    let path = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read_to_string(&path).unwrap();
    for damaged in ["", &whole[..whole.len() / 2], &whole.replace("\"format\":1", "\"format\":2"), "{}"] {
        fs::write(&path, damaged).unwrap();
        let fault = VersionRecords::open(Some(dir.path())).err().unwrap();
        assert!(matches!(&fault, VersionRecordsFault::Damaged(at) if *at == path), "{damaged}: {fault}");
    }
    fs::write(&path, whole).unwrap();
    // What a crash leaves of a write is nothing.
    fs::write(path.with_extension("new"), "{").unwrap();
    assert!(VersionRecords::open(Some(dir.path())).is_ok());
}

#[test]
fn without_a_directory_it_lasts_as_long_as_the_process() {
    let records = VersionRecords::open(None).unwrap();
    let store: Arc<str> = "main".into();
    records.note(&store, "a", 1, &label("key-a"), &VALUE.parse().unwrap());
    assert!(records.known(&store, "a", 1).is_some());
    records.close();
}
