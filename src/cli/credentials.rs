//! `xks-proxy credentials new`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use xks_spec::UriPathPrefix;
use xks_spec::credential::{
    AccessKeyId, GENERATED_ACCESS_KEY_ID_CHARS, GENERATED_SECRET_CHARS, SecretAccessKey,
};

use super::{EXIT_FAILED, EXIT_OK, complain, print};
use crate::clock;

/// Arguments of `credentials new`.
#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// URI path prefix of the key store, as in its uri_path_prefix; "" for none.
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    path_prefix: UriPathPrefix,
    /// What to print: the configuration's stanza, the file that the KMS console takes, or the input of
    /// `aws kms create-custom-key-store --cli-input-json file://…`, which does not take the console's file.
    #[arg(long, value_enum, default_value_t = Format::Toml, conflicts_with = "dir")]
    format: Format,
    /// Write all three forms of one credential into this folder instead: credentials.toml, console.json,
    /// cli-input.json. The folder is made if need be; files that are there are not overwritten.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The proxy's endpoint as KMS will see it, for cli-input-json.
    #[arg(long, value_name = "URL", default_value = "https://xks.example.com")]
    endpoint: String,
    /// Name of the custom key store, for cli-input-json.
    #[arg(long, value_name = "NAME", default_value = "xks")]
    name: String,
    /// Name of the VPC endpoint service, for cli-input-json; without it the store is one with a public endpoint.
    #[arg(long, value_name = "SERVICE")]
    vpc_endpoint_service: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Toml,
    ConsoleJson,
    CliInputJson,
}

impl Format {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Toml, "credentials.toml"),
        (Self::ConsoleJson, "console.json"),
        (Self::CliInputJson, "cli-input.json"),
    ];
}

fn parse_prefix(text: &str) -> Result<UriPathPrefix, String> {
    UriPathPrefix::parse(text).map_err(|fault| format!("the path prefix {fault}"))
}

pub(super) fn new(args: &NewArgs) -> u8 {
    let (id, secret) = match generate() {
        Ok(credential) => credential,
        Err(error) => {
            complain(&format!("the system gives no random bytes: {error}"));
            return EXIT_FAILED;
        }
    };
    let Some(dir) = &args.dir else {
        print(&render(args.format, args, &id, &secret));
        return EXIT_OK;
    };
    match write_all(dir, args, &id, &secret) {
        Ok(()) => {
            print(&format!(
                "wrote credentials.toml, console.json and cli-input.json into {}: put the first into the store's \
                 [[stores.credentials]], give one of the others to KMS, then delete all three",
                dir.display()
            ));
            EXIT_OK
        }
        Err((path, error)) => {
            complain(&format!("cannot write {}: {error}", path.display()));
            EXIT_FAILED
        }
    }
}

fn generate() -> Result<(AccessKeyId, SecretAccessKey), getrandom::Error> {
    let mut id = [0; GENERATED_ACCESS_KEY_ID_CHARS];
    let mut secret = [0; GENERATED_SECRET_CHARS];
    // SPEC(AUTH-CRED-009, AUTH-CRED-011): the id is random and reveals nothing of the secret: they are drawn apart.
    getrandom::fill(&mut id)?;
    getrandom::fill(&mut secret)?;
    Ok((AccessKeyId::from_random(id), SecretAccessKey::from_random(secret)))
}

fn write_all(
    dir: &Path,
    args: &NewArgs,
    id: &AccessKeyId,
    secret: &SecretAccessKey,
) -> Result<(), (PathBuf, std::io::Error)> {
    std::fs::create_dir_all(dir).map_err(|error| (dir.to_owned(), error))?;
    for (format, name) in Format::ALL {
        let path = dir.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| writeln!(file, "{}", render(format, args, id, secret)));
        written.map_err(|error| (path, error))?;
    }
    Ok(())
}

fn render(format: Format, args: &NewArgs, id: &AccessKeyId, secret: &SecretAccessKey) -> String {
    let (id, secret) = (id.as_str(), secret.expose());
    let credential = json!({ "AccessKeyId": id, "RawSecretAccessKey": secret });
    let uri_path = args.path_prefix.uri_path();
    match format {
        Format::Toml => {
            let created = time::OffsetDateTime::from(clock::wall_clock()).date();
            format!(
                "[[stores.credentials]]\naccess_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"\ncreated = \"{created}\""
            )
        }
        // SPEC(OPS-CONSOLE-001, OPS-CONSOLE-003): the file that the KMS console takes.
        Format::ConsoleJson => pretty(&json!({
            "XksProxyUriPath": uri_path,
            "XksProxyAuthenticationCredential": credential,
        })),
        Format::CliInputJson => {
            let mut input = json!({
                "CustomKeyStoreName": args.name,
                "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
                "XksProxyConnectivity": "PUBLIC_ENDPOINT",
                "XksProxyUriEndpoint": args.endpoint,
                "XksProxyUriPath": uri_path,
                "XksProxyAuthenticationCredential": credential,
            });
            if let Some(service) = &args.vpc_endpoint_service {
                input["XksProxyConnectivity"] = json!("VPC_ENDPOINT_SERVICE");
                input["XksProxyVpcEndpointServiceName"] = json!(service);
            }
            pretty(&input)
        }
    }
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}")
}
