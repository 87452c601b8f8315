//! What is on a token, without the values.

use std::collections::BTreeSet;

use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use serde::Serialize;

use crate::error::Result;
use crate::hex::Hex;
use crate::token::Token;
use crate::usage::{Usage, Usages};

/// What a listing tells of an object. `None` where the object has no such attribute.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectInfo {
    /// `CKA_LABEL`; bytes that are not UTF-8 are replaced.
    pub label: String,
    /// `CKA_ID` in hexadecimal.
    pub id: String,
    /// `CKA_CLASS`, such as `CKO_SECRET_KEY`.
    pub class: Option<String>,
    /// `CKA_KEY_TYPE`, such as `CKK_AES`.
    pub key_type: Option<String>,
    /// `CKA_VALUE_LEN` in bits, or `CKA_MODULUS_BITS`.
    pub bits: Option<usize>,
    /// `CKA_CHECK_VALUE` in hexadecimal: the first 3 bytes of a block of zeros under the key. It tells keys apart.
    pub check_value: Option<String>,
    /// The usage attributes that are true.
    pub usages: Usages,
    /// `CKA_PRIVATE`.
    pub private: Option<bool>,
    /// `CKA_SENSITIVE`.
    pub sensitive: Option<bool>,
    /// `CKA_EXTRACTABLE`.
    pub extractable: Option<bool>,
}

/// The attributes read for a listing: never `CKA_VALUE`.
const LISTED: [AttributeType; 17] = [
    AttributeType::Label,
    AttributeType::Id,
    AttributeType::Class,
    AttributeType::KeyType,
    AttributeType::ValueLen,
    AttributeType::ModulusBits,
    AttributeType::CheckValue,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Sign,
    AttributeType::Verify,
    AttributeType::Derive,
    AttributeType::Private,
    AttributeType::Sensitive,
    AttributeType::Extractable,
];

impl Token {
    /// Every object that the user sees, sorted by label and id.
    ///
    /// # Errors
    /// [`Error::Pkcs11`](crate::Error::Pkcs11).
    pub fn list(&self) -> Result<Vec<ObjectInfo>> {
        let objects = self.session.find_objects(&[])?;
        let mut listing =
            objects.into_iter().map(|object| self.describe(object)).collect::<Result<Vec<_>>>()?;
        listing.sort();
        Ok(listing)
    }

    fn describe(&self, object: ObjectHandle) -> Result<ObjectInfo> {
        let mut info = ObjectInfo::default();
        let mut usages = BTreeSet::new();
        let mut allow = |usage, allowed| {
            if allowed {
                usages.insert(usage);
            }
        };
        for attribute in self.session.get_attributes(object, &LISTED)? {
            match attribute {
                Attribute::Label(label) => info.label = String::from_utf8_lossy(&label).into_owned(),
                Attribute::Id(id) => info.id = Hex(id).to_string(),
                Attribute::Class(class) => info.class = Some(class.to_string()),
                Attribute::KeyType(key_type) => info.key_type = Some(key_type.to_string()),
                Attribute::ValueLen(bytes) => info.bits = Some(usize::from(bytes) * 8),
                Attribute::ModulusBits(bits) => info.bits = Some(bits.into()),
                Attribute::CheckValue(bytes) => info.check_value = Some(Hex(bytes).to_string()),
                Attribute::Encrypt(allowed) => allow(Usage::Encrypt, allowed),
                Attribute::Decrypt(allowed) => allow(Usage::Decrypt, allowed),
                Attribute::Wrap(allowed) => allow(Usage::Wrap, allowed),
                Attribute::Unwrap(allowed) => allow(Usage::Unwrap, allowed),
                Attribute::Sign(allowed) => allow(Usage::Sign, allowed),
                Attribute::Verify(allowed) => allow(Usage::Verify, allowed),
                Attribute::Derive(allowed) => allow(Usage::Derive, allowed),
                Attribute::Private(private) => info.private = Some(private),
                Attribute::Sensitive(sensitive) => info.sensitive = Some(sensitive),
                Attribute::Extractable(extractable) => info.extractable = Some(extractable),
                _ => {}
            }
        }
        info.usages = Usages(usages);
        Ok(info)
    }
}
