//! Secret keys on a token: their template, and what can be done with them.

use std::collections::HashSet;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use crate::error::{Error, Result};
use crate::token::Token;
use crate::usage::Usages;

/// What a new key is to be, apart from its label and its value.
#[derive(Debug, Clone)]
pub struct KeySpec {
    /// `CKA_ID`; may be empty.
    pub id: Vec<u8>,
    /// What the key may do; all else is forbidden.
    pub usages: Usages,
    /// Make the key even where its label exists. Two keys of one label are a fault that tests provoke.
    pub duplicate: bool,
}

impl KeySpec {
    /// Everything but the value's source and CKA_TOKEN.
    fn template(&self, label: &str) -> Vec<Attribute> {
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(label.into()),
            Attribute::Id(self.id.clone()),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
        ];
        template.extend(self.usages.attributes());
        template
    }
}

/// The keys that an operation is about: by label, and by id where several keys share the label.
#[derive(Debug, Clone, Copy)]
pub struct KeyFilter<'a> {
    /// `CKA_LABEL`.
    pub label: &'a str,
    /// `CKA_ID`.
    pub id: Option<&'a [u8]>,
}

impl Token {
    /// Has the token generate an AES key of `bits` for each label that does not exist yet (or for every label,
    /// with [`KeySpec::duplicate`]), and says how many it made. The labels on the token are read once, so that
    /// thousands of keys can be made in one call.
    ///
    /// # Errors
    /// [`Error::KeyBits`] unless 128, 192 or 256; [`Error::Pkcs11`]. The keys made before a failure remain.
    pub fn generate(
        &self,
        labels: impl IntoIterator<Item = String>,
        bits: u16,
        spec: &KeySpec,
    ) -> Result<usize> {
        check_key_bits(bits.into())?;
        let mut existing = if spec.duplicate { HashSet::new() } else { self.key_labels()? };
        let mut made = 0;
        for label in labels {
            let mut template = spec.template(&label);
            if !spec.duplicate && !existing.insert(label) {
                continue;
            }
            template.push(Attribute::ValueLen(usize::from(bits / 8).try_into()?));
            self.generate_key(&template)?;
            made += 1;
        }
        Ok(made)
    }

    /// Generates a key of the session and copies it to the token. SoftHSM2 writes the file of a key that is
    /// generated on the token anew for each attribute, 35 times, and that of a copy 3 times: on a disk this
    /// makes ten thousand keys in seconds instead of minutes. The attributes are the same either way.
    fn generate_key(&self, template: &[Attribute]) -> Result<()> {
        let template = [template, &[Attribute::Token(false)]].concat();
        let session_key = self.session.generate_key(&Mechanism::AesKeyGen, &template)?;
        self.session.copy_object(session_key, &[Attribute::Token(true)])?;
        Ok(self.session.destroy_object(session_key)?)
    }

    /// Writes an AES key of a known value, for tests with fixed expectations: sensitive and not extractable,
    /// as a generated one. Says whether it made the key (see [`KeySpec::duplicate`]).
    ///
    /// # Errors
    /// [`Error::KeyBits`] unless the value has 16, 24 or 32 bytes; [`Error::Pkcs11`].
    pub fn import(&self, label: &str, value: Vec<u8>, spec: &KeySpec) -> Result<bool> {
        check_key_bits(value.len() * 8)?;
        if !spec.duplicate && !self.find(KeyFilter { label, id: None })?.is_empty() {
            return Ok(false);
        }
        let mut template = spec.template(label);
        template.extend([Attribute::Token(true), Attribute::Value(value)]);
        self.session.create_object(&template)?;
        Ok(true)
    }

    /// Allows the matching keys these usages and forbids all others, and says how many keys there were.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`]; [`Error::Pkcs11`].
    pub fn set_usages(&self, filter: KeyFilter<'_>, usages: &Usages) -> Result<usize> {
        let keys = self.find(filter)?;
        if keys.is_empty() {
            return Err(Error::NoSuchKey(filter.label.to_owned()));
        }
        let attributes: Vec<_> = usages.attributes().collect();
        for &key in &keys {
            self.session.update_attributes(key, &attributes)?;
        }
        Ok(keys.len())
    }

    /// Destroys the matching keys, and says how many there were. None is no failure.
    ///
    /// # Errors
    /// [`Error::Pkcs11`].
    pub fn destroy(&self, filter: KeyFilter<'_>) -> Result<usize> {
        let keys = self.find(filter)?;
        for &key in &keys {
            self.session.destroy_object(key)?;
        }
        Ok(keys.len())
    }

    fn find(&self, filter: KeyFilter<'_>) -> Result<Vec<ObjectHandle>> {
        let mut template =
            vec![Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(filter.label.into())];
        template.extend(filter.id.map(|id| Attribute::Id(id.to_vec())));
        Ok(self.session.find_objects(&template)?)
    }

    fn key_labels(&self) -> Result<HashSet<String>> {
        let mut labels = HashSet::new();
        for key in self.session.find_objects(&[Attribute::Class(ObjectClass::SECRET_KEY)])? {
            if let [Attribute::Label(label)] =
                self.session.get_attributes(key, &[AttributeType::Label])?.as_slice()
            {
                labels.insert(String::from_utf8_lossy(label).into_owned());
            }
        }
        Ok(labels)
    }
}

fn check_key_bits(bits: usize) -> Result<()> {
    if matches!(bits, 128 | 192 | 256) { Ok(()) } else { Err(Error::KeyBits(bits)) }
}
