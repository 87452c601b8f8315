//! What may be done with custom key stores, and in which state.

use super::key::Key;
use super::name::Home;
use super::store::{ConnectionState, Connectivity, ProxySettings, Store, StoreChange};
use super::{Exception, KmsError, State, Timestamp};

/// Most custom key stores in an account and Region.
pub const MAX_STORES: usize = 10;

impl State {
    /// A store by its id.
    ///
    /// # Errors
    /// `CustomKeyStoreNotFoundException`.
    pub fn store(&self, id: &str) -> Result<&Store, KmsError> {
        self.stores.get(id).ok_or_else(|| store_not_found(&format!("id {id}")))
    }

    fn store_mut(&mut self, id: &str) -> Result<&mut Store, KmsError> {
        self.stores.get_mut(id).ok_or_else(|| store_not_found(&format!("id {id}")))
    }

    /// A store by its friendly name.
    ///
    /// # Errors
    /// `CustomKeyStoreNotFoundException`.
    pub fn store_by_name(&self, name: &str) -> Result<&Store, KmsError> {
        let found = self.stores.values().find(|store| store.name == name);
        found.ok_or_else(|| store_not_found(&format!("name {name}")))
    }

    /// Checks that a store could be made: asked before the proxy is called, and again when the store is made.
    ///
    /// # Errors
    /// `LimitExceededException` beyond ten stores, and the exceptions of names and addresses in use.
    pub fn check_new_store(&self, name: &str, proxy: &ProxySettings) -> Result<(), KmsError> {
        if self.stores.len() >= MAX_STORES {
            let message =
                format!("You can have at most {MAX_STORES} custom key stores in an account and Region.");
            return Err(KmsError::new(Exception::LimitExceededException, message));
        }
        self.check_unique(None, name, proxy)
    }

    /// Makes a store, disconnected.
    ///
    /// # Errors
    /// As [`State::check_new_store`].
    pub fn create_store(
        &mut self,
        id: String,
        name: String,
        proxy: ProxySettings,
        now: Timestamp,
    ) -> Result<(), KmsError> {
        self.check_new_store(&name, &proxy)?;
        let connection = ConnectionState::Disconnected;
        let store = Store {
            id: id.clone(),
            name,
            created: now,
            proxy,
            credential_since: now,
            connection,
            attempt: 0,
        };
        self.stores.insert(id, store);
        Ok(())
    }

    /// What a store would be after `change`: asked before the proxy is called, and again when the change is made.
    ///
    /// # Errors
    /// `CustomKeyStoreInvalidStateException` where the state forbids the change, `ValidationException` where the values
    /// do not fit together, the exceptions of names and addresses in use, `CustomKeyStoreNotFoundException`.
    pub fn changed_store(
        &self,
        home: &Home,
        id: &str,
        change: StoreChange,
        now: Timestamp,
    ) -> Result<Store, KmsError> {
        let store = self.store(id)?;
        let is_allowed = match store.connection {
            ConnectionState::Disconnected => true,
            ConnectionState::Connected => !change.needs_disconnected(),
            _ => false,
        };
        if !is_allowed {
            return Err(wrong_state(store, "UpdateCustomKeyStore"));
        }
        if change.connectivity.is_some_and(|new| new != store.proxy.connectivity)
            && change.uri_endpoint.is_none()
        {
            return Err(KmsError::validation(
                "XksProxyUriEndpoint must change together with XksProxyConnectivity.",
            ));
        }
        let has_service = change.vpc_service_name.is_some() || change.vpc_service_owner.is_some();
        let mut changed = change.applied_to(store, now);
        match changed.proxy.connectivity {
            Connectivity::VpcEndpointService if changed.proxy.vpc_service_name.is_none() => {
                return Err(service_name_missing());
            }
            // Of this account, unless the change or the store says otherwise.
            Connectivity::VpcEndpointService => {
                changed.proxy.vpc_service_owner.get_or_insert_with(|| home.account_id.clone());
            }
            Connectivity::PublicEndpoint if has_service => return Err(service_name_unexpected()),
            Connectivity::PublicEndpoint => {}
        }
        self.check_unique(Some(id), &changed.name, &changed.proxy)?;
        Ok(changed)
    }

    /// Changes a store.
    ///
    /// # Errors
    /// As [`State::changed_store`].
    pub fn update_store(
        &mut self,
        home: &Home,
        id: &str,
        change: StoreChange,
        now: Timestamp,
    ) -> Result<(), KmsError> {
        let changed = self.changed_store(home, id, change, now)?;
        self.stores.insert(id.to_owned(), changed);
        Ok(())
    }

    /// Begins to connect, and says which attempt this is; `None` where the store is connected or about to be.
    ///
    /// # Errors
    /// `CustomKeyStoreInvalidStateException` while `FAILED` or `DISCONNECTING`, `CustomKeyStoreNotFoundException`.
    pub fn begin_connect(&mut self, id: &str) -> Result<Option<u64>, KmsError> {
        let store = self.store_mut(id)?;
        match store.connection {
            ConnectionState::Connected | ConnectionState::Connecting => Ok(None),
            ConnectionState::Disconnected => Ok(Some(store.begin(ConnectionState::Connecting))),
            ConnectionState::Failed(_) | ConnectionState::Disconnecting => {
                Err(wrong_state(store, "ConnectCustomKeyStore"))
            }
        }
    }

    /// Begins to disconnect, and says which attempt this is.
    ///
    /// # Errors
    /// `CustomKeyStoreInvalidStateException` while `DISCONNECTED` or `DISCONNECTING`, `CustomKeyStoreNotFoundException`.
    pub fn begin_disconnect(&mut self, id: &str) -> Result<u64, KmsError> {
        let store = self.store_mut(id)?;
        match store.connection {
            ConnectionState::Connected | ConnectionState::Connecting | ConnectionState::Failed(_) => {
                Ok(store.begin(ConnectionState::Disconnecting))
            }
            ConnectionState::Disconnected | ConnectionState::Disconnecting => {
                Err(wrong_state(store, "DisconnectCustomKeyStore"))
            }
        }
    }

    /// Ends an attempt in `outcome`, unless another has begun since. Says whether it did.
    pub fn end_attempt(&mut self, id: &str, attempt: u64, outcome: ConnectionState) -> bool {
        match self.stores.get_mut(id) {
            Some(store) if store.attempt == attempt => {
                store.connection = outcome;
                true
            }
            _ => false,
        }
    }

    /// Deletes a store.
    ///
    /// # Errors
    /// `CustomKeyStoreHasCMKsException` while it has keys, even ones pending deletion,
    /// `CustomKeyStoreInvalidStateException` unless disconnected, `CustomKeyStoreNotFoundException`.
    pub fn delete_store(&mut self, id: &str) -> Result<(), KmsError> {
        let store = self.store(id)?;
        if store.connection != ConnectionState::Disconnected {
            return Err(wrong_state(store, "DeleteCustomKeyStore"));
        }
        let keys = self.keys.values().filter(|key| key.origin.store_id() == Some(id)).count();
        if keys > 0 {
            let message = format!("Custom key store {id} has {keys} KMS keys.");
            return Err(KmsError::new(Exception::CustomKeyStoreHasCMKsException, message));
        }
        self.stores.remove(id);
        Ok(())
    }

    /// Checks that a store can take a new key for `xks_key_id`, and hands it back.
    ///
    /// # Errors
    /// `CustomKeyStoreInvalidStateException` unless connected, `XksKeyAlreadyInUseException`,
    /// `CustomKeyStoreNotFoundException`.
    pub fn check_new_xks_key(&self, store_id: &str, xks_key_id: &str) -> Result<&Store, KmsError> {
        let store = self.store(store_id)?;
        if store.connection != ConnectionState::Connected {
            let exception = Exception::CustomKeyStoreInvalidStateException;
            return Err(KmsError::new(exception, NOT_CONNECTED));
        }
        let is_used = |key: &Key| key.origin.external_key() == Some((store_id, xks_key_id));
        if let Some(key) = self.keys.values().find(|key| is_used(key)) {
            let message = format!("External key {xks_key_id} is already associated with KMS key {}.", key.id);
            return Err(KmsError::new(Exception::XksKeyAlreadyInUseException, message));
        }
        Ok(store)
    }

    /// One rule after another, so that the answer does not depend on the order of the stores.
    fn check_unique(&self, itself: Option<&str>, name: &str, proxy: &ProxySettings) -> Result<(), KmsError> {
        let others = || self.stores.values().filter(|other| Some(other.id.as_str()) != itself);
        let check = |exception, what: String, is_in_use: &dyn Fn(&Store) -> bool| {
            let message =
                |other: &Store| format!("{what} is already in use by custom key store {}.", other.id);
            let other = others().find(|other| is_in_use(other));
            other.map_or(Ok(()), |other| Err(KmsError::new(exception, message(other))))
        };
        let is_same_host = |other: &Store| other.proxy.uri_endpoint.eq_ignore_ascii_case(&proxy.uri_endpoint);
        let is_private = |proxy: &ProxySettings| proxy.connectivity == Connectivity::VpcEndpointService;
        check(Exception::CustomKeyStoreNameInUseException, format!("The name {name}"), &|other| {
            other.name == name
        })?;
        check(
            Exception::XksProxyUriInUseException,
            format!("The proxy URI {}{}", proxy.uri_endpoint, proxy.uri_path),
            &|other| is_same_host(other) && other.proxy.uri_path == proxy.uri_path,
        )?;
        check(
            Exception::XksProxyUriEndpointInUseException,
            format!("The proxy URI endpoint {}", proxy.uri_endpoint),
            &|other| is_same_host(other) && (is_private(&other.proxy) || is_private(proxy)),
        )?;
        let Some(service) = &proxy.vpc_service_name else { return Ok(()) };
        check(
            Exception::XksProxyVpcEndpointServiceInUseException,
            format!("The VPC endpoint service {service}"),
            &|other| other.proxy.vpc_service_name.as_ref() == Some(service),
        )
    }
}

impl Store {
    fn begin(&mut self, connection: ConnectionState) -> u64 {
        self.connection = connection;
        self.attempt += 1;
        self.attempt
    }
}

/// What the specification has KMS say of a store that is not connected.
pub const NOT_CONNECTED: &str = "This KMS key is in a custom key store that is not connected to its external key store \
                                 proxy. Connect the external key store and try the request again.";

/// A store by VPC endpoint service without a service name.
#[must_use]
pub fn service_name_missing() -> KmsError {
    KmsError::validation("XksProxyVpcEndpointServiceName is required for connectivity VPC_ENDPOINT_SERVICE.")
}

/// A store by public endpoint with a service name.
#[must_use]
pub fn service_name_unexpected() -> KmsError {
    KmsError::validation(
        "XksProxyVpcEndpointServiceName and its owner are only valid for VPC_ENDPOINT_SERVICE.",
    )
}

fn store_not_found(which: &str) -> KmsError {
    let message = format!("There is no custom key store with {which}.");
    KmsError::new(Exception::CustomKeyStoreNotFoundException, message)
}

fn wrong_state(store: &Store, operation: &str) -> KmsError {
    let message = format!(
        "Custom key store {} is {}, which is not valid for {operation}.",
        store.id,
        store.connection.as_str()
    );
    KmsError::new(Exception::CustomKeyStoreInvalidStateException, message)
}

#[cfg(test)]
mod tests {
    use super::super::store::{ConnectionErrorCode, SecretText};
    use super::*;

    const NOW: Timestamp = Timestamp { unix_ms: 0 };

    fn state() -> State {
        let proxy = ProxySettings {
            connectivity: Connectivity::PublicEndpoint,
            uri_endpoint: "https://localhost".to_owned(),
            uri_path: "/kms/xks/v1".to_owned(),
            vpc_service_name: None,
            vpc_service_owner: None,
            access_key_id: "A".repeat(20),
            secret_access_key: SecretText::new("s".repeat(43)),
        };
        let mut state = State::default();
        state.create_store("cks-1".to_owned(), "one".to_owned(), proxy, NOW).unwrap();
        state
    }

    #[test]
    fn a_result_that_comes_late_changes_nothing() {
        let mut state = state();
        let first = state.begin_connect("cks-1").unwrap().unwrap();
        let second = state.begin_disconnect("cks-1").unwrap();
        assert!(!state.end_attempt("cks-1", first, ConnectionState::Connected));
        assert_eq!(state.store("cks-1").unwrap().connection, ConnectionState::Disconnecting);
        assert!(state.end_attempt("cks-1", second, ConnectionState::Disconnected));
        let third = state.begin_connect("cks-1").unwrap().unwrap();
        let failed = ConnectionState::Failed(ConnectionErrorCode::XksProxyTimedOut);
        assert!(!state.end_attempt("cks-1", first, failed));
        assert!(state.end_attempt("cks-1", third, ConnectionState::Connected));
        assert!(!state.end_attempt("cks-2", third, failed));
    }

    #[test]
    fn a_credential_is_as_old_as_its_last_change() {
        let home = Home { account_id: "111122223333".to_owned(), region: "us-east-1".to_owned() };
        let mut state = state();
        let later = NOW.plus_days(3);
        let renamed = StoreChange { name: Some("two".to_owned()), ..StoreChange::default() };
        state.update_store(&home, "cks-1", renamed, later).unwrap();
        assert_eq!(state.store("cks-1").unwrap().credential_since, NOW);
        let credential = Some(("B".repeat(20), SecretText::new("t".repeat(43))));
        let changed = StoreChange { credential, ..StoreChange::default() };
        state.update_store(&home, "cks-1", changed, later).unwrap();
        assert_eq!(state.store("cks-1").unwrap().credential_since, later);
        assert!(!format!("{state:?}").contains("ttt"));
    }
}
