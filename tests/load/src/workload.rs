//! What is sent: the mix of operations, and a pool of requests built before the run.

use std::ops::Range;
use std::str::FromStr;

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::check::{EncryptAnswer, Expect};
use crate::target::Store;

/// An operation of the XKS proxy API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Encrypt
    Encrypt,
    /// Decrypt
    Decrypt,
    /// GetKeyMetadata
    Metadata,
    /// GetHealthStatus
    Health,
}

impl Operation {
    /// Every operation, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Encrypt, Self::Decrypt, Self::Metadata, Self::Health];

    /// The last segment of the operation's path, which names it in flags and reports too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Metadata => "metadata",
            Self::Health => "health",
        }
    }
}

/// How often each operation is chosen, relative to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    weights: [u32; 4],
}

impl Mix {
    /// The weight of `operation`.
    pub fn weight(&self, operation: Operation) -> u32 {
        self.weights[operation as usize]
    }

    /// The share of `operation`, from 0 to 1.
    pub fn share(&self, operation: Operation) -> f64 {
        f64::from(self.weight(operation)) / f64::from(self.total())
    }

    fn total(&self) -> u32 {
        self.weights.iter().sum()
    }

    fn choose(&self, rng: &mut fastrand::Rng) -> Operation {
        let mut rest = rng.u32(..self.total());
        for operation in Operation::ALL {
            let weight = self.weight(operation);
            if rest < weight {
                return operation;
            }
            rest -= weight;
        }
        Operation::Health
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = [0; 4];
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or("expected OPERATION=WEIGHT,…")?;
            let operation = Operation::ALL
                .into_iter()
                .find(|operation| operation.name() == name.trim())
                .ok_or_else(|| format!("unknown operation {name:?}: encrypt, decrypt, metadata or health"))?;
            let weight: u32 =
                weight.trim().parse().map_err(|_| format!("weight of {name}: not a whole number"))?;
            if weight > 1_000_000 {
                return Err(format!("weight of {name}: at most 1000000"));
            }
            weights[operation as usize] = weight;
        }
        let mix = Self { weights };
        if mix.total() == 0 { Err("every weight is zero".to_owned()) } else { Ok(mix) }
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let chosen = Operation::ALL.into_iter().filter(|operation| self.weight(*operation) > 0);
        let parts: Vec<_> =
            chosen.map(|operation| format!("{}={}", operation.name(), self.weight(operation))).collect();
        f.write_str(&parts.join(","))
    }
}

/// What the requests of a run hold.
#[derive(Debug, Clone)]
pub struct WorkloadSettings {
    /// The mix of operations.
    pub mix: Mix,
    /// Plaintext of an encrypt: 1 to 4,300 bytes (specification, Encrypt).
    pub plaintext_bytes: usize,
    /// Additional authenticated data: 0 (the field is left out) to 8,192 bytes.
    pub aad_bytes: usize,
    /// Whether encrypts ask for a ciphertext data integrity value.
    pub cdiv: bool,
    /// Distinct requests per operation: at least one for each key of each store, if all are to be reached.
    pub pool: usize,
    /// `awsPrincipalArn` of the request metadata.
    pub principal_arn: String,
    /// `kmsKeyArn` of the request metadata.
    pub kms_key_arn: String,
    /// Seed of plaintexts, AAD and request ids.
    pub seed: u64,
}

/// A request of the pool.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Its operation.
    pub operation: Operation,
    /// Number of the store that it is for.
    pub store: usize,
    /// Path of the URI.
    pub path: String,
    /// JSON body.
    pub body: Bytes,
    /// Where in the body the `kmsRequestId` stands, so that it can be renewed.
    pub request_id: Range<usize>,
    /// What a right answer holds.
    pub expect: Expect,
}

/// The pool of requests of a run.
#[derive(Debug)]
pub struct Workload {
    mix: Mix,
    pool: usize,
    requests: Vec<Prepared>,
    starts: [usize; 4],
}

impl Workload {
    /// A workload of `mix` over requests that stand together by operation, `pool` of each.
    pub(crate) fn new(mix: Mix, pool: usize, requests: Vec<Prepared>) -> Self {
        let starts = Operation::ALL.map(|operation| {
            requests.iter().position(|request| request.operation == operation).unwrap_or_default()
        });
        Self { mix, pool, requests, starts }
    }

    /// Every request of the pool.
    pub fn requests(&self) -> &[Prepared] {
        &self.requests
    }

    /// The mix of operations.
    pub fn mix(&self) -> Mix {
        self.mix
    }
}

/// Chooses requests out of a workload: the operation by weight, then each request of the operation in turn.
#[derive(Debug)]
pub struct Chooser {
    turns: [usize; 4],
    rng: fastrand::Rng,
}

impl Chooser {
    /// A chooser for worker number `worker`, whose turns begin elsewhere than those of the others.
    pub fn new(worker: u32, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ (u64::from(worker) << 32));
        Self { turns: std::array::from_fn(|_| rng.usize(..1 << 32)), rng }
    }

    /// The place of the next request in [`Workload::requests`].
    pub fn next(&mut self, workload: &Workload) -> usize {
        let operation = workload.mix.choose(&mut self.rng) as usize;
        self.turns[operation] += 1;
        workload.starts[operation] + self.turns[operation] % workload.pool
    }
}

/// Builds the bodies of a run.
pub(crate) struct Builder<'a> {
    settings: &'a WorkloadSettings,
    stores: &'a [Store],
    key_ids: &'a [String],
    rng: fastrand::Rng,
}

/// An encrypt of the pool, with what its decrypt will need.
pub(crate) struct EncryptDraft {
    pub(crate) prepared: Prepared,
    index: usize,
    plaintext_b64: String,
    aad_b64: Option<String>,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(settings: &'a WorkloadSettings, stores: &'a [Store], key_ids: &'a [String]) -> Self {
        Self { settings, stores, key_ids, rng: fastrand::Rng::with_seed(settings.seed) }
    }

    /// Encrypt number `index` of the pool; the numbers spread over the stores and their keys.
    pub(crate) fn encrypt(&mut self, index: usize) -> EncryptDraft {
        let (store, key) = self.place(index);
        let plaintext = self.random_bytes(self.settings.plaintext_bytes);
        let aad = self.random_bytes(self.settings.aad_bytes);
        let plaintext_b64 = BASE64_STANDARD.encode(&plaintext);
        let aad_b64 = (!aad.is_empty()).then(|| BASE64_STANDARD.encode(&aad));
        let mut fields = json!({ "plaintext": plaintext_b64, "encryptionAlgorithm": "AES_GCM" });
        if let Some(aad_b64) = &aad_b64 {
            fields["additionalAuthenticatedData"] = json!(aad_b64);
        }
        if self.settings.cdiv {
            fields["ciphertextDataIntegrityValueAlgorithm"] = json!("SHA_256");
        }
        let expect = Expect::Encrypt {
            plaintext_bytes: plaintext.len(),
            aad: aad.into(),
            cdiv: self.settings.cdiv,
            key: store * self.key_ids.len() + key,
        };
        let prepared = self.prepared(Operation::Encrypt, index, "GenerateDataKey", fields, expect);
        EncryptDraft { prepared, index, plaintext_b64, aad_b64 }
    }

    /// The decrypt of what the target answered to `draft`.
    pub(crate) fn decrypt(&mut self, draft: &EncryptDraft, answer: &EncryptAnswer<'_>) -> Prepared {
        let mut fields = json!({
            "ciphertext": answer.ciphertext,
            "initializationVector": answer.initialization_vector,
            "authenticationTag": answer.authentication_tag,
            "encryptionAlgorithm": "AES_GCM",
        });
        if let Some(metadata) = &answer.ciphertext_metadata {
            fields["ciphertextMetadata"] = json!(metadata);
        }
        if let Some(aad_b64) = &draft.aad_b64 {
            fields["additionalAuthenticatedData"] = json!(aad_b64);
        }
        let expect = Expect::Decrypt { plaintext_b64: draft.plaintext_b64.clone() };
        self.prepared(Operation::Decrypt, draft.index, "Decrypt", fields, expect)
    }

    pub(crate) fn metadata(&mut self, index: usize) -> Prepared {
        self.prepared(Operation::Metadata, index, "CreateKey", json!({}), Expect::Metadata)
    }

    pub(crate) fn health(&mut self, index: usize) -> Prepared {
        self.prepared(Operation::Health, index, "KmsHealthCheck", json!({}), Expect::Health)
    }

    /// The store and the key of number `index`: each store in turn, and in each its keys in turn.
    fn place(&self, index: usize) -> (usize, usize) {
        (index % self.stores.len(), index / self.stores.len() % self.key_ids.len())
    }

    fn prepared(
        &mut self,
        operation: Operation,
        index: usize,
        kms_operation: &str,
        mut fields: Value,
        expect: Expect,
    ) -> Prepared {
        let request_id = request_id(&mut self.rng);
        let mut metadata = json!({ "kmsOperation": kms_operation, "kmsRequestId": request_id });
        if operation != Operation::Health {
            metadata["awsPrincipalArn"] = json!(self.settings.principal_arn);
        }
        if matches!(operation, Operation::Encrypt | Operation::Decrypt) {
            metadata["kmsKeyArn"] = json!(self.settings.kms_key_arn);
        }
        fields["requestMetadata"] = metadata;
        let body = fields.to_string();
        let start = body.rfind(&request_id).unwrap_or_default();
        let (store, key) = self.place(index);
        let prefix = &self.stores[store].uri_prefix;
        let path = match operation {
            Operation::Health => format!("{prefix}/kms/xks/v1/health"),
            _ => format!("{prefix}/kms/xks/v1/keys/{}/{}", self.key_ids[key], operation.name()),
        };
        let request_id = start..start + request_id.len();
        Prepared { operation, store, path, request_id, body: body.into(), expect }
    }

    fn random_bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.rng.u8(..)).take(length).collect()
    }
}

/// A fresh `kmsRequestId` in the form of a version 4 UUID.
pub(crate) fn request_id(rng: &mut fastrand::Rng) -> String {
    let bits = rng.u128(..);
    format!(
        "{:08x}-{:04x}-4{:03x}-{:x}{:03x}-{:012x}",
        bits >> 96,
        (bits >> 80) & 0xffff,
        (bits >> 68) & 0xfff,
        8 | ((bits >> 66) & 3),
        (bits >> 54) & 0xfff,
        bits & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::Signer;

    fn stores(prefixes: &[&str]) -> Vec<Store> {
        let store = |prefix: &&str| {
            let signer = Signer::new("AKID", "secret", "us-east-1", "localhost");
            Store { uri_prefix: (*prefix).to_owned(), signer }
        };
        prefixes.iter().map(store).collect()
    }

    fn settings(mix: &str, aad_bytes: usize) -> WorkloadSettings {
        WorkloadSettings {
            mix: mix.parse().unwrap(),
            plaintext_bytes: 32,
            aad_bytes,
            cdiv: true,
            pool: 4,
            principal_arn: "arn:aws:iam::123456789012:user/Alice".to_owned(),
            kms_key_arn: "arn:aws:kms:us-east-1:123456789012:key/k".to_owned(),
            seed: 1,
        }
    }

    #[test]
    fn a_mix_reads_back_as_written_and_refuses_what_it_does_not_know() {
        let mix: Mix = "encrypt=90,decrypt=5,metadata=4,health=1".parse().unwrap();
        assert_eq!(mix.to_string(), "encrypt=90,decrypt=5,metadata=4,health=1");
        for fault in ["", "encrypt", "encrypt=x", "sign=1", "encrypt=0", "encrypt=2000000"] {
            assert!(fault.parse::<Mix>().is_err(), "{fault}");
        }
    }

    #[test]
    fn operations_come_by_weight_and_requests_in_turn() {
        let settings = settings("encrypt=75,health=25", 0);
        let keys = ["a".to_owned(), "b".to_owned()];
        let stores = stores(&[""]);
        let mut builder = Builder::new(&settings, &stores, &keys);
        let mut requests: Vec<_> = (0..4).map(|index| builder.encrypt(index).prepared).collect();
        requests.extend((0..4).map(|index| builder.health(index)));
        let workload = Workload::new(settings.mix, 4, requests);
        let mut chooser = Chooser::new(0, 9);
        let mut counts = [0_u32; 8];
        for _ in 0..10_000 {
            counts[chooser.next(&workload)] += 1;
        }
        let encrypts: u32 = counts[..4].iter().sum();
        assert!((7_300..7_700).contains(&encrypts), "{counts:?}");
        assert!(counts[..4].iter().all(|count| count.abs_diff(encrypts / 4) <= 1), "{counts:?}");
    }

    #[test]
    fn requests_are_dealt_out_over_every_key_of_every_store() {
        let (settings, keys) = (settings("encrypt=1", 0), ["a".to_owned(), "b".to_owned()]);
        let stores = stores(&["/s", "/t"]);
        let mut builder = Builder::new(&settings, &stores, &keys);
        let encrypts: Vec<_> = (0..4).map(|index| builder.encrypt(index).prepared).collect();
        let places: Vec<_> =
            encrypts.iter().map(|prepared| (prepared.store, prepared.path.as_str())).collect();
        let path = |store: &str, key: &str| format!("{store}/kms/xks/v1/keys/{key}/encrypt");
        let expected =
            [(0, path("/s", "a")), (1, path("/t", "a")), (0, path("/s", "b")), (1, path("/t", "b"))];
        assert!(
            places.iter().zip(&expected).all(|(have, want)| have.0 == want.0 && have.1 == want.1),
            "{places:?}"
        );
        let key_of = |prepared: &Prepared| match prepared.expect {
            Expect::Encrypt { key, .. } => key,
            _ => usize::MAX,
        };
        // An IV may come again under another store's key of the same name, and only there.
        let distinct: std::collections::BTreeSet<_> = encrypts.iter().map(key_of).collect();
        assert_eq!(distinct.len(), 4);
    }

    #[test]
    fn a_body_holds_what_the_specification_asks_for_and_its_request_id_can_be_renewed() {
        let settings = settings("encrypt=1", 16);
        let keys = ["key-1".to_owned()];
        let prepared = Builder::new(&settings, &stores(&["/p"]), &keys).encrypt(0).prepared;
        assert_eq!(prepared.path, "/p/kms/xks/v1/keys/key-1/encrypt");
        let body: Value = serde_json::from_slice(&prepared.body).unwrap();
        let id = std::str::from_utf8(&prepared.body[prepared.request_id.clone()]).unwrap();
        assert_eq!(body["requestMetadata"]["kmsRequestId"], id);
        assert_eq!(id.len(), 36);
        assert_eq!(body["requestMetadata"]["kmsKeyArn"], settings.kms_key_arn);
        assert_eq!(BASE64_STANDARD.decode(body["plaintext"].as_str().unwrap()).unwrap().len(), 32);
        assert_eq!(body["additionalAuthenticatedData"].as_str().unwrap().len(), 24);
        assert_eq!(body["ciphertextDataIntegrityValueAlgorithm"], "SHA_256");
        let bare = WorkloadSettings { cdiv: false, aad_bytes: 0, ..settings };
        let prepared = Builder::new(&bare, &stores(&[""]), &keys).encrypt(0).prepared;
        let body: Value = serde_json::from_slice(&prepared.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
    }
}
