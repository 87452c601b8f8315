//! Secondary authorization: the examples of deploy/policies together, as a careful owner would have them.

use std::hint::black_box;

use criterion::Criterion;
use serde_json::json;
use xks_proxy::policy::{KeyOperation, Policies, PolicySource, Query};
use xks_spec::{ExternalKeyId, RequestMetadata};

const FILES: [(&str, &str); 5] = [
    ("base", include_str!("../../deploy/policies/base.cedar")),
    ("accounts", include_str!("../../deploy/policies/accounts.cedar")),
    ("kms-key", include_str!("../../deploy/policies/kms-key.cedar")),
    ("via-service", include_str!("../../deploy/policies/via-service.cedar")),
    ("vpc-endpoint", include_str!("../../deploy/policies/vpc-endpoint.cedar")),
];

fn sources() -> [PolicySource; 5] {
    FILES.map(|(name, text)| PolicySource { path: name.into(), text: text.to_owned() })
}

/// What all five allow, with everything that KMS may say.
fn metadata() -> RequestMetadata {
    let metadata = json!({
        "awsPrincipalArn": "arn:aws:sts::111122223333:assumed-role/app/i-0abcdef1234567890",
        "kmsKeyArn": "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "kmsOperation": "Decrypt",
        "kmsRequestId": "4112f4d6-db54-4af4-ae30-c55a22a8dfae",
        "kmsViaService": "s3.eu-central-1.amazonaws.com",
        "awsSourceVpc": "vpc-1a2b3c4d5e6f70819",
        "awsSourceVpce": "vpce-1a2b3c4d5e6f70819",
    });
    serde_json::from_value(metadata).unwrap()
}

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policies");
    let (key, metadata) = (ExternalKeyId::parse("ledger").unwrap(), metadata());
    let query = Query { store: "payments", operation: KeyOperation::Decrypt, key: &key, metadata: &metadata };
    for (name, policies) in [
        ("base.cedar", Policies::load(&sources()[..1]).unwrap()),
        ("five files", Policies::load(&sources()).unwrap()),
    ] {
        assert!(policies.decide(&query).is_ok(), "the benchmark is of a decision to allow");
        group.bench_function(format!("decide by {name}"), |bencher| {
            bencher.iter(|| policies.decide(black_box(&query)).is_ok());
        });
    }
    group.bench_function("load five files", |bencher| {
        bencher.iter(|| Policies::load(black_box(&sources())).is_ok());
    });
    group.finish();
}
