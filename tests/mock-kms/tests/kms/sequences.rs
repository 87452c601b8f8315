//! Ten thousand random sequences of operations, each answer and every state compared with a reference model that is so
//! small that it can be read.

mod reference;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use xks_harness::Pki;
use xks_spec::ErrorName;

use crate::fake_proxy::{Behaviour, FakeProxy};
use crate::mock::{store_members, with, xks_key_members};
use mock_kms::api::{Operation, Service, Settings};
use mock_kms::kms::State;
use mock_kms::kms::name::Home;
use mock_kms::xks::Client;
use reference::{Reference, Step};

const SEQUENCES: u64 = 10_000;
const STEPS: usize = 14;
const THREADS: u64 = 2;

#[test]
fn ten_thousand_random_sequences_agree_with_the_reference() {
    let threads: Vec<_> = (0..THREADS).map(|thread| std::thread::spawn(move || run_share(thread))).collect();
    let mut seen = Seen::new();
    for thread in threads {
        for (what, count) in thread.join().unwrap() {
            *seen.entry(what).or_default() += count;
        }
    }
    // Sequences that never come to the interesting states would agree with anything.
    for (operation, outcome) in [
        ("Encrypt", ""),
        ("Encrypt", "DisabledException"),
        ("Encrypt", "KMSInvalidStateException"),
        ("Decrypt", ""),
        ("Decrypt", "AccessDeniedException"),
        ("Decrypt", "KMSInvalidStateException"),
        ("ReEncrypt", ""),
        ("CreateKey", "XksKeyAlreadyInUseException"),
        ("CreateKey", "CustomKeyStoreInvalidStateException"),
        ("ConnectCustomKeyStore", "CustomKeyStoreInvalidStateException"),
        ("DeleteCustomKeyStore", ""),
        ("DeleteCustomKeyStore", "CustomKeyStoreHasCMKsException"),
        ("UpdateCustomKeyStore", "XksProxyIncorrectAuthenticationCredentialException"),
        ("UpdateCustomKeyStore", "XksProxyUriInUseException"),
        ("CancelKeyDeletion", ""),
        ("UpdateAlias", ""),
    ] {
        let count = seen.get(&(operation, outcome)).copied().unwrap_or_default();
        assert!(count >= 20, "{operation} {outcome}: {count} times of {seen:#?}");
    }
}

/// How often each operation had each outcome; the empty one is success.
type Seen = BTreeMap<(&'static str, &'static str), u32>;

fn run_share(thread: u64) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let proxy = FakeProxy::start().await;
        let client = Client::builder()
            .resolve("localhost", proxy.address)
            .without_system_roots()
            .trust_ca_pem(Pki::shared().ca_pem().as_bytes())
            .unwrap()
            .try_timeout(Duration::from_secs(30))
            .build()
            .unwrap();
        let mut seen = Seen::new();
        for seed in (thread..SEQUENCES).step_by(usize::try_from(THREADS).unwrap()) {
            proxy.behave(Behaviour::Good);
            Run::new(client.clone(), &proxy, seed, &mut seen).steps().await;
            proxy.take_seen();
        }
        seen
    })
}

/// One sequence: the KMS, the reference, and what their ids are called in each other.
struct Run<'a> {
    service: Arc<Service>,
    proxy: &'a FakeProxy,
    reference: Reference,
    /// Ids of the reference's stores, in its order.
    stores: Vec<String>,
    /// ARNs of the reference's keys, in its order.
    keys: Vec<String>,
    /// Blobs of the reference's, in its order.
    blobs: Vec<Value>,
    random: Random,
    told: Vec<String>,
    seen: &'a mut Seen,
}

impl<'a> Run<'a> {
    fn new(client: Client, proxy: &'a FakeProxy, seed: u64, seen: &'a mut Seen) -> Self {
        let settings = Settings {
            home: Home { account_id: "111122223333".to_owned(), region: "us-east-1".to_owned() },
            connect_delay: Duration::ZERO,
            disconnect_delay: Duration::ZERO,
            requests_per_second: 1800,
        };
        Self {
            service: Service::new(settings, client, State::default(), None),
            proxy,
            reference: Reference::default(),
            stores: Vec::new(),
            keys: Vec::new(),
            blobs: Vec::new(),
            random: Random(seed),
            told: vec![format!("seed {seed}")],
            seen,
        }
    }

    async fn steps(&mut self) {
        // Every other sequence begins where it is interesting.
        let first = if self.random.below(2) == 0 { Reference::first_steps() } else { Vec::new() };
        let mut first = first.into_iter();
        for _ in 0..STEPS {
            let random_step = || self.reference.random_step(&mut |below| self.random.below(below));
            let step = first.next().unwrap_or_else(random_step);
            self.told.push(format!("{step:?}"));
            match step {
                Step::SetProxy { is_good } => {
                    let refusal = Behaviour::Refuse(ErrorName::AuthenticationFailedException);
                    self.proxy.behave(if is_good { Behaviour::Good } else { refusal });
                }
                Step::Advance { days } => {
                    let moved = self.service.change(|state, _| {
                        state.clock_ahead_secs += days * 86_400;
                        Ok(())
                    });
                    moved.unwrap();
                }
                Step::ConnectSlowly { store, meanwhile } => {
                    self.proxy.hold(true);
                    self.take(Step::Connect { store }).await;
                    self.compare();
                    self.take(*meanwhile).await;
                    self.compare();
                    self.proxy.hold(false);
                    self.settle().await;
                    self.reference.settle();
                    self.compare();
                    continue;
                }
                _ => {}
            }
            self.take(step).await;
            self.settle().await;
            self.reference.settle();
            self.compare();
        }
    }

    /// Takes a step on both sides and compares the answers.
    async fn take(&mut self, step: Step) {
        let expected = self.reference.apply(&step);
        let Some((operation, body)) = self.request(&step) else { return };
        let operation = Operation::parse(operation).unwrap();
        let answer = self.service.call(operation, "arn:aws:iam::111122223333:user/a", "r", &body).await;
        let found = answer.as_ref().map(drop).map_err(|error| error.exception.name());
        assert_eq!(found, expected, "{body} {:#?}", self.told);
        *self.seen.entry((operation.name(), found.err().unwrap_or_default())).or_default() += 1;
        if let Ok(Some(answer)) = answer {
            let text = |member: &Value| member.as_str().unwrap().to_owned();
            match step {
                Step::CreateStore { .. } => self.stores.push(text(&answer["CustomKeyStoreId"])),
                Step::CreateKey { .. } | Step::CreatePlainKey => {
                    self.keys.push(text(&answer["KeyMetadata"]["Arn"]));
                }
                Step::Encrypt { .. } | Step::EncryptByAlias { .. } => {
                    self.blobs.push(answer["CiphertextBlob"].clone());
                }
                Step::Decrypt { .. } => assert_eq!(answer["Plaintext"], "aGVsbG8=", "{:#?}", self.told),
                _ => {}
            }
        }
    }

    fn request(&self, step: &Step) -> Option<(&'static str, Value)> {
        let store_id = |store: &usize| json!({ "CustomKeyStoreId": self.stores[*store] });
        let key_id = |key: &usize| json!({ "KeyId": self.keys[*key] });
        let path = |path: &usize| format!("/p{path}/kms/xks/v1");
        let alias = |alias: &usize| format!("alias/{alias}");
        Some(match step {
            Step::CreateStore { name, path: at } => {
                let changes = json!({ "XksProxyUriPath": path(at) });
                ("CreateCustomKeyStore", with(store_members(&format!("{name}")), &changes))
            }
            Step::Rename { store, name } => (
                "UpdateCustomKeyStore",
                with(store_id(store), &json!({ "NewCustomKeyStoreName": format!("{name}") })),
            ),
            Step::MovePath { store, path: at } => {
                ("UpdateCustomKeyStore", with(store_id(store), &json!({ "XksProxyUriPath": path(at) })))
            }
            Step::SetEndpoint { store } => {
                let changes = json!({ "XksProxyUriEndpoint": "https://localhost" });
                ("UpdateCustomKeyStore", with(store_id(store), &changes))
            }
            Step::Connect { store } => ("ConnectCustomKeyStore", store_id(store)),
            Step::Disconnect { store } => ("DisconnectCustomKeyStore", store_id(store)),
            Step::DeleteStore { store } => ("DeleteCustomKeyStore", store_id(store)),
            Step::CreateKey { store, xks_key } => {
                ("CreateKey", xks_key_members(&self.stores[*store], &format!("{xks_key}")))
            }
            Step::CreatePlainKey => ("CreateKey", json!({})),
            Step::Enable { key } => ("EnableKey", key_id(key)),
            Step::Disable { key } => ("DisableKey", key_id(key)),
            Step::Schedule { key, days } => {
                ("ScheduleKeyDeletion", with(key_id(key), &json!({ "PendingWindowInDays": days })))
            }
            Step::Cancel { key } => ("CancelKeyDeletion", key_id(key)),
            Step::CreateAlias { alias: name, key } => {
                ("CreateAlias", json!({ "AliasName": alias(name), "TargetKeyId": self.keys[*key] }))
            }
            Step::UpdateAlias { alias: name, key } => {
                ("UpdateAlias", json!({ "AliasName": alias(name), "TargetKeyId": self.keys[*key] }))
            }
            Step::DeleteAlias { alias: name } => ("DeleteAlias", json!({ "AliasName": alias(name) })),
            Step::Encrypt { key } => ("Encrypt", with(key_id(key), &json!({ "Plaintext": "aGVsbG8=" }))),
            Step::EncryptByAlias { alias: name } => {
                ("Encrypt", json!({ "KeyId": alias(name), "Plaintext": "aGVsbG8=" }))
            }
            Step::Decrypt { blob } => ("Decrypt", json!({ "CiphertextBlob": self.blobs[*blob] })),
            Step::ReEncrypt { blob, key } => (
                "ReEncrypt",
                json!({ "CiphertextBlob": self.blobs[*blob], "DestinationKeyId": self.keys[*key] }),
            ),
            Step::SetProxy { .. } | Step::Advance { .. } | Step::ConnectSlowly { .. } => return None,
        })
    }

    /// Waits until no store is connecting.
    async fn settle(&self) {
        let is_connecting = || {
            self.service
                .read(|state, _| state.stores.values().any(|store| store.connection.as_str() == "CONNECTING"))
        };
        while is_connecting() {
            tokio::task::yield_now().await;
        }
    }

    /// Compares every state.
    fn compare(&self) {
        let (stores, keys, aliases) = self.service.read(|state, _| {
            let stores: Vec<_> = self.stores.iter().map(|id| state.stores.get(id)).collect();
            let stores = stores.into_iter().map(|store| {
                store.map(|store| {
                    (store.name.clone(), store.proxy.uri_path.clone(), store.connection.as_str())
                })
            });
            let keys = self.keys.iter().map(|arn| {
                let key = state.keys.get(arn.rsplit_once('/').unwrap().1);
                key.map(|key| state.key_state(key).as_str())
            });
            let aliases = state.aliases.values().map(|alias| {
                let key = self.keys.iter().position(|arn| arn.ends_with(&alias.target_key_id));
                (alias.name.clone(), key.unwrap())
            });
            (stores.collect::<Vec<_>>(), keys.collect::<Vec<_>>(), aliases.collect::<Vec<_>>())
        });
        assert_eq!(stores, self.reference.store_states(), "{:#?}", self.told);
        assert_eq!(keys, self.reference.key_states(), "{:#?}", self.told);
        assert_eq!(aliases, self.reference.alias_targets(), "{:#?}", self.told);
    }
}

/// SplitMix64: the same sequence for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = mixed ^ (mixed >> 31);
        usize::try_from(mixed % below as u64).unwrap()
    }
}
