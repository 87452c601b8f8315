//! Every key of the configuration and its attributes. Values are never asked for.

use std::collections::BTreeMap;

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectHandle};
use cryptoki::session::Session;

use super::super::KeyLocator;
use super::super::ckr;
use super::{KeyFound, KeyWanted, KeysWanted};

const WANTED: [AttributeType; 16] = [
    AttributeType::KeyType,
    AttributeType::ValueLen,
    AttributeType::Private,
    AttributeType::Sensitive,
    AttributeType::AlwaysSensitive,
    AttributeType::Extractable,
    AttributeType::NeverExtractable,
    AttributeType::Local,
    AttributeType::Modifiable,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Sign,
    AttributeType::Verify,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Derive,
];

/// What is told before each call that reads keys: a token may hold thousands.
pub(super) const STEP: &str = "reading the keys";

pub(super) fn read(
    session: &Session,
    wanted: &KeysWanted<'_>,
    on_step: &dyn Fn(&'static str),
) -> Result<Vec<KeyFound>, String> {
    let mut labels = Vec::new();
    for handle in find(session, None)? {
        on_step(STEP);
        // A key without a label that is text is none of a rule's.
        let Ok(attributes) = session.get_attributes(handle, &[AttributeType::Label]) else { continue };
        labels.extend(attributes.into_iter().filter_map(|attribute| match attribute {
            Attribute::Label(label) => String::from_utf8(label).ok().map(Box::from),
            _ => None,
        }));
    }
    let read = |key| {
        on_step(STEP);
        read_one(session, key)
    };
    wanted(&labels).into_iter().map(read).collect()
}

fn find(session: &Session, locator: Option<&KeyLocator>) -> Result<Vec<ObjectHandle>, String> {
    let handles = session.find_objects(&super::super::keys::template(locator));
    handles.map_err(|error| format!("C_FindObjects said {}", ckr::name(ckr::code_of(&error))))
}

fn read_one(session: &Session, key: KeyWanted) -> Result<KeyFound, String> {
    let KeyWanted { name, locator, role } = key;
    let handles = find(session, Some(&locator))?;
    let attributes = match handles.as_slice() {
        [handle] => read_attributes(session, *handle),
        _ => BTreeMap::new(),
    };
    Ok(KeyFound { name, role, locator: locator.to_string(), count: handles.len(), attributes })
}

/// The attributes that the token tells: one that it does not know or does not show is absent.
fn read_attributes(session: &Session, handle: ObjectHandle) -> BTreeMap<&'static str, String> {
    let mut told = BTreeMap::new();
    for wanted in WANTED {
        // One by one: some modules tell nothing where one attribute of several is not known to them.
        let Ok(attributes) = session.get_attributes(handle, &[wanted]) else { continue };
        told.extend(attributes.iter().filter_map(text));
    }
    told
}

fn text(attribute: &Attribute) -> Option<(&'static str, String)> {
    let boolean = |name, is_set: &bool| Some((name, is_set.to_string()));
    match attribute {
        Attribute::KeyType(KeyType::AES) => Some(("CKA_KEY_TYPE", "CKK_AES".to_owned())),
        Attribute::KeyType(key_type) => Some(("CKA_KEY_TYPE", format!("{:#x}", **key_type))),
        Attribute::ValueLen(bytes) => Some(("CKA_VALUE_LEN", bytes.to_string())),
        Attribute::Private(is_set) => boolean("CKA_PRIVATE", is_set),
        Attribute::Sensitive(is_set) => boolean("CKA_SENSITIVE", is_set),
        Attribute::AlwaysSensitive(is_set) => boolean("CKA_ALWAYS_SENSITIVE", is_set),
        Attribute::Extractable(is_set) => boolean("CKA_EXTRACTABLE", is_set),
        Attribute::NeverExtractable(is_set) => boolean("CKA_NEVER_EXTRACTABLE", is_set),
        Attribute::Local(is_set) => boolean("CKA_LOCAL", is_set),
        Attribute::Modifiable(is_set) => boolean("CKA_MODIFIABLE", is_set),
        Attribute::Encrypt(is_set) => boolean("CKA_ENCRYPT", is_set),
        Attribute::Decrypt(is_set) => boolean("CKA_DECRYPT", is_set),
        Attribute::Sign(is_set) => boolean("CKA_SIGN", is_set),
        Attribute::Verify(is_set) => boolean("CKA_VERIFY", is_set),
        Attribute::Wrap(is_set) => boolean("CKA_WRAP", is_set),
        Attribute::Unwrap(is_set) => boolean("CKA_UNWRAP", is_set),
        Attribute::Derive(is_set) => boolean("CKA_DERIVE", is_set),
        _ => None,
    }
}
