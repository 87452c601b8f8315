//! The configuration's entries for keys, as TOML to be pasted.

use std::fmt::Write as _;

use xks_spec::ExternalKeyId;

use crate::hsm::{CheckValue, KeyLocator};
use crate::keystore::{KeyRule, VersionState};

/// One version as it is to be written.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) number: u32,
    pub(super) state: VersionState,
    pub(super) locator: KeyLocator,
    pub(super) check_value: Option<CheckValue>,
}

impl Entry {
    fn material(&self) -> String {
        let mut lines = match &self.locator {
            KeyLocator::Label(label) => format!("label = {}\n", quoted(label)),
            KeyLocator::Id(id) => {
                let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("cka_id = \"{hex}\"\n")
            }
        };
        if let Some(value) = &self.check_value {
            // Writing into a String fails never.
            let _ = writeln!(lines, "check_value = \"{value}\"");
        }
        lines
    }
}

/// The entry of one external key: short where its only version is the primary.
pub(super) fn key(id: &ExternalKeyId, is_enabled: bool, versions: &[Entry]) -> String {
    let mut text = format!("[[stores.keys]]\nexternal_key_id = \"{id}\"\n");
    if !is_enabled {
        text.push_str("enabled = false\n");
    }
    if let [only] = versions {
        let _ = write!(text, "version = {}\n{}", only.number, only.material());
    } else {
        for version in versions {
            let Entry { number, state, .. } = version;
            let material = version.material();
            let _ = write!(
                text,
                "\n[[stores.keys.versions]]\nnumber = {number}\nstate = \"{state}\"\n{material}"
            );
        }
    }
    text
}

/// The line of a rule with these versions.
pub(super) fn rule(rule: &KeyRule, versions: &[(u32, VersionState)]) -> String {
    let versions: Vec<_> = versions
        .iter()
        .map(|(number, state)| format!("{{ number = {number}, state = \"{state}\" }}"))
        .collect();
    format!(
        "key_rule = {{ label_prefix = {}, versions = [{}] }}\n",
        quoted(&rule.label_prefix),
        versions.join(", ")
    )
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted_as_toml_wants_it() {
        for label in ["plain", "with \"quotes\" and \\", "line\nbreak", "Zürich", "\u{7f}"] {
            let source = format!("label = {}", quoted(label));
            let table = toml::de::DeTable::parse(&source).unwrap();
            let toml::de::DeValue::String(read) = table.get_ref().get("label").unwrap().get_ref() else {
                panic!("no string: {source}");
            };
            assert_eq!(read, label);
        }
    }
}
