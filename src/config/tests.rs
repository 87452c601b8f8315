//! The example loads, and every kind of fault is reported with its place.

use std::path::Path;

use tempfile::TempDir;
use xks_harness::Pki;

use super::admin::DEFAULT_ADMIN_LISTEN;
use super::*;
use crate::audit::OnFailure;
use crate::hsm::TokenSelector;

pub(super) const EXAMPLE: &str = include_str!("../../deploy/xks-proxy.example.toml");
const SECRET: &str = "s3cr3t+s3cr3t+s3cr3t+s3cr3t+s3cr3t+s3cr3t+s3";

/// A folder with everything that the example names.
pub(super) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tls = folder.path().join("tls");
    std::fs::create_dir(&tls).unwrap();
    let pki = Pki::shared();
    for (name, content) in [
        ("tls/server-ecdsa.pem", &pki.ecdsa.certificate),
        ("tls/server-ecdsa.key", &pki.ecdsa.key),
        ("tls/server-rsa.pem", &pki.rsa.certificate),
        ("tls/server-rsa.key", &pki.rsa.key),
        ("tls/amazon-trust-services.pem", &pki.ca_pem()),
        ("pin", &"1234\n".to_owned()),
        ("payments.secret", &SECRET.to_owned()),
        ("tenants.secret", &SECRET.replace('s', "t")),
    ] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

/// The example with those settings switched on that it shows and that have no default.
fn example_with_options() -> String {
    ["region = \"eu-central-1\"", "decrypts_aws_sample = {"].iter().fold(
        EXAMPLE.to_owned(),
        |text, option| {
            let shown = format!("\n# {option}");
            assert!(text.contains(&shown), "{option}");
            text.replace(&shown, &format!("\n{option}"))
        },
    )
}

fn parse(source: &str) -> Result<Config, Vec<String>> {
    let folder = folder();
    Config::parse(source, folder.path()).map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

#[test]
fn the_example_loads() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.listen.port(), 443);
    assert_eq!(config.admin.listen, DEFAULT_ADMIN_LISTEN);
    assert!(config.admin.tls.is_none());
    assert_eq!(config.ping_listen.unwrap().port(), 8080);
    assert_eq!(config.limits.sizes.max_plaintext_bytes, 4300);
    assert_eq!(config.timeouts.request.as_millis(), 200);
    assert_eq!(config.timeouts.first_request_answer.as_millis(), 145);
    assert_eq!(config.timeouts.lame_duck.as_secs(), 30);
    assert_eq!(config.tokens[0].selector, TokenSelector::Label("xks".into()));
    assert_eq!(config.stores.len(), 2);
    assert_eq!(config.iv_budget, IvBudgetSettings { dir: Some("/var/lib/xks-proxy".into()), share: 1 << 32 });
    assert_eq!(config.stores[0].requests_per_second.get(), 1800);
    let audit = config.audit.unwrap();
    assert_eq!(audit.path, Path::new("/var/log/xks-proxy/audit.log"));
    assert_eq!((audit.on_failure, audit.is_synced), (OnFailure::Continue, false));
}

/// What the example shows as a default is the default.
#[test]
fn the_defaults_shown_in_the_example_are_the_defaults() {
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // A commented key, not prose: a word, =, a value. Alternatives of what is given above stay out, and those whose
            // default is for the token to choose.
            Some(rest)
                if rest
                    .split_once(" = ")
                    .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
                    && ![
                        "serial",
                        "slot_id",
                        "profile",
                        "iv_source",
                        "hmac_key",
                        "policies",
                        "certificates",
                        "client_certificates",
                        "ca_file",
                        "region",
                        "decrypts_aws_sample",
                        "common_names",
                    ]
                    .iter()
                    .any(|key| rest.starts_with(key)) =>
            {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let folder = folder();
    let shown = Config::parse(&uncommented, folder.path()).unwrap();
    let default = Config::parse(EXAMPLE, folder.path()).unwrap();
    assert_eq!(shown.limits, default.limits);
    assert_eq!(shown.timeouts, default.timeouts);
    assert_eq!(shown.fleet, default.fleet);
    assert_eq!(shown.admin.listen, default.admin.listen);
    assert_eq!(shown.log_level, default.log_level);
    assert_eq!(shown.audit, default.audit);
    assert_eq!(shown.proxy_protocol_from, default.proxy_protocol_from);
    assert_eq!(format!("{:?}", shown.tokens), format!("{:?}", default.tokens));
    assert_eq!(shown.stores[0].requests_per_second, default.stores[0].requests_per_second);
    assert_eq!(shown.stores[0].burst, default.stores[0].burst);
    assert_eq!(shown.stores[0].is_enabled, default.stores[0].is_enabled);
}

/// A change to the example, and what the report must say of it.
#[test]
fn every_fault_is_reported_with_its_place() {
    let example = example_with_options();
    for (from, to, expected) in [
        ("listen = \"0.0.0.0:443\"", "listen = \"443\"", "server.listen: must be an address and a port"),
        ("listen = \"0.0.0.0:443\"", "", "server: listen is missing"),
        (
            "# endpoint = \"xks.example.com\"",
            "endpoint = \"https://xks.example.com\"",
            "server.endpoint: must be the host name",
        ),
        ("# fleet_size = 1", "fleet_size = 0", "server.fleet_size: must be a whole number from 1 to 1000"),
        ("# lame_duck_secs = 30", "lame_duck_sec = 3", "server: unknown key; did you mean lame_duck_secs?"),
        (
            "# max_plaintext_bytes = 4300",
            "max_plaintext_bytes = 4299",
            "server.limits.max_plaintext_bytes: must be",
        ),
        ("# max_aad_bytes = 8192", "max_aad_bytes = 65536", "server.limits.max_aad_bytes: must be"),
        ("# answer_ms = 200", "answer_ms = \"200\"", "server.timeouts.answer_ms: must be a whole number"),
        ("tls/server-rsa.key", "tls/server-ecdsa.key", "server.certificates: the private key"),
        ("tls/server-rsa.pem", "tls/absent.pem", "server.certificates: cannot read a PEM certificate chain"),
        (
            "# iv_budget_instances = 1",
            "iv_budget_instances = 0",
            "state.iv_budget_instances: must be a whole",
        ),
        ("dir = \"/var/lib/xks-proxy\"", "dir = \"\"", "state.dir: must not be empty"),
        (
            "# proxy_protocol_from = []",
            "proxy_protocol_from = [\"10.0.0.0/16\", \"10.0.0.1/16\"]",
            "server.proxy_protocol_from[1]: must be a network such as",
        ),
        ("path = \"/var/log/xks-proxy/audit.log\"", "", "audit: path is missing"),
        (
            "# on_failure = \"continue\"",
            "on_failure = \"ignore\"",
            "audit.on_failure: must be one of \"continue\", \"refuse\"",
        ),
        ("# sync = false", "sync = 1", "audit.sync: must be true or false"),
        (
            "# hmac_key = { file = \"audit.key\" }",
            "hmac_key = { file = \"pin\" }",
            "audit.hmac_key: must have at least 32 characters",
        ),
        ("# level = \"info\"", "level = \"loud\"", "log.level: must be one of \"error\", \"warn\""),
        ("label = \"xks\"", "", "tokens[0]: exactly one of label, serial and slot_id"),
        ("# slot_id = 0", "slot_id = 0", "tokens[0]: exactly one of label, serial and slot_id"),
        ("file = \"pin\"", "file = \"absent\"", "tokens[0].pin: cannot read the secret file"),
        (
            "file = \"pin\"",
            "environment = \"XKS_ABSENT\"",
            "tokens[0].pin: the environment variable is not set",
        ),
        ("file = \"pin\"", "systemd_credential = \"pin\"", "tokens[0].pin: there are no systemd credentials"),
        ("{ file = \"pin\" }", "{ }", "tokens[0].pin: must be a string, or exactly one of"),
        (
            "# isolation = \"none\"",
            "isolation = \"thread\"",
            "tokens[0].isolation: must be one of \"none\", \"process\"",
        ),
        ("# helper_memory_mib = 1024", "helper_memory_mib = 63", "tokens[0].helper_memory_mib: must be"),
        (
            "# iv_source = \"os\"",
            "iv_source = \"dice\"",
            "tokens[0].iv_source: must be one of \"os\", \"token\", \"written-back\", \"appended\"",
        ),
        (
            "# profile = \"softhsm\"",
            "profile = \"hsm\"",
            "tokens[0].profile: must be one of \"softhsm\", \"kryoptic\", \"cloudhsm\"",
        ),
        ("# user_type = \"user\"", "user_type = \"root\"", "tokens[0].user_type: must be one of \"user\""),
        ("\"/payments\"", "\"payments\"", "stores[0].uri_path_prefix: is empty, or starts with a slash"),
        ("\"/payments\"", "\"/pay ments\"", "stores[0].uri_path_prefix: may hold only"),
        ("\"/payments\"", "\"/tenants\"", "stores[1]: another store has this uri_path_prefix"),
        ("name = \"tenants\"", "name = \"payments\"", "stores[1]: another store has this name"),
        ("tokens = [\"main\"]", "tokens = [\"other\"]", "stores[0].tokens[0]: no token with this name"),
        ("authorization = \"none\"", "", "stores[0]: authorization is missing"),
        (
            "authorization = \"none\"",
            "authorization = \"off\"",
            "stores[0].authorization: must be one of \"none\", \"cedar\"",
        ),
        (
            "authorization = \"none\"",
            "authorization = \"cedar\"",
            "stores[0].authorization: needs policies = [",
        ),
        (
            "authorization = \"none\"",
            "authorization = \"none\"\npolicies = [\"base.cedar\"]",
            "stores[0].policies: would not be asked",
        ),
        (
            "authorization = \"none\"",
            "authorization = \"cedar\"\npolicies = []",
            "stores[0].policies: must name at least one file",
        ),
        (
            "authorization = \"none\"",
            "authorization = \"cedar\"\npolicies = [\"absent.cedar\"]",
            "stores[0].policies[0]: cannot read",
        ),
        (
            "PAYMENTSEXAMPLE234567ABCDE",
            "PAYMENTS",
            "stores[0].credentials[0].access_key_id: an access key id is 20 to 30",
        ),
        ("PAYMENTSEXAMPLE234567ABCDE", "TENANTSEXAMPLE234567ABCDEF", "this access key id is already in use"),
        (
            "file = \"payments.secret\"",
            "file = \"pin\"",
            "secret_access_key: a secret access key is 43 to 64",
        ),
        ("[\"\"]", "[]", "decrypts_aws_sample.ciphertext_metadata_b64: must hold each value"),
        ("[\"\"]", "[\"a\"]", "ciphertext_metadata_b64[0]: must be Base64"),
        (
            "[\"\"]",
            "[\"\", \"AQAAAAE=\"]",
            "ciphertext_metadata_b64[1]: reads as ciphertext metadata of this proxy",
        ),
        (
            "[\"\"]",
            "[\"AAAAAAAAAAAAAAAAAAAAAAAAAAAA\"]",
            "ciphertext_metadata_b64[0]: must be at most 20 bytes",
        ),
        ("[\"\"] }", "[\"\"], version = 0 }", "decrypts_aws_sample.version: must be a whole number from 1"),
        ("{ ciphertext_metadata_b64 = [\"\"] }", "true", "stores[0].decrypts_aws_sample: must be a table"),
        ("\"ledger\"", "\"led/ger\"", "external_key_id: an external key id is 1 to 128"),
        ("\"ledger\"", "\"cards\"", "stores[0].keys[1]: this external_key_id is listed twice"),
        (
            "# version = 1",
            "version = 0",
            "stores[0].keys[0].version: must be a whole number from 1 to 4294967295",
        ),
        (
            "cka_id = \"0a1b2c\"",
            "cka_id = \"0a1b2\"",
            "stores[0].keys[1].cka_id: must be the bytes of CKA_ID",
        ),
        ("cka_id = \"0a1b2c\"", "", "stores[0].keys[1]: exactly one of label and cka_id"),
        ("cka_id = \"0a1b2c\"", "label = \"ledger-2026\"", "already reached as another external key"),
        (
            "label = \"vault@2\"",
            "label = \"vault\"",
            "already reached as another external key, or as another version",
        ),
        ("number = 2", "number = 1", "stores[0].keys[2].versions: a version number stands twice"),
        ("number = 2", "", "stores[0].keys[2].versions[1]: number is missing"),
        ("number = 2", "number = 0", "stores[0].keys[2].versions[1].number: must be a whole number from 1"),
        ("state = \"primary\"", "", "stores[0].keys[2].versions[1]: state is missing"),
        (
            "state = \"primary\"",
            "state = \"staged\"",
            "keys[2].versions: exactly one version must be primary",
        ),
        (
            "state = \"retired\"",
            "state = \"primary\"",
            "keys[2].versions: exactly one version must be primary",
        ),
        (
            "state = \"retired\"",
            "state = \"old\"",
            "must be one of \"staged\", \"primary\", \"retired\", \"disabled\"",
        ),
        ("check_value = \"v1:", "check_value = \"v9:", "versions[1].check_value: must be a check value"),
        (
            "external_key_id = \"vault\"",
            "external_key_id = \"vault\"\nlabel = \"vault\"",
            "keys[2]: unknown key",
        ),
        (
            "label_prefix = \"tenant-\"",
            "label_prefix = \"tenant-\", versions = [{ number = 2, state = \"staged\" }]",
            "stores[1].key_rule.versions: exactly one version must be primary",
        ),
        (
            "label_prefix = \"tenant-\"",
            "label_prefix = \"tenant-\", versions = [{ number = 2, state = \"primary\", label = \"x\" }]",
            "stores[1].key_rule.versions[0]: unknown key",
        ),
        ("cka_id = \"0a1b2c\"", "label = \"xks-health\"", "this label is that of the token's health key"),
        ("label = \"ledger-2026\"", "label = \"tenant-a\"", "this rule reaches keys that another store"),
        (
            "[[stores.keys]]\nexternal_key_id = \"cards\"",
            "[[stores.key]]\nexternal_key_id = \"cards\"",
            "did you mean keys?",
        ),
    ] {
        let changed = example.replacen(from, to, 1);
        assert_ne!(changed, example, "{from}");
        let faults = parse(&changed).map(|_| ()).unwrap_err();
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}\n{faults:#?}");
        assert!(faults.iter().all(|fault| fault.starts_with("line ")), "{faults:#?}");
    }
}

#[test]
fn all_faults_come_in_one_report_from_top_to_bottom() {
    let changed = example_with_options()
        .replace("0.0.0.0:443", "nowhere")
        .replace("# max_in_flight = 1024", "max_in_flight = 0")
        .replace("label = \"xks\"", "")
        .replace("/payments\"", "/payments/\"")
        .replace("\"eu-central-1\"", "7");
    let faults = parse(&changed).map(|_| ()).unwrap_err();
    let lines: Vec<usize> =
        faults.iter().map(|fault| fault.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    assert!(lines.len() >= 5, "{faults:#?}");
    assert!(lines.is_sorted(), "{faults:#?}");
}

#[test]
fn no_report_quotes_the_file() {
    for (from, to) in [
        ("{ file = \"payments.secret\" }", "\"hunter2-hunter2\""),
        ("{ file = \"payments.secret\" }", "hunter2"),
        ("{ file = \"payments.secret\" }", "{ file = \"payments.secret\", hunter2 = \"hunter2\" }"),
        ("{ file = \"payments.secret\" }", "\"hunter2"),
        ("{ file = \"pin\" }", "{ environment = \"hunter2\" }"),
        ("{ file = \"pin\" }", "{ systemd_credential = \"hunter2\" }"),
        ("{ file = \"pin\" }", "{ file = \"hunter2\" }"),
        ("{ file = \"pin\" }", "[ \"hunter2\" ]"),
        ("access_key_id = \"PAYMENTSEXAMPLE234567ABCDE\"", "hunter2 = 1"),
        ("uri_path_prefix = \"/payments\"", "uri_path_prefix = \"hunter2\""),
    ] {
        let changed = EXAMPLE.replace(from, to);
        assert_ne!(changed, EXAMPLE);
        let faults = parse(&changed).map(|_| ()).unwrap_err();
        assert!(!faults.is_empty());
        assert!(!faults.iter().any(|fault| fault.contains("hunter2")), "{faults:#?}");
    }
}

#[test]
fn one_bad_secret_hides_no_other_fault_and_makes_up_none() {
    let faults = parse(&EXAMPLE.replace("{ file = \"pin\" }", "{ environment = \"XKS_TEST_NOT_SET\" }"));
    let faults = faults.map(|_| ()).unwrap_err();
    // The token's own, and that of each store which names it.
    assert!(faults[0].contains("tokens[0].pin: the environment variable is not set"), "{faults:#?}");
    assert!(faults[1..].iter().all(|fault| fault.contains("its own entry is faulty")), "{faults:#?}");
}

#[test]
fn syntax_errors_have_places_too() {
    let faults = parse("[server\nlisten = 1\nlisten = 2\n").map(|_| ()).unwrap_err();
    assert!(faults[0].starts_with("line 1 column "), "{faults:#?}");
}

#[test]
fn a_missing_file_is_said_to_be_missing() {
    let error = Config::load(Path::new("/nonexistent/xks-proxy.toml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/xks-proxy.toml"), "{error}");
}

#[test]
fn a_store_whose_own_rule_reaches_a_listed_key_under_another_name_is_refused() {
    let listed = "key_rule = { label_prefix = \"tenant-\" }\nkeys = [{ external_key_id = \"ID\", label = \"tenant-a\" }]";
    let with_id = |id: &str| {
        let keys = listed.replace("ID", id);
        parse(&EXAMPLE.replace("key_rule = { label_prefix = \"tenant-\" }", &keys))
    };
    // The same name: the entry says more of the key than the rule can, such as that it is disabled.
    assert!(with_id("a").is_ok());
    let faults = with_id("b").map(|_| ()).unwrap_err();
    assert!(faults[0].contains("the store's key_rule reaches this key too"), "{faults:#?}");
    let version_two = listed.replace("ID", "b").replace("tenant-a", "tenant-a@2");
    let rule = "key_rule = { label_prefix = \"tenant-\" }";
    let faults = parse(&EXAMPLE.replace(rule, &version_two)).map(|_| ()).unwrap_err();
    assert!(faults[0].contains("the store's key_rule reaches this key too"), "{faults:#?}");
}

#[test]
fn the_share_of_the_ivs_is_that_of_the_fleet_unless_said() {
    let share = |source: &str| parse(source).unwrap().iv_budget.share;
    let fleet_of_four = EXAMPLE.replace("# fleet_size = 1", "fleet_size = 4");
    assert_eq!(share(&fleet_of_four), 1 << 30);
    let two_sites = fleet_of_four.replace("# iv_budget_instances = 1", "iv_budget_instances = 8");
    assert_eq!(share(&two_sites), 1 << 29);
}

#[test]
fn versions_and_their_states_are_read() {
    let config = parse(EXAMPLE).unwrap();
    let id = |text| xks_spec::ExternalKeyId::parse(text).unwrap();
    let versions = |key: &crate::keystore::ExternalKey| -> Vec<_> {
        key.versions().map(|version| (version.number, version.state.to_string())).collect()
    };
    let vault = config.stores[0].keys.find(&id("vault")).unwrap();
    assert_eq!(versions(&vault), [(2, "primary".to_owned()), (1, "retired".to_owned())]);
    assert!(vault.primary.material.check_value.is_some());
    let ledger = config.stores[0].keys.find(&id("ledger")).unwrap();
    assert_eq!(versions(&ledger), [(1, "primary".to_owned())]);

    let rule = "label_prefix = \"tenant-\"";
    let states = "versions = [{ number = 1, state = \"disabled\" }, { number = 5, state = \"primary\" }]";
    let config = parse(&EXAMPLE.replace(rule, &format!("{rule}, {states}"))).unwrap();
    let made = config.stores[1].keys.find(&id("a")).unwrap();
    assert_eq!(versions(&made), [(5, "primary".to_owned()), (1, "disabled".to_owned())]);
}

#[test]
fn a_check_value_of_two_versions_is_refused() {
    let line = EXAMPLE.lines().find(|line| line.starts_with("check_value")).unwrap();
    let twice = EXAMPLE.replacen("state = \"retired\"", &format!("state = \"retired\"\n{line}"), 1);
    let faults = parse(&twice).map(|_| ()).unwrap_err();
    assert!(faults[0].contains("another version has this check_value"), "{faults:#?}");
}

#[test]
fn every_file_that_is_read_is_known() {
    let folder = folder();
    std::fs::write(folder.path().join("xks-proxy.toml"), EXAMPLE).unwrap();
    let (config, files) = Config::load_with_files(&folder.path().join("xks-proxy.toml"));
    let config = config.unwrap();
    assert_eq!(config.files, files);
    let names: Vec<_> = files.iter().map(|file| file.strip_prefix(folder.path()).unwrap()).collect();
    let expected = [
        "payments.secret",
        "pin",
        "tenants.secret",
        "tls/server-ecdsa.key",
        "tls/server-ecdsa.pem",
        "tls/server-rsa.key",
        "tls/server-rsa.pem",
        "xks-proxy.toml",
    ];
    assert_eq!(names, expected.map(Path::new));
}

#[test]
fn the_files_of_a_faulty_configuration_are_known_too_and_their_faults_may_pass() {
    let folder = folder();
    std::fs::write(folder.path().join("xks-proxy.toml"), EXAMPLE).unwrap();
    std::fs::remove_file(folder.path().join("pin")).unwrap();
    let (config, files) = Config::load_with_files(&folder.path().join("xks-proxy.toml"));
    let Err(ConfigError::Faulty { faults, .. }) = config else { panic!("it is not faulty") };
    // The others follow from it.
    assert!(faults[0].path == "tokens[0].pin" && faults[0].may_pass, "{faults:?}");
    assert!(files.contains(&folder.path().join("pin")));
}

#[test]
fn client_certificates_want_an_authority_and_a_name() {
    let section = "[server.client_certificates]\nca_file = \"tls/amazon-trust-services.pem\"\nregions = [\"eu-central-1\"]\n\
                   common_names = [\"tester.example.com\"]\n[server.limits]";
    let example = EXAMPLE.replace("[server.limits]", section);
    parse(&example).unwrap();
    for (from, to, expected) in [
        (
            "amazon-trust-services",
            "absent",
            "server.client_certificates: cannot read a PEM certificate chain",
        ),
        ("ca_file = ", "ca_fil = ", "server.client_certificates: ca_file is missing"),
        (
            "\nregions = [\"eu-central-1\"]\ncommon_names = [\"tester.example.com\"]",
            "",
            "server.client_certificates: regions or common_names must say",
        ),
        ("[\"eu-central-1\"]", "[]", "client_certificates.regions: must not be empty"),
        ("[\"eu-central-1\"]", "[\"eu-*-1\"]", "client_certificates.regions[0]: must be an AWS Region"),
        ("[\"eu-central-1\"]", "[\"frankfurt\"]", "client_certificates.regions[0]: must be an AWS Region"),
        ("[\"eu-central-1\"]", "[\"EU-central-1\"]", "client_certificates.regions[0]: must be an AWS Region"),
        ("tester.example", "*.example", "client_certificates.common_names[0]: must be a whole common name"),
    ] {
        let section = section.replace(from, to);
        let faults = parse(&EXAMPLE.replace("[server.limits]", &section)).map(|_| ()).unwrap_err();
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:#?}");
    }
}

const ADMIN_CERTIFICATES: &str =
    "certificates = [{ chain_file = \"tls/server-ecdsa.pem\", key_file = \"tls/server-ecdsa.key\" }]\n";

#[test]
fn faults_of_the_admin_listeners_tls_are_reported() {
    let with = |lines: &str| parse(&EXAMPLE.replace("[admin]", &format!("[admin]\n{lines}")));
    let clients = |lines: &str| {
        format!(
            "{ADMIN_CERTIFICATES}client_certificates = {{ ca_file = \"tls/amazon-trust-services.pem\", {lines} }}\n"
        )
    };
    let settings = with(&clients("common_names = [\"prometheus\"]")).unwrap().admin.tls.unwrap();
    assert_eq!(settings.listener.server.alpn_protocols, [b"http/1.1"]);
    assert_eq!(settings.certificates.len(), 1);
    for (lines, said) in [
        ("certificates = []", "admin.certificates: no certificate"),
        (
            "certificates = [{ chain_file = \"pin\", key_file = \"pin\" }]",
            "admin.certificates: cannot read a PEM",
        ),
        (
            "client_certificates = { ca_file = \"pin\", common_names = [\"a\"] }",
            "admin.client_certificates: needs certificates",
        ),
        (&clients("regions = [\"eu-central-1\"]"), "admin.client_certificates: unknown key"),
        (&clients("common_names = []"), "admin.client_certificates.common_names: must not be empty"),
        (&clients("common_names = [\"*\"]"), "must be a whole common name"),
    ] {
        let faults = with(lines).map(|_| ()).unwrap_err();
        assert!(faults.iter().any(|fault| fault.contains(said)), "{lines}: {faults:#?}");
    }
}

#[test]
fn an_admin_listener_that_others_can_reach_must_be_meant() {
    let with = |lines: &str| parse(&EXAMPLE.replace("[admin]", &format!("[admin]\n{lines}")));
    for reachable in ["0.0.0.0:9464", "[::]:9464", "10.0.0.1:9464", "[::ffff:10.0.0.1]:9464"] {
        let faults = with(&format!("listen = {reachable:?}")).map(|_| ()).unwrap_err();
        assert!(faults[0].contains("admin.listen: is plain HTTP that others can reach"), "{faults:#?}");
        with(&format!("listen = {reachable:?}\ninsecure_ok = true")).unwrap();
        with(&format!("listen = {reachable:?}\ninsecure_ok = false")).map(|_| ()).unwrap_err();
        with(&format!("listen = {reachable:?}\n{ADMIN_CERTIFICATES}")).unwrap();
    }
    for loopback in ["127.0.0.1:9464", "127.1.2.3:9464", "[::1]:9464", "[::ffff:127.0.0.1]:9464"] {
        with(&format!("listen = {loopback:?}")).unwrap();
    }
}

#[test]
fn a_credential_may_say_when_it_was_made() {
    let made = |example: &str| {
        let config = parse(example).unwrap();
        config.stores[0].credentials.ages().map(|(_, created)| created).collect::<Vec<_>>()
    };
    assert_eq!(made(EXAMPLE), [Some(1_769_817_600)], "2026-01-31T00:00:00Z");
    assert_eq!(made(&EXAMPLE.replace("created = \"2026-01-31\"\n", "")), [None]);
    for bad in
        ["31.01.2026", "2026-1-31", "2026-02-30", "2026-13-01", "2026-01-31T00:00:00Z", "+026-01-31", ""]
    {
        let faults = parse(&EXAMPLE.replace("2026-01-31", bad)).map(|_| ()).unwrap_err();
        assert!(faults[0].contains("credentials[0].created: must be a date"), "{bad}: {faults:?}");
    }
}
