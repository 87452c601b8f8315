//! The index of keys, and the guard of initialization vectors.

use super::*;

fn enumeration(epoch: u64, label: &str) -> Enumeration {
    let locator = KeyLocator::Label(label.into());
    let found = HashMap::from([(locator, Found::several(2))]);
    Enumeration { epoch: Epoch(epoch), started_at: clock::now(), handles: Vec::new().into_iter(), found }
}

#[test]
fn a_keeper_that_was_replaced_writes_nothing_into_the_index_of_the_next() {
    let index = KeyIndex::default();
    index.clear(Epoch(1));
    enumeration(1, "before").publish(&index);
    assert_eq!(index.labels(), [Box::from("before")]);
    assert_eq!(index.generation(Epoch(1)), Some(1));
    index.clear(Epoch(2));
    index.clear(Epoch(1));
    enumeration(1, "late").publish(&index);
    assert!(index.labels().is_empty() && index.generation(Epoch(2)).is_none());
    enumeration(2, "now").publish(&index);
    enumeration(1, "later").publish(&index);
    assert_eq!(index.labels(), [Box::from("now")]);
    assert_eq!((index.generation(Epoch(1)), index.generation(Epoch(2))), (None, Some(2)));
}

fn entry(handle: u64) -> Arc<KeyEntry> {
    let attributes = KeyAttributes { object: handle, kind: KeyKind::Other(0), usages: KeyUsages::default() };
    let (label, id) = (Some("a".into()), Some([1].into()));
    Arc::new(KeyEntry::new(&KeyObject { handle: gcm::object(handle), label, id, attributes }, Epoch(1)))
}

/// Whose a key is, and what it has shown, is kept by its entry.
#[test]
fn a_key_has_one_entry_under_all_its_names() {
    let (label, id) = (KeyLocator::Label("a".into()), KeyLocator::Id([1].into()));
    let store = |number| StoreId { generation: 1, number };
    for owner in [&label, &id] {
        let index = KeyIndex::default();
        index.clear(Epoch(1));
        // By its label it was searched before the listing ended, and perhaps by its id as well.
        let mut known = HashMap::from([(label.clone(), Found::One(entry(7)))]);
        known.entry(owner.clone()).or_insert_with(|| Found::One(entry(7)));
        index.found.store(Arc::new(known));
        let searched = index.find(owner, Epoch(1)).unwrap().unwrap();
        assert!(searched.is_of(store(0)));
        let listed = Found::One(entry(7));
        let found = HashMap::from([(label.clone(), listed.clone()), (id.clone(), listed)]);
        Enumeration { found, ..enumeration(1, "") }.publish(&index);
        for locator in [&label, &id] {
            let found = index.find(locator, Epoch(1)).unwrap().unwrap();
            assert!(Arc::ptr_eq(&found, &searched), "{locator} of {owner}");
            assert!(!found.is_of(store(1)), "another store uses it by {locator}");
        }
    }
}

#[test]
fn ivs_are_never_zero_repeated_or_of_another_length() {
    let ivs = IvGuard::default();
    assert!(ivs.accepts(&[1; 12]));
    assert!(!ivs.accepts(&[1; 12]), "the one before");
    assert!(ivs.accepts(&[2; 16]));
    assert!(!ivs.accepts(&[1; 12]), "the one before that");
    assert!(!ivs.accepts(&[0; 12]));
    assert!(!ivs.accepts(&[3; 11]));
    assert!(!ivs.accepts(&[]));
    let mut counter = [9; 12];
    for value in 0..=u8::MAX {
        counter[11] = value;
        assert!(ivs.accepts(&counter), "a counter never repeats");
    }
}
