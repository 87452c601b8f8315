//! The saboteur as a target, with everything that the suite can ask of one.
#![allow(dead_code, reason = "no test uses all of it")]

use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use tempfile::TempDir;
use xks_conformance::target::{Target, TargetArgs};
use xks_saboteur::{Fault, HOST, STORES, Saboteur, keys, setup};

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    target: TargetArgs,
}

/// Starts one, its certificates in `folder`.
pub(crate) async fn start(fault: Option<Fault>, folder: &TempDir) -> (Saboteur, Arc<Target>) {
    let saboteur = Saboteur::start(fault).await;
    let target = CommandLine::parse_from(command_line(&saboteur, folder.path())).target;
    let target = target.target().await.unwrap();
    (saboteur, Arc::new(target))
}

/// The suite's command line for it, its own name in front.
pub(crate) fn command_line(saboteur: &Saboteur, folder: &Path) -> Vec<String> {
    let certificates = folder.join("certificates");
    saboteur.write_certificates(&certificates).unwrap();
    let [main, second, disabled] = STORES;
    // The suite appends the action, such as `hsm-failing`, which becomes the path /hsm/failing.
    let hook = format!(
        r#"act() {{ curl -sf -X POST "http://{}/${{1%%-*}}/${{1#*-}}"; }}; act"#,
        saboteur.control_addr()
    );
    let arguments = [
        ("--endpoint", format!("https://{HOST}:{}", saboteur.addr().port())),
        ("--resolve", saboteur.addr().to_string()),
        ("--trust-ca", certificates.join("ca.pem").display().to_string()),
        ("--uri-prefix", main.uri_path_prefix.to_owned()),
        ("--access-key-id", main.credential.access_key_id.to_owned()),
        ("--secret-access-key", main.credential.secret_access_key.to_owned()),
        ("--next-access-key-id", main.next_credential.access_key_id.to_owned()),
        ("--next-secret-access-key", main.next_credential.secret_access_key.to_owned()),
        ("--region", setup::REGION.to_owned()),
        ("--key-id", keys::USABLE.to_owned()),
        ("--second-key-id", keys::SECOND.to_owned()),
        ("--encrypt-only-key-id", keys::ENCRYPT_ONLY.to_owned()),
        ("--decrypt-only-key-id", keys::DECRYPT_ONLY.to_owned()),
        ("--impotent-key-id", keys::IMPOTENT.to_owned()),
        ("--disabled-key-id", keys::DISABLED.to_owned()),
        ("--second-uri-prefix", second.uri_path_prefix.to_owned()),
        ("--second-access-key-id", second.credential.access_key_id.to_owned()),
        ("--second-secret-access-key", second.credential.secret_access_key.to_owned()),
        ("--second-store-key-id", keys::OTHER_STORE.to_owned()),
        ("--denied-key-id", keys::RESTRICTED.to_owned()),
        ("--disabled-uri-prefix", disabled.uri_path_prefix.to_owned()),
        ("--disabled-access-key-id", disabled.credential.access_key_id.to_owned()),
        ("--disabled-secret-access-key", disabled.credential.secret_access_key.to_owned()),
        ("--disabled-store-key-id", keys::OF_DISABLED_STORE.to_owned()),
        ("--proxy-count", "1".to_owned()),
        ("--key-manager-count", "1".to_owned()),
        ("--ping-path", setup::PING_PATH.to_owned()),
        ("--mtls-address", saboteur.mtls_addr().to_string()),
        ("--client-certs", certificates.display().to_string()),
        ("--hook", hook),
    ];
    let words = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
    ["xks-conformance".to_owned()].into_iter().chain(words).chain(["--no-port-443".to_owned()]).collect()
}
