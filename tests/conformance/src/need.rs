//! What cases need of a target, and how its owner supplies it or declares that it is not there.

/// Gives the enum of needs, the flags that declare them absent, and what to supply, from one table.
macro_rules! needs {
    ($($need:ident $flag:ident $no:literal $supply:literal $help:literal)+) => {
        /// What a case needs of its target.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Need { $(#[doc = $help] $need,)+ }

        /// Declarations of what the target does not have. The report prints each.
        #[derive(Clone, Debug, Default, clap::Args)]
        #[command(next_help_heading = "Declarations")]
        #[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
        pub struct Declared { $(#[doc = $help] #[arg(long)] pub $flag: bool,)+ }

        impl Need {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$need),+];
            /// The flag that declares its absence.
            #[must_use]
            pub const fn declaration(self) -> &'static str { match self { $(Self::$need => $no),+ } }
            /// How to supply it.
            #[must_use]
            pub const fn supply(self) -> &'static str { match self { $(Self::$need => $supply),+ } }
        }

        impl Declared {
            /// Whether `need` is declared absent.
            #[must_use]
            pub const fn has(&self, need: Need) -> bool { match need { $(Need::$need => self.$flag),+ } }
        }
    };
}

needs! {
    SecondKey no_second_key "--no-second-key" "--second-key-id" "No second usable key"
    EncryptOnlyKey no_encrypt_only_key "--no-encrypt-only-key" "--encrypt-only-key-id" "No key that may encrypt alone"
    DecryptOnlyKey no_decrypt_only_key "--no-decrypt-only-key" "--decrypt-only-key-id" "No key that may decrypt alone"
    ImpotentKey no_impotent_key "--no-impotent-key" "--impotent-key-id" "No key that may neither encrypt nor decrypt"
    DisabledKey no_disabled_key "--no-disabled-key" "--disabled-key-id" "No disabled key"
    DeniedKey no_denied_key "--no-denied-key" "--denied-key-id" "No key that a policy refuses to the suite's other caller"
    DisabledStore no_disabled_store "--no-disabled-store" "--disabled-uri-prefix and its credential and key" "No disabled store"
    SecondStore no_second_store "--no-second-store" "--second-uri-prefix and its credential and key" "No second store"
    Mtls no_mtls "--no-mtls" "--mtls-address and --client-certs" "No mutual TLS"
    RotationHook no_rotation "--no-rotation" "--hook and --next-access-key-id" "No hook that rotates credentials"
    HsmHook no_hsm_hook "--no-hsm-hook" "--hook" "No hook that breaks the key manager"
    HsmCorrupting no_hsm_corrupting "--no-hsm-corrupting" "--hook" "No hook that has the key manager corrupt what it encrypts"
    Counts no_counts "--no-counts" "--proxy-count and --key-manager-count" "No word on how many proxies and key managers there are"
    PingPath no_ping "--no-ping" "--ping-path" "No load balancer's health check on the main listener"
    Http2 no_http2 "--no-http2" "HTTP/2" "No HTTP/2"
    Fqdn no_fqdn "--no-fqdn" "an endpoint with a fully qualified domain name" "An endpoint without fully qualified domain name"
    Port443 no_port_443 "--no-port-443" "an endpoint without port" "Another port than 443"
    PublicCa no_public_ca "--no-public-ca" "a certificate of a public authority" "A certificate of a private authority"
    CommonName no_common_name "--no-common-name" "a certificate whose common name is the host" "A certificate whose common name is not the host"
}
