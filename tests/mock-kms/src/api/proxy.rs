//! Calls to proxies on behalf of a call to KMS.

use xks_spec::response::{GetHealthStatusResponse, GetKeyMetadataResponse};
use xks_spec::{Operation, RequestMetadata};
use zeroize::Zeroizing;

use super::failure::for_journal;
use super::service::{Call, Service};
use crate::kms::journal::ProxyCall;
use crate::kms::store::{ProxySettings, Store};
use crate::xks::{Ciphertext, Exchange, Failure, Proxy};

/// The operation that a periodic health check names.
pub(super) const HEALTH_CHECK: &str = "KmsHealthCheck";

impl Service {
    fn proxy(&self, proxy: &ProxySettings) -> Proxy {
        let (id, secret) = (&proxy.access_key_id, proxy.secret_access_key.expose());
        Proxy::new(proxy.host(), &proxy.uri_path, id, secret, &self.settings.home.region)
    }

    /// Asks for a proxy's health. `store_id` is empty while there is no store yet.
    pub(super) async fn health(
        &self,
        store_id: &str,
        proxy: &ProxySettings,
        kms_operation: &str,
        kms_request_id: &str,
    ) -> (Result<GetHealthStatusResponse, Failure>, ProxyCall) {
        let metadata = RequestMetadata {
            kms_operation: Some(kms_operation.to_owned()),
            kms_request_id: Some(kms_request_id.to_owned()),
            ..RequestMetadata::default()
        };
        let exchange = self.client.health_status(&self.proxy(proxy), &metadata).await;
        if !store_id.is_empty() {
            self.note_health(store_id, proxy, exchange.outcome.as_ref().ok());
        }
        let call = proxy_call(store_id, Operation::GetHealthStatus, &exchange);
        (exchange.outcome, call)
    }

    fn note_health(&self, store_id: &str, proxy: &ProxySettings, health: Option<&GetHealthStatusResponse>) {
        let (now, is_in_use) =
            self.read(|state, now| (now, state.store(store_id).is_ok_and(|store| store.proxy == *proxy)));
        match health {
            Some(health) => self.journal.note_health(store_id, now, health.clone()),
            None if is_in_use => self.journal.forget_health(store_id),
            // New settings of an update, which come to nothing.
            None => {}
        }
    }
}

impl Call<'_> {
    /// Asks for a proxy's health.
    pub(super) async fn health(
        &self,
        store_id: &str,
        proxy: &ProxySettings,
    ) -> Result<GetHealthStatusResponse, Failure> {
        let (outcome, proxy_call) =
            self.service.health(store_id, proxy, self.operation.name(), self.request_id).await;
        self.note_proxy_call(proxy_call);
        outcome
    }

    /// Asks what an external key is.
    pub(super) async fn key_metadata(
        &self,
        store: &Store,
        external_key_id: &str,
    ) -> Result<GetKeyMetadataResponse, Failure> {
        let proxy = self.service.proxy(&store.proxy);
        let exchange = self.service.client.key_metadata(&proxy, external_key_id, &self.metadata(None)).await;
        self.noted(store, Operation::GetKeyMetadata, exchange)
    }

    /// Has the proxy encrypt.
    pub(super) async fn proxy_encrypt(
        &self,
        store: &Store,
        external_key_id: &str,
        kms_key_arn: &str,
        plaintext: &[u8],
        aad: &[u8],
    ) -> Result<Ciphertext, Failure> {
        let (proxy, metadata) = (self.service.proxy(&store.proxy), self.metadata(Some(kms_key_arn)));
        let client = &self.service.client;
        let exchange = client.encrypt(&proxy, external_key_id, &metadata, plaintext, Some(aad)).await;
        self.noted(store, Operation::Encrypt, exchange)
    }

    /// Has the proxy decrypt.
    pub(super) async fn proxy_decrypt(
        &self,
        store: &Store,
        external_key_id: &str,
        kms_key_arn: &str,
        ciphertext: &Ciphertext,
        aad: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let (proxy, metadata) = (self.service.proxy(&store.proxy), self.metadata(Some(kms_key_arn)));
        let client = &self.service.client;
        let exchange = client.decrypt(&proxy, external_key_id, &metadata, ciphertext, Some(aad)).await;
        self.noted(store, Operation::Decrypt, exchange)
    }

    fn metadata(&self, kms_key_arn: Option<&str>) -> RequestMetadata {
        RequestMetadata {
            aws_principal_arn: Some(self.principal.to_owned()),
            kms_key_arn: kms_key_arn.map(str::to_owned),
            kms_operation: Some(self.operation.name().to_owned()),
            kms_request_id: Some(self.request_id.to_owned()),
            ..RequestMetadata::default()
        }
    }

    fn noted<T>(&self, store: &Store, operation: Operation, exchange: Exchange<T>) -> Result<T, Failure> {
        self.note_proxy_call(proxy_call(&store.id, operation, &exchange));
        exchange.outcome
    }
}

fn proxy_call<T>(store_id: &str, operation: Operation, exchange: &Exchange<T>) -> ProxyCall {
    ProxyCall {
        store_id: store_id.to_owned(),
        operation,
        failure: exchange.outcome.as_ref().err().map(for_journal),
        report: exchange.report.clone(),
    }
}
