//! Aliases of keys.

use serde::{Deserialize, Serialize};

use super::name::{Home, KeyName};
use super::{Exception, KmsError, State, Timestamp};

/// Most aliases of a key.
pub const MAX_ALIASES_OF_A_KEY: usize = 50;

/// An alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// `alias/…`.
    pub name: String,
    /// Id of the key.
    pub target_key_id: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
}

impl State {
    /// An alias by its name, `alias/…`.
    ///
    /// # Errors
    /// `NotFoundException`.
    pub fn alias(&self, home: &Home, name: &str) -> Result<&Alias, KmsError> {
        let not_found = || {
            let message = format!("Alias {} is not found.", home.alias_arn(name));
            KmsError::new(Exception::NotFoundException, message)
        };
        self.aliases.get(name).ok_or_else(not_found)
    }

    /// Makes an alias.
    ///
    /// # Errors
    /// `AlreadyExistsException`, `LimitExceededException`, and the exceptions of a wrong name or target.
    pub fn create_alias(
        &mut self,
        home: &Home,
        name: &str,
        target: &str,
        now: Timestamp,
    ) -> Result<(), KmsError> {
        check_name(name)?;
        let target_key_id = self.alias_target(home, target)?;
        if self.aliases.contains_key(name) {
            let message = format!("An alias with the name {} already exists", home.alias_arn(name));
            return Err(KmsError::new(Exception::AlreadyExistsException, message));
        }
        self.check_alias_count(&target_key_id)?;
        let alias = Alias { name: name.to_owned(), target_key_id, created: now, updated: now };
        self.aliases.insert(name.to_owned(), alias);
        Ok(())
    }

    /// Points an alias at another key.
    ///
    /// # Errors
    /// `NotFoundException`, `LimitExceededException`, and the exceptions of a wrong name or target.
    pub fn update_alias(
        &mut self,
        home: &Home,
        name: &str,
        target: &str,
        now: Timestamp,
    ) -> Result<(), KmsError> {
        check_name(name)?;
        let target_key_id = self.alias_target(home, target)?;
        let is_new_target = self.alias(home, name)?.target_key_id != target_key_id;
        if is_new_target {
            self.check_alias_count(&target_key_id)?;
        }
        if let Some(alias) = self.aliases.get_mut(name) {
            alias.target_key_id = target_key_id;
            alias.updated = now;
        }
        Ok(())
    }

    /// Deletes an alias. Its key stays.
    ///
    /// # Errors
    /// `NotFoundException`, and the exceptions of a wrong name.
    pub fn delete_alias(&mut self, home: &Home, name: &str) -> Result<(), KmsError> {
        check_name(name)?;
        self.alias(home, name)?;
        self.aliases.remove(name);
        Ok(())
    }

    fn alias_target(&self, home: &Home, target: &str) -> Result<String, KmsError> {
        if matches!(home.parse(target)?, KeyName::Alias(_)) {
            return Err(KmsError::validation("Aliases must refer to keys. Not aliases"));
        }
        let key = self.key(home, target)?;
        self.check_not_pending_deletion(home, key)?;
        Ok(key.id.clone())
    }

    fn check_alias_count(&self, key_id: &str) -> Result<(), KmsError> {
        let count = self.aliases.values().filter(|alias| alias.target_key_id == key_id).count();
        if count >= MAX_ALIASES_OF_A_KEY {
            let message = format!("A KMS key can have at most {MAX_ALIASES_OF_A_KEY} aliases.");
            return Err(KmsError::new(Exception::LimitExceededException, message));
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), KmsError> {
    match name.strip_prefix("alias/") {
        None | Some("") => Err(KmsError::validation("Invalid identifier")),
        Some(rest) if rest.starts_with("aws/") => Err(KmsError::bare(Exception::NotAuthorizedException)),
        // The service model allows colons, the documentation of CreateAlias does not.
        Some(rest) if rest.contains(':') => {
            let message = format!("{name} contains invalid characters for an alias");
            Err(KmsError::validation(message))
        }
        Some(_) => Ok(()),
    }
}
