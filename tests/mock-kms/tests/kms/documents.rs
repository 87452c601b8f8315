//! The documents' blocks of commands that go through KMS, as they stand there but for addresses and names.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use xks_harness::binary::profile_folder;
use xks_harness::document::blocks_run_by;
use xks_harness::proxy::main_store;
use xks_harness::{Pki, Proxy, Setup, SoftHsm};

use crate::installed::{python_environment, succeed};
use crate::mock::Mock;

const THIS_FILE: &str = "tests/mock-kms/tests/kms/documents.rs";

/// The program is in the background; the block goes on once it listens.
const MOCK_KMS: &str = "set -eu
mock-kms() {
  command mock-kms \"$@\" --listen 127.0.0.1:0 >mock.log &
  trap \"kill $!\" EXIT
  until grep -qs listens mock.log; do kill -0 $!; sleep 0.1; done
}
";
/// Where the background's listens, in the place of the address that it has unless told otherwise.
const ITS_URL: &str = "$(sed -n 's/.*\\(http:[^ ]*\\).*/\\1/p' mock.log)";

/// PATH with the programs of this workspace and aws-cli.
fn path() -> String {
    let own = Path::new(env!("CARGO_BIN_EXE_mock-kms")).parent().unwrap();
    let programs = [own.to_owned(), profile_folder(), python_environment("requirements.txt")];
    let programs: Vec<_> = programs.iter().map(|folder| folder.display().to_string()).collect();
    format!("{}:{}", programs.join(":"), std::env::var("PATH").unwrap())
}

/// What a shell prints.
fn shell(folder: &Path, commands: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-c", commands]).current_dir(folder).env("PATH", path());
    succeed(command.env("AWS_EC2_METADATA_DISABLED", "true"))
}

#[tokio::test]
async fn the_getting_started_can_be_followed() {
    let block = blocks_run_by(THIS_FILE, ("docs/getting-started.md", 1)).remove(0);
    let proxy = Proxy::start(&Setup::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let store = main_store();
    std::fs::create_dir_all(folder.path().join(".dev/tls")).unwrap();
    std::fs::write(folder.path().join(".dev/tls/ca.pem"), Pki::shared().ca_pem()).unwrap();
    let variables = format!(
        "URI_PREFIX={}\nSIGV4_ACCESS_KEY_ID={}\nSIGV4_SECRET_ACCESS_KEY={}\nKEY_ID=demo\n",
        store.prefix.trim_start_matches('/'),
        store.signing.access_key_id,
        store.signing.secret_access_key
    );
    std::fs::write(folder.path().join(".dev/env"), variables).unwrap();
    let commands = block
        .replace("127.0.0.1:8443", &proxy.address.to_string())
        .replace(".pem &\n", ".pem\n")
        .replace("http://127.0.0.1:4599", ITS_URL);
    let output = shell(folder.path(), &format!("{MOCK_KMS}{commands}"));
    // What the last command prints is a ciphertext of KMS in Base64.
    assert!(output.trim().len() > 100 && !output.trim().contains([' ', '"']), "{output}");
    let _ = proxy.wait_for_log(|line| line["kmsOperation"] == "Encrypt" && line["outcome"] == "ok");
}

/// The quick start of mock-kms itself: the second block, in the shell beside the program.
#[tokio::test]
async fn the_quick_start_can_be_followed() {
    let block = blocks_run_by(THIS_FILE, ("tests/mock-kms/README.md", 1)).remove(0);
    let proxy = Proxy::start(&Setup::default()).await;
    let mock = Mock::start(proxy.address, &["--connect-ms", "500"]);
    let store = main_store();
    let commands = block
        .replace("http://127.0.0.1:4599", &mock.url)
        .replace("xks.example.com", "localhost")
        .replace("/demo/kms", &format!("{}/kms", store.prefix))
        .replace("\"AccessKeyId\": \"…\"", &format!("\"AccessKeyId\": {:?}", store.signing.access_key_id))
        .replace(
            "\"RawSecretAccessKey\": \"…\"",
            &format!("\"RawSecretAccessKey\": {:?}", store.signing.secret_access_key),
        )
        .replace("--xks-key-id my-key", "--xks-key-id demo");
    let folder = tempfile::tempdir().unwrap();
    let output = shell(folder.path(), &format!("set -eu\n{commands}"));
    assert!(output.contains("EXTERNAL_KEY_STORE"), "{output}");
}

/// The proxy of an operator who follows deploy/aws/README.md and, later, docs/credential-rotation.md.
struct Operator {
    folder: tempfile::TempDir,
    proxy: Proxy,
    kms: Mock,
}

impl Operator {
    /// With a store whose credentials `make` writes into the folder `credentials`.
    async fn start(make: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        shell(folder.path(), make);
        let token = Arc::new(SoftHsm::with_keys());
        token.generate("ledger", &["--usage", "encrypt,decrypt"]);
        let store = "[[stores]]\nname = \"payments\"\nuri_path_prefix = \"/payments\"\ntokens = [\"softhsm\"]\n\
                     authorization = \"none\"\n[[stores.keys]]\nexternal_key_id = \"ledger\"\nlabel = \"ledger\"\n";
        let credentials =
            std::fs::read_to_string(folder.path().join("credentials/credentials.toml")).unwrap();
        let setup = Setup { more: format!("{store}{credentials}"), ..Setup::default() };
        let proxy = Proxy::start_on(&setup, token).await;
        // It is not connected at once, which the commands must wait for.
        let kms = Mock::start(proxy.address, &["--connect-ms", "500"]);
        Self { folder, proxy, kms }
    }

    /// Runs commands that know the way to KMS; `$id` is the store that earlier ones have made.
    fn run(&self, commands: &str) -> String {
        let to_kms = format!(
            "export AWS_ENDPOINT_URL_KMS={} AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any\n",
            self.kms.url
        );
        let id = "if [ -s id ]; then id=$(cat id); fi\n";
        shell(self.folder.path(), &format!("set -eu\n{to_kms}{id}{commands}\necho \"$id\" >id\n"))
    }

    fn credential_files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("credentials")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Adds what the folder `credentials` has to the store, and waits until it is taken over.
    async fn take_over_credentials(&self) -> String {
        let stanza =
            std::fs::read_to_string(self.folder.path().join("credentials/credentials.toml")).unwrap();
        let config = self.proxy.folder().join("xks-proxy.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{text}{stanza}")).unwrap();
        self.proxy.wait_for("/metrics", |_, text| text.contains("\nxks_config_generation 2\n")).await;
        let line = stanza.lines().find_map(|line| line.strip_prefix("access_key_id = "));
        line.unwrap().trim_matches('"').to_owned()
    }
}

#[tokio::test]
async fn the_key_store_in_aws_is_made_and_its_credential_rotated() {
    let blocks = blocks_run_by(THIS_FILE, ("deploy/aws/README.md", 3));
    // The module's outputs.
    let terraform = "terraform() {
  case $3 in
    uri_endpoint) echo https://localhost ;;
    vpc_endpoint_service_name) echo com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0 ;;
  esac
}
";
    let operator = Operator::start(&format!("set -eu\n{terraform}{}", blocks[0])).await;
    let output = operator.run(&blocks[1]);
    assert!(output.contains("CONNECTED"), "{output}");
    assert!(!operator.credential_files().is_empty(), "they stay until there is a key");
    operator.run(&blocks[2]);
    assert!(operator.credential_files().is_empty(), "the secret is gone");

    let block = blocks_run_by(THIS_FILE, ("docs/credential-rotation.md", 1)).remove(0);
    operator.run("xks-proxy credentials new --path-prefix /payments --dir credentials");
    let access_key_id = operator.take_over_credentials().await;
    operator.run(&block.replace("cks-…", "\"$id\""));
    assert!(operator.credential_files().is_empty(), "the secret is gone");
    operator.run(
        "aws kms encrypt --plaintext c2VjcmV0 --key-id \"$(aws kms list-keys --query 'Keys[0].KeyId' --output text)\"",
    );
    let _ = operator.proxy.wait_for_log(|line| {
        line["message"].as_str().is_some_and(|message| message.starts_with("first use of a credential"))
            && line["access_key_id"] == *access_key_id
    });
}
