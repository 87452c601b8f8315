//! Every setting of the configuration: what `docs/configuration.md` is written from. A test holds the list against what the
//! reader really asks for, ranges included.

use Kind::{Address, Flag, List, Number, Secret, Table, Text, Word};
use Takeover::{Connection, Login, Never, Once, Request};

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Where it stands; `[]` for each entry of an array.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds without it; empty where nothing does, and `required` where it must be given.
    pub default: &'static str,
    /// When a change is taken over.
    pub takeover: Takeover,
    /// What it does.
    pub help: &'static str,
}

/// What a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number, both ends included. The unit is the name's.
    Number(u64, u64),
    /// `true` or `false`.
    Flag,
    /// A string; what it must look like.
    Text(&'static str),
    /// An address and a port.
    Address,
    /// One of these strings.
    Word(&'static [&'static str]),
    /// A string, or where it is: `{ file = … }`, `{ environment = … }`, `{ systemd_credential = … }`.
    Secret,
    /// An array of such values.
    List(&'static str),
    /// A table of further settings, or an array of them.
    Table(&'static str),
}

/// When a running proxy takes a change over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// With the next request.
    Request,
    /// With the next connection.
    Connection,
    /// With the token's next login.
    Login,
    /// At once.
    Once,
    /// Only by a restart; of a token: or under another name.
    Never,
}

const fn row(
    path: &'static str,
    kind: Kind,
    default: &'static str,
    takeover: Takeover,
    help: &'static str,
) -> Setting {
    Setting { path, kind, default, takeover, help }
}

const FILE: Kind = Text("path");
const NEEDED: &str = "required";
/// Largest number of a key version.
const LARGEST: u64 = u32::MAX as u64;
const STATES: Kind = Word(&["staged", "primary", "retired", "disabled"]);

/// Every setting, in the order of the example.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    row("server", Table("a table"), NEEDED, Never, "The listener that KMS connects to."),
    row("server.listen", Address, NEEDED, Never, "Where KMS, or the load balancer before the proxy, connects. TLS ends here."),
    row("server.proxy_protocol_from", List("networks such as \"10.0.0.0/16\""), "[]", Never, "Load balancers that send PROXY protocol version 2: from them it is required, from others not taken."),
    row("server.endpoint", Text("host name"), "", Once, "Host of the XksProxyUriEndpoint, which the certificates' names are held against."),
    row("server.fleet_size", Number(1, 1000), "1", Once, "Number of proxies behind the endpoint; KMS is told in GetHealthStatus."),
    row("server.lame_duck_secs", Number(0, 900), "30", Never, "How long new connections are still served after SIGTERM, while load balancers notice."),
    row("server.drain_secs", Number(1, 300), "10", Never, "How long requests that are then being worked on may take."),
    row("server.certificates", Table("an array of tables"), NEEDED, Connection, "The server's certificates: one for each kind of key."),
    row("server.certificates[].chain_file", FILE, NEEDED, Connection, "PEM: the server's certificate first, then the intermediate ones."),
    row("server.certificates[].key_file", FILE, NEEDED, Connection, "PEM: its private key, as PKCS#8, PKCS#1 or SEC1."),
    row("server.client_certificates", Table("a table"), "", Connection, "Where it stands, clients must show a certificate (mutual TLS)."),
    row("server.client_certificates.ca_file", FILE, NEEDED, Connection, "PEM: the roots that a client's chain must end at."),
    row("server.client_certificates.regions", List("AWS Regions"), "", Connection, "KMS of these Regions is admitted."),
    row("server.client_certificates.common_names", List("common names"), "", Connection, "Who has exactly one of these is admitted."),
    row("server.limits", Table("a table"), "", Never, "How much is taken."),
    row("server.limits.max_plaintext_bytes", Number(4300, 65_536), "4300", Never, "Longest plaintext and ciphertext."),
    row("server.limits.max_aad_bytes", Number(8192, 65_535), "8192", Never, "Longest additional authenticated data."),
    row("server.limits.max_header_bytes", Number(8192, 262_144), "16384", Never, "Longest head of a request."),
    row("server.limits.max_connections", Number(1, 1_000_000), "10000", Never, "Connections at once. At the cap the oldest that never carried an authenticated request is closed. Fewer where the process may open too few files."),
    row("server.limits.max_streams_per_connection", Number(1, 1000), "128", Never, "Requests at once on one HTTP/2 connection."),
    row("server.limits.max_in_flight", Number(1, 100_000), "1024", Never, "API requests at once; more get ThrottlingException. Those that wait for their bodies hold at most half of the places, the oldest gives way."),
    row("server.timeouts", Table("a table"), "", Never, "How long is waited."),
    row("server.timeouts.answer_ms", Number(10, 60_000), "200", Never, "From a request's first byte to its answer. KMS gives up 250 ms after it began to connect."),
    row("server.timeouts.first_answer_ms", Number(10, 60_000), "145", Never, "The same for a connection's first request: connecting took two more round trips."),
    row("server.timeouts.handshake_ms", Number(100, 60_000), "5000", Never, "TLS handshake."),
    row("server.timeouts.first_request_ms", Number(100, 600_000), "20000", Never, "From the handshake to the head of the first request."),
    row("server.timeouts.header_ms", Number(100, 60_000), "5000", Never, "Rest of a head that has begun; and how long a client may leave answers on HTTP/2 unread."),
    row("server.timeouts.body_ms", Number(100, 60_000), "5000", Never, "Body of a request; on a connection without an authenticated request no longer than its answer may take."),
    row("server.timeouts.idle_ms", Number(100, 3_600_000), "120000", Never, "Silence between two requests."),
    row("server.timeouts.max_age_secs", Number(1, 86_400), "900", Never, "A connection that is so old is asked to make place for a new one."),
    row("admin", Table("a table"), "", Never, "`/livez`, `/readyz` and `/metrics`, in plain HTTP or behind TLS."),
    row("admin.listen", Address, "127.0.0.1:9464", Never, "Where operators connect."),
    row("admin.insecure_ok", Flag, "false", Once, "Allows an address that others than this machine can reach."),
    row("admin.certificates", Table("an array of tables"), "", Connection, "The listener's certificates, as under `server`. Without them it speaks plain HTTP."),
    row("admin.certificates[].chain_file", FILE, NEEDED, Connection, "PEM: the listener's certificate first, then the intermediate ones."),
    row("admin.certificates[].key_file", FILE, NEEDED, Connection, "PEM: its private key, as PKCS#8, PKCS#1 or SEC1."),
    row("admin.client_certificates", Table("a table"), "", Connection, "Where it stands, clients must show a certificate (mutual TLS)."),
    row("admin.client_certificates.ca_file", FILE, NEEDED, Connection, "PEM: the roots that a client's chain must end at."),
    row("admin.client_certificates.common_names", List("common names"), NEEDED, Connection, "Who has exactly one of these is admitted."),
    row("ping", Table("a table"), "", Never, "`/ping` in plain HTTP and nothing else."),
    row("ping.listen", Address, "", Never, "Where load balancers connect. Without it there is no such listener; `/ping` is served over TLS too."),
    row("state", Table("a table"), "", Never, "What must outlive the process."),
    row("state.dir", FILE, "", Never, "Folder for counts of initialization vectors, for refused PINs, and for what key versions are and which were served. Without it none of that outlives the process, and a start makes any version primary, staged before or not."),
    row("state.iv_budget_instances", Number(1, 1000), "as server.fleet_size", Once, "How many proxies encrypt under the same keys."),
    row("audit", Table("a table"), "", Never, "The audit log. Without this section there is none."),
    row("audit.path", FILE, NEEDED, Never, "The file; beside it is one more that ends in `.head`."),
    row("audit.on_failure", Word(&["continue", "refuse"]), "continue", Never, "When it cannot be written: serve on and count what is lost, or answer no success without its record."),
    row("audit.sync", Flag, "false", Never, "Whether every batch of records is synced to the device."),
    row("audit.hmac_key", Secret, "", Never, "Key of the chain, of 32 characters or more."),
    row("reload", Table("a table"), "", Once, "How changes are noticed; SIGHUP always works."),
    row("reload.watch", Flag, "true", Once, "Whether the files are looked at."),
    row("reload.watch_interval_ms", Number(100, 60_000), "1000", Once, "Between two looks."),
    row("log", Table("a table"), "", Once, "JSON lines on standard output."),
    row("log.level", Word(&["error", "warn", "info", "debug", "trace"]), "info", Once, "`info` has one line a request."),
    row("tokens", Table("an array of tables"), NEEDED, Once, "HSM tokens. One under a new name is connected beside the others; one that is gone is let go of."),
    row("tokens[].name", Text("name"), NEEDED, Never, "By which stores, log and metrics name it."),
    row("tokens[].module", FILE, NEEDED, Never, "The vendor's PKCS#11 library."),
    row("tokens[].label", Text("label"), "", Never, "Which token. Exactly one of `label`, `serial` and `slot_id` must be given."),
    row("tokens[].serial", Text("serial number"), "", Never, "The same by serial number."),
    row("tokens[].slot_id", Number(0, u64::MAX), "", Never, "The same by slot, which some modules number anew at every start."),
    row("tokens[].user_type", Text("\"user\", \"so\", \"luna-crypto-user\", or a CKU value as a number"), "user", Never, "Who logs in."),
    row("tokens[].pin", Secret, "", Login, "The PIN. One that is refused is not tried again until its content changes."),
    row("tokens[].sessions", Number(1, 1024), "4", Never, "Sessions that work at once, each on a thread of its own."),
    row("tokens[].queue_depth", Number(1, 65_536), "256", Never, "Jobs that wait for a session; more get ThrottlingException."),
    row("tokens[].isolation", Word(&["none", "process"]), "none", Never, "Whether the module runs in a helper process."),
    row("tokens[].helper_memory_mib", Number(64, 1_048_576), "1024", Never, "Memory in RAM beyond which the helper process is replaced by another."),
    row("tokens[].profile", Word(&["softhsm", "kryoptic", "cloudhsm", "luna", "nshield", "generic"]), "by the manufacturer that the token states", Never, "What kind of token it is."),
    row("tokens[].iv_source", Word(&["os", "token", "written-back", "appended"]), "as the profile says", Never, "Where initialization vectors come from."),
    row("tokens[].health_key_label", Text("label"), "xks-health", Never, "AES-256 key that the token proves itself with; no store can reach it."),
    row("tokens[].environment", Table("a table of strings"), "", Never, "Variables that the module wants in the environment."),
    row("tokens[].intervals", Table("a table"), "", Never, "How often the token is looked at."),
    row("tokens[].intervals.health_probe_ms", Number(100, 30_000), "10000", Never, "Between health probes."),
    row("tokens[].intervals.key_attributes_ms", Number(100, 30_000), "30000", Never, "How old a key's attributes may be."),
    row("tokens[].intervals.reindex_secs", Number(1, 86_400), "300", Never, "Between enumerations of all keys, after each of which keys prove anew that they are the ones meant."),
    row("tokens[].intervals.stuck_after_ms", Number(100, 60_000), "250", Never, "How long a call may take until its thread is taken to be stuck."),
    row("stores", Table("an array of tables"), NEEDED, Request, "Key stores: what KMS calls external key stores."),
    row("stores[].name", Text("name"), NEEDED, Request, "By which log, audit and metrics name it; one with another name is another store."),
    row("stores[].uri_path_prefix", Text("path prefix"), NEEDED, Request, "What comes before `/kms/xks/v1` in the XksProxyUriPath."),
    row("stores[].tokens", List("names of tokens"), NEEDED, Request, "The tokens that hold its keys, the same on each."),
    row("stores[].hedge_after_percent", Number(1, 100), "40", Request, "Share of the time left after which a second token is asked."),
    row("stores[].hedges", Flag, "true", Request, "Whether a second token is asked though the first has only not answered yet."),
    row("stores[].enabled", Flag, "true", Request, "Whether its keys may be used."),
    row("stores[].authorization", Word(&["none", "cedar"]), NEEDED, Request, "Who may use which key beyond holding the credentials: everybody, or whom the policies permit."),
    row("stores[].policies", List("paths"), "", Request, "Cedar files that together are the store's policies, where `authorization` is `cedar`."),
    row("stores[].region", Text("AWS Region"), "", Request, "Pins requests to the Region that they come from."),
    row("stores[].decrypts_aws_sample", Table("a table"), "", Request, "Decrypt also what AWS's sample proxy encrypted."),
    row("stores[].decrypts_aws_sample.ciphertext_metadata_b64", List("Base64 texts"), NEEDED, Request, "Each value that the sample's setting ever had; `\"\"` where it had none."),
    row("stores[].decrypts_aws_sample.version", Number(1, LARGEST), "1", Request, "The key version that the sample used."),
    row("stores[].requests_per_second", Number(1, 1_000_000), "1800", Request, "Quota in the long run; more get ThrottlingException."),
    row("stores[].burst", Number(1, 1_000_000), "as requests_per_second", Request, "Quota at once."),
    row("stores[].credentials", Table("an array of tables"), NEEDED, Request, "Who may ask."),
    row("stores[].credentials[].access_key_id", Text("20 to 30 of A–Z and 2–7"), NEEDED, Request, "What KMS signs as."),
    row("stores[].credentials[].secret_access_key", Secret, NEEDED, Request, "43 to 64 characters of Base64."),
    row("stores[].credentials[].created", Text("date such as \"2026-01-31\""), "", Request, "When it was made, in UTC; for a metric."),
    row("stores[].keys", Table("an array of tables"), "", Request, "External keys one by one."),
    row("stores[].keys[].external_key_id", Text("1 to 128 of letters, digits, `-`, `_`, `.`"), NEEDED, Request, "What KMS calls the key: XksKeyId."),
    row("stores[].keys[].enabled", Flag, "true", Request, "Whether it may be used."),
    row("stores[].keys[].version", Number(1, LARGEST), "1", Request, "Number of the key's material, of one key for ever."),
    row("stores[].keys[].label", Text("CKA_LABEL"), "", Request, "Which key of the token. Exactly one of `label` and `cka_id` must be given."),
    row("stores[].keys[].cka_id", Text("CKA_ID in hexadecimal"), "", Request, "The same by CKA_ID."),
    row("stores[].keys[].check_value", Text("what `keys check` prints"), "", Request, "By which another key under the same name is found out. No secret."),
    row("stores[].keys[].versions", Table("an array of tables"), "", Request, "Several versions, in place of `version`, `label`, `cka_id` and `check_value`."),
    row("stores[].keys[].versions[].number", Number(1, LARGEST), NEEDED, Request, "As `version`."),
    row("stores[].keys[].versions[].state", STATES, NEEDED, Request, "Exactly one is primary and encrypts."),
    row("stores[].keys[].versions[].label", Text("CKA_LABEL"), "", Request, "As above."),
    row("stores[].keys[].versions[].cka_id", Text("CKA_ID in hexadecimal"), "", Request, "As above."),
    row("stores[].keys[].versions[].check_value", Text("what `keys check` prints"), "", Request, "As above."),
    row("stores[].key_rule", Table("a table"), "", Request, "Makes external keys of all keys of the token whose labels begin so."),
    row("stores[].key_rule.label_prefix", Text("any text"), NEEDED, Request, "External key id `a` is the key labelled with this and `a`."),
    row("stores[].key_rule.versions", Table("an array of tables"), "version 1", Request, "The versions that each of these keys has."),
    row("stores[].key_rule.versions[].number", Number(1, LARGEST), NEEDED, Request, "As above; version 2 has the label with `@2` behind it."),
    row("stores[].key_rule.versions[].state", STATES, NEEDED, Request, "As above."),
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::tests::{EXAMPLE, folder};
    use super::super::*;
    use super::{Kind, SETTINGS};

    /// The example with everything in it switched on, faulty as that is.
    fn everything() -> String {
        let is_key = |rest: &str| {
            let key = rest.split_once(" = ").map_or("", |(key, _)| key);
            !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        };
        let lines = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_key(rest) || (rest.starts_with('[') && rest.ends_with(']')) => rest,
            _ => line,
        });
        let rule =
            "key_rule = { label_prefix = \"tenant-\", versions = [{ number = 1, state = \"primary\" }] }";
        let text =
            lines.collect::<Vec<_>>().join("\n").replace("key_rule = { label_prefix = \"tenant-\" }", rule);
        text.replace("ciphertext_metadata_b64 = [\"\"] }", "ciphertext_metadata_b64 = [\"\"], version = 1 }")
    }

    /// `docs/configuration.md` is written from the list.
    #[test]
    fn the_list_of_settings_is_what_the_reader_asks_for() {
        let (folder, source) = (folder(), everything());
        let (document, syntax_errors) = DeTable::parse_recoverable(&source);
        assert!(syntax_errors.is_empty(), "{syntax_errors:?}");
        let faults = Faults::new(&source);
        let _ = read(&document, folder.path(), &faults);
        let is_of_secret = |path: &str| {
            SETTINGS.iter().any(|setting| {
                setting.kind == Kind::Secret
                    && path.strip_prefix(setting.path).is_some_and(|rest| rest.starts_with('.'))
            })
        };
        let mut asked = faults.asked.borrow().clone();
        asked.retain(|path, _| !is_of_secret(path));
        let listed: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.path.to_owned()).collect();
        assert_eq!(listed.len(), SETTINGS.len(), "a setting is listed twice");
        assert_eq!(asked.keys().cloned().collect::<BTreeSet<_>>(), listed);
        for setting in SETTINGS {
            match (setting.kind, &asked[setting.path]) {
                (Kind::Number(from, to), Some(range)) => assert_eq!(*range, from..=to, "{}", setting.path),
                (Kind::Number(..), None) => panic!("{} is no number, or the example lacks it", setting.path),
                (_, range) => assert_eq!(*range, None, "{} is a number", setting.path),
            }
        }
    }

    /// What the list says of defaults is what the example shows, which another test holds against the reader.
    #[test]
    fn the_defaults_of_the_list_are_those_of_the_example() {
        let mut section = String::new();
        let mut shown = BTreeMap::new();
        for line in EXAMPLE.lines() {
            let commented = line.strip_prefix("# ");
            let text = commented.unwrap_or(line);
            if let Some(header) = text.strip_prefix('[').and_then(|header| header.strip_suffix(']')) {
                section = header
                    .trim_matches(['[', ']'])
                    .replace("tokens", "tokens[]")
                    .replace("stores", "stores[]");
                section = section.replace("keys", "keys[]").replace("credentials", "credentials[]");
            } else if let (Some(_), Some((key, value))) = (commented, text.split_once(" = ")) {
                shown.entry(format!("{section}.{key}")).or_insert_with(|| value.trim_matches('"').to_owned());
            }
        }
        let of_numbers_and_words = SETTINGS.iter().filter(|setting| {
            matches!(setting.kind, Kind::Number(..) | Kind::Word(_) | Kind::Flag | Kind::Address)
                && setting.default.chars().all(|c| c.is_ascii_alphanumeric() || ".:".contains(c))
                && !["", "required"].contains(&setting.default)
        });
        let mut compared = 0;
        for setting in of_numbers_and_words {
            // The example gives some of them.
            let Some(value) = shown.get(setting.path) else { continue };
            assert_eq!(value, setting.default, "{}", setting.path);
            compared += 1;
        }
        assert!(compared >= 35, "{compared}");
    }
}
