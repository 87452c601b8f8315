//! Each operation from its body to the answer's, on an HSM that answers at once.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use tokio::runtime::Runtime;
use xks_proxy::clock::{self, Deadline};
use xks_proxy::hsm::{
    Checked, Digest, HealthStatus, Hsm, HsmFuture, KeyAttributes, KeyKind, KeyMaterial, KeyUsages, Outcome,
    Plaintext, Sealed, TAG_BYTES, Terms, TokenHealth,
};
use xks_proxy::iv_budget::{IvBudget, IvBudgetSettings};
use xks_proxy::keystore::{CredentialUses, KeyMap, KeyRule, KeyStore, LatestKeys, StoreQuota};
use xks_proxy::metrics::Metrics;
use xks_proxy::operations::{Context, Fleet, Trace, decrypt, encrypt, get_health_status, get_key_metadata};
use xks_spec::{ExternalKeyId, UriPathPrefix};

use crate::parsing::{LIMITS, body_of_decrypt, body_of_metadata};
use crate::{SIZES_BYTES, encrypt_body};

/// Answers at once, without any cryptography.
struct Immediate;

fn at_once<'a, T: Send + 'a>(value: T) -> HsmFuture<'a, T> {
    Box::pin(std::future::ready(Outcome { result: Ok(value), report: Default::default() }))
}

fn sealed(plaintext: &Plaintext, terms: &Terms) -> Sealed {
    terms.on_iv.iter().for_each(|on_iv| on_iv());
    Sealed { iv: vec![1; 12], ciphertext_and_tag: [plaintext.as_slice(), &[2; TAG_BYTES]].concat() }
}

impl Hsm for Immediate {
    fn encrypt<'a>(
        &'a self,
        _: &'a KeyMaterial,
        plaintext: Plaintext,
        _: Arc<[u8]>,
        terms: Terms,
    ) -> HsmFuture<'a, Sealed> {
        at_once(sealed(&plaintext, &terms))
    }

    fn encrypt_checked<'a>(
        &'a self,
        _: &'a KeyMaterial,
        plaintext: Plaintext,
        _: Arc<[u8]>,
        digest: Digest,
        terms: Terms,
    ) -> HsmFuture<'a, Checked> {
        let sealed = sealed(&plaintext, &terms);
        let digest = digest(&sealed);
        at_once(Checked { sealed, digest })
    }

    fn decrypt<'a>(
        &'a self,
        _: &'a KeyMaterial,
        sealed: Arc<Sealed>,
        _: Arc<[u8]>,
        _: Terms,
    ) -> HsmFuture<'a, Plaintext> {
        let plaintext = sealed.ciphertext_and_tag.len() - TAG_BYTES;
        at_once(Arc::new(sealed.ciphertext_and_tag[..plaintext].to_vec().into()))
    }

    fn key_attributes<'a>(&'a self, _: &'a KeyMaterial, _: Deadline) -> HsmFuture<'a, KeyAttributes> {
        let usages = KeyUsages { encrypt: true, decrypt: true, ..KeyUsages::default() };
        at_once(KeyAttributes { object: 1, kind: KeyKind::Aes { bits: Some(256) }, usages })
    }

    fn health(&self) -> Vec<TokenHealth> {
        let status = Some(HealthStatus::Active);
        vec![TokenHealth { name: "token".into(), identity: None, status, reason: None }]
    }
}

fn store() -> KeyStore {
    let (metrics, name) = (Arc::new(Metrics::new()), Arc::from("main"));
    let in_memory = IvBudgetSettings { dir: None, share: 1 << 32 };
    let keys = Arc::new(KeyMap::new(Default::default(), Some(KeyRule::of_one_version(""))));
    let number = NonZeroU32::MAX;
    KeyStore {
        iv_counts: Arc::new(IvBudget::open(&in_memory, &metrics).unwrap().of_store(&name)),
        credential_uses: CredentialUses::new(&name, std::iter::empty(), &metrics),
        latest: LatestKeys::new(true, Arc::clone(&keys)),
        name,
        prefix: UriPathPrefix::parse("/main").unwrap(),
        is_enabled: true,
        credentials: crate::sigv4::credentials(),
        keys,
        aws_sample: None,
        policies: None,
        hsm: Arc::new(Immediate),
        quota: Arc::new(StoreQuota::new(number, number)),
    }
}

pub(crate) fn measure(criterion: &mut Criterion) {
    let (store, id) = (store(), ExternalKeyId::parse("demo").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = Bench { store: &store, runtime: &runtime };
    let mut group = criterion.benchmark_group("operation");
    for (plaintext_bytes, aad_bytes) in SIZES_BYTES {
        for (name, with_value) in [("encrypt", false), ("encrypt with integrity value", true)] {
            let body = encrypt_body(plaintext_bytes, aad_bytes, with_value);
            group.bench_function(format!("{name}, {plaintext_bytes} bytes"), |bencher| {
                bencher.iter(|| {
                    bench.run(async |context| {
                        serde_json::to_vec(&encrypt(context, &id, black_box(&body)).await.unwrap())
                    })
                });
            });
        }
        let body = body_of_decrypt(plaintext_bytes, aad_bytes);
        group.bench_function(format!("decrypt, {plaintext_bytes} bytes"), |bencher| {
            bencher.iter(|| {
                bench.run(async |context| {
                    serde_json::to_vec(&decrypt(context, &id, black_box(&body)).await.unwrap())
                })
            });
        });
    }
    let body = body_of_metadata("CreateKey");
    group.bench_function("GetKeyMetadata", |bencher| {
        bencher.iter(|| {
            bench.run(async |context| {
                serde_json::to_vec(&get_key_metadata(context, &id, black_box(&body)).await.unwrap())
            })
        });
    });
    let (body, fleet) = (body_of_metadata("KmsHealthCheck"), Fleet { size: NonZeroU32::MIN });
    group.bench_function("GetHealthStatus", |bencher| {
        bencher.iter(|| {
            bench.run(async |context| {
                serde_json::to_vec(&get_health_status(context, fleet, false, black_box(&body)).unwrap())
            })
        });
    });
    group.finish();
}

struct Bench<'a> {
    store: &'a KeyStore,
    runtime: &'a Runtime,
}

impl Bench<'_> {
    /// One operation with a context of its own, as each request has.
    fn run(&self, operation: impl AsyncFnOnce(&mut Context<'_>) -> serde_json::Result<Vec<u8>>) -> Vec<u8> {
        let mut trace = Trace::default();
        let deadline = Deadline::after(clock::now(), Duration::from_millis(200));
        let mut context = Context { store: self.store, deadline, limits: LIMITS, trace: &mut trace };
        self.runtime.block_on(operation(&mut context)).unwrap()
    }
}
