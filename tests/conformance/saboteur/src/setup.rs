//! What the saboteur serves: stores, credentials and keys that never change, so that they can be written down.

/// The proxy's name, which its certificate bears. It is in no DNS: clients are told its address.
pub const HOST: &str = "xks.saboteur.example";

/// The Region whose KMS the mTLS listener takes.
pub const REGION: &str = "us-east-1";

/// Where a load balancer asks, unsigned, by GET, whether the proxy is fit to serve.
pub const PING_PATH: &str = "/ping";

/// The awsPrincipalArn to which the one policy refuses [`keys::RESTRICTED`].
pub const DENIED_CALLER: &str = "arn:aws:iam::777788889999:user/Mallory";

/// A SigV4 credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Access key id.
    pub access_key_id: &'static str,
    /// Secret access key. Known to the world: it guards nothing.
    pub secret_access_key: &'static str,
}

/// A key store.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    /// What comes before `/kms/xks/v1`, with the leading slash.
    pub uri_path_prefix: &'static str,
    /// The credential that is accepted at the start.
    pub credential: Credential,
    /// The one that a rotation brings; accepted after [`crate::Saboteur::accept`].
    pub next_credential: Credential,
    /// Whether its keys may be used.
    pub is_enabled: bool,
}

/// Which credentials the stores accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// [`Store::credential`] alone, as before a rotation.
    First,
    /// Both, as during one.
    Both,
    /// [`Store::next_credential`] alone, as after one.
    Next,
}

/// The stores: two that serve, and one that is disabled.
pub static STORES: [Store; 3] = [
    Store {
        uri_path_prefix: "/alpha",
        credential: Credential {
            access_key_id: "SABOTEURALPHAFIRSTAA",
            secret_access_key: "alpha/first+alpha/first+alpha/first+alpha/0",
        },
        next_credential: Credential {
            access_key_id: "SABOTEURALPHASECONDA",
            secret_access_key: "alpha/next+alpha/next+alpha/next+alpha/next",
        },
        is_enabled: true,
    },
    Store {
        uri_path_prefix: "/tenants/beta",
        credential: Credential {
            access_key_id: "SABOTEURBETAFIRSTAAA",
            secret_access_key: "beta/first+beta/first+beta/first+beta/first",
        },
        next_credential: Credential {
            access_key_id: "SABOTEURBETASECONDAA",
            secret_access_key: "beta/next+beta/next+beta/next+beta/next+bet",
        },
        is_enabled: true,
    },
    Store {
        uri_path_prefix: "/gamma",
        credential: Credential {
            access_key_id: "SABOTEURGAMMAFIRSTAA",
            secret_access_key: "gamma/first+gamma/first+gamma/first+gamma/0",
        },
        next_credential: Credential {
            access_key_id: "SABOTEURGAMMASECONDA",
            secret_access_key: "gamma/next+gamma/next+gamma/next+gamma/next",
        },
        is_enabled: false,
    },
];

/// `externalKeyId`s.
pub mod keys {
    /// Encrypts and decrypts; of the first store.
    pub const USABLE: &str = "usable-key";
    /// Encrypts and decrypts; of the first store. For what must not work with another key of the same store.
    pub const SECOND: &str = "second-key";
    /// Encrypts and decrypts, and has every kind of character that an id may have; of the first store.
    pub const EVERY_CHARACTER: &str = "Key.with_every-Character.0";
    /// Encrypts alone; of the first store.
    pub const ENCRYPT_ONLY: &str = "encrypt-only-key";
    /// Decrypts alone; of the first store.
    pub const DECRYPT_ONLY: &str = "decrypt-only-key";
    /// Neither encrypts nor decrypts; of the first store.
    pub const IMPOTENT: &str = "impotent-key";
    /// Disabled; of the first store.
    pub const DISABLED: &str = "disabled-key";
    /// Encrypts and decrypts, but not for [`super::DENIED_CALLER`]; of the first store.
    pub const RESTRICTED: &str = "restricted-key";
    /// Encrypts and decrypts; of the second store.
    pub const OTHER_STORE: &str = "key-of-beta";
    /// Encrypts and decrypts; of the disabled store.
    pub const OF_DISABLED_STORE: &str = "key-of-gamma";
    /// In no store.
    pub const UNKNOWN: &str = "unknown-key";
}
