//! `xks-saboteur`: the saboteur as a process, for clients that are programs of their own.
#![allow(clippy::print_stdout, reason = "the command's output")]

use std::path::PathBuf;

use clap::Parser;
use xks_saboteur::{Fault, HOST, STORES, Saboteur, keys};

/// An XKS proxy in which one mistake at a time can be switched on.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The mistake to make; none unless named.
    #[arg(long, value_parser = fault)]
    fault: Option<Fault>,
    /// Lists the mistakes and ends.
    #[arg(long)]
    list: bool,
    /// Where to write the CA's certificate and the clients' for mTLS.
    #[arg(long, default_value = "saboteur")]
    folder: PathBuf,
}

fn fault(name: &str) -> Result<Fault, String> {
    Fault::by_name(name).ok_or_else(|| "there is no such fault; --list shows them".to_owned())
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        for fault in Fault::ALL {
            println!("{}\t{}\t{}", fault.name(), fault.requirements().join(", "), fault.description());
        }
        return Ok(());
    }
    let saboteur = Saboteur::start(arguments.fault).await;
    saboteur.write_certificates(&arguments.folder)?;
    print_environment(&saboteur, &arguments.folder.canonicalize()?);
    tokio::signal::ctrl_c().await
}

/// What AWS's client reads, as lines for a shell; then what else there is, as comments.
fn print_environment(saboteur: &Saboteur, folder: &std::path::Path) {
    let store = STORES[0];
    let folder = folder.display();
    let lines = [
        ("XKS_PROXY_HOST", format!("{HOST}:{}", saboteur.addr().port())),
        ("URI_PREFIX", store.uri_path_prefix.trim_start_matches('/').to_owned()),
        ("SIGV4_ACCESS_KEY_ID", store.credential.access_key_id.to_owned()),
        ("SIGV4_SECRET_ACCESS_KEY", store.credential.secret_access_key.to_owned()),
        ("REGION", xks_saboteur::setup::REGION.to_owned()),
        ("KEY_ID", keys::USABLE.to_owned()),
        ("ENCRYPT_ONLY_KEY_ID", keys::ENCRYPT_ONLY.to_owned()),
        ("DECRYPT_ONLY_KEY_ID", keys::DECRYPT_ONLY.to_owned()),
        ("IMPOTENT_KEY_ID", keys::IMPOTENT.to_owned()),
        ("CURL_CA_BUNDLE", format!("{folder}/ca.pem")),
        ("SECURE", format!("--connect-to {HOST}::127.0.0.1:")),
    ];
    for (name, value) in lines {
        println!("export {name}='{value}'");
    }
    println!("# mTLS: XKS_PROXY_HOST={HOST}:{}", saboteur.mtls_addr().port());
    println!("#       MTLS='--cert {folder}/kms.pem --key {folder}/kms.key'");
    println!("# hooks: curl -X POST http://{}/hsm/failing", saboteur.control_addr());
}
