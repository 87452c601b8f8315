//! The demo from beginning to end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::caller::Caller;
use super::folder::{EXTERNAL_KEY_ID, Folder, build_proxy};
use super::layers::{Peeled, peel, share_bytes};
use super::proxy::ProxyProcess;
use super::terminal::{Terminal, Tone};
use super::{DemoArgs, Stop, envelope, paste};
use crate::api::Service;
use crate::cli::{ServeArgs, Server};
use crate::kms::context::EncryptionContext;
use crate::kms::name::hex;
use crate::xks::Client;

const ALIAS: &str = "alias/demo";
const TEXT: &str = "Nobody reads this without the key in the HSM.\n";
const POLL: Duration = Duration::from_millis(50);

/// Everything that runs; it ends when this is dropped.
pub(super) struct Scene {
    folder: Folder,
    program: PathBuf,
    proxy: ProxyProcess,
    caller: Caller,
    url: String,
    service: Arc<Service>,
    /// A client of our own, to look at the proxy's side.
    client: Client,
    key_arn: String,
}

/// A data key as its caller has it.
struct DataKey {
    plaintext: Vec<u8>,
    blob: Vec<u8>,
    request_id: String,
}

/// Tells it, and hands over what still runs.
pub(super) async fn tell(arguments: &DemoArgs, terminal: &mut Terminal) -> Result<Scene, Stop> {
    terminal.line(
        &terminal.paint(Tone::Title, "A caller, a KMS, an external key store proxy, an HSM: there and back"),
    )?;
    let mut scene = Scene::set(arguments, terminal).await?;
    scene.make_store(terminal).await?;
    scene.make_key(terminal).await?;
    let data_key = scene.generate_data_key(terminal).await?;
    let peeled = scene.show_layers(terminal, &data_key).await?;
    let content = match &arguments.file {
        Some(file) => {
            std::fs::read(file).map_err(|error| Stop::Setup(format!("{}: {error}", file.display())))?
        }
        None => TEXT.as_bytes().to_vec(),
    };
    let file = scene.encrypt_file(terminal, &data_key, &content)?;
    scene.decrypt_file(terminal, &file, &content).await?;
    scene.disable_key(terminal, &file).await?;
    scene.enable_key(terminal, &file, &content).await?;
    scene.conclude(terminal, &peeled, arguments.proxy_timeout_ms)?;
    Ok(scene)
}

impl Scene {
    async fn set(arguments: &DemoArgs, terminal: &mut Terminal) -> Result<Self, Stop> {
        terminal.step("Token, proxy and KMS")?;
        let (folder, is_new) = Folder::find_or_make(arguments.dir.as_deref())?;
        let made = if is_new { "made just now" } else { "made before" };
        terminal.fact("SoftHSM2 token", &format!("in {}, {made}", folder.path().display()))?;
        let program = match &arguments.proxy {
            Some(program) => program.clone(),
            None => build_proxy()?,
        };
        let proxy = ProxyProcess::start(&program, &folder, 0, true).await?;
        terminal
            .fact("external key store proxy", &format!("on {}, process {}", proxy.address, proxy.pid()))?;
        let server = start_kms(arguments, proxy.address, &folder).await?;
        let (service, url) = (Arc::clone(&server.service), server.url.clone());
        let address = url.strip_prefix("http://").and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| Stop::Setup(format!("the KMS listens on {url}")))?;
        tokio::spawn(server.serve());
        terminal.fact("KMS", &format!("on {url}, with a page to look at"))?;
        let caller = Caller { address, region: service.settings.home.region.clone() };
        let client = client(arguments, &folder, proxy.address)?;
        Ok(Self { folder, program, proxy, caller, url, service, client, key_arn: String::new() })
    }

    async fn make_store(&self, terminal: &mut Terminal) -> Result<(), Stop> {
        terminal.step("An external key store")?;
        let create = json!({
            "CustomKeyStoreName": "demo",
            "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
            "XksProxyUriEndpoint": "https://localhost",
            "XksProxyUriPath": self.folder.uri_path,
            "XksProxyConnectivity": "PUBLIC_ENDPOINT",
            "XksProxyAuthenticationCredential": {
                "AccessKeyId": self.folder.access_key_id,
                "RawSecretAccessKey": *self.folder.secret_access_key,
            },
        });
        let created = self.caller.call("CreateCustomKeyStore", &create).await?;
        let store = json!({ "CustomKeyStoreId": created["CustomKeyStoreId"] });
        terminal.fact(
            "CreateCustomKeyStore",
            &format!("{}, at https://localhost{}", text(&store["CustomKeyStoreId"]), self.folder.uri_path),
        )?;
        self.caller.call("ConnectCustomKeyStore", &store).await?;
        let mut states: Vec<String> = Vec::new();
        loop {
            let described = self.caller.call("DescribeCustomKeyStores", &store).await?;
            let described = &described["CustomKeyStores"][0];
            let state = text(&described["ConnectionState"]);
            if states.last() != Some(&state) {
                states.push(state.clone());
            }
            match state.as_str() {
                "CONNECTED" => break,
                "CONNECTING" => tokio::time::sleep(POLL).await,
                _ => return Err(Stop::NotProven(format!("the store connects: {described}"))),
            }
        }
        Ok(terminal.fact("ConnectCustomKeyStore", &states.join(" → "))?)
    }

    async fn make_key(&mut self, terminal: &mut Terminal) -> Result<(), Stop> {
        terminal.step("A KMS key whose material is in the HSM")?;
        let stores = self.caller.call("DescribeCustomKeyStores", &json!({})).await?;
        let create = json!({
            "Description": "The demo's key",
            "Origin": "EXTERNAL_KEY_STORE",
            "CustomKeyStoreId": stores["CustomKeyStores"][0]["CustomKeyStoreId"],
            "XksKeyId": EXTERNAL_KEY_ID,
        });
        let created = self.caller.call("CreateKey", &create).await?;
        self.key_arn = text(&created["KeyMetadata"]["Arn"]);
        terminal.fact("CreateKey", &format!("{}\nfor the external key {EXTERNAL_KEY_ID}", self.key_arn))?;
        let alias = json!({ "AliasName": ALIAS, "TargetKeyId": self.key_arn });
        self.caller.call("CreateAlias", &alias).await?;
        Ok(terminal.fact("CreateAlias", ALIAS)?)
    }

    async fn generate_data_key(&self, terminal: &mut Terminal) -> Result<DataKey, Stop> {
        terminal.step("A data key")?;
        let operation = "GenerateDataKey";
        let body = json!({ "KeyId": ALIAS, "KeySpec": "AES_256", "EncryptionContext": context_pairs() });
        let called = self.caller.try_call(operation, &body).await?;
        let made = called.outcome.map_err(|refusal| Stop::Refused { operation, refusal })?;
        terminal.fact(operation, &format!("request {}", called.request_id))?;
        let bytes = |name: &str| STANDARD.decode(text(&made[name])).unwrap_or_default();
        Ok(DataKey {
            plaintext: bytes("Plaintext"),
            blob: bytes("CiphertextBlob"),
            request_id: called.request_id,
        })
    }

    async fn show_layers(&mut self, terminal: &mut Terminal, data_key: &DataKey) -> Result<Peeled, Stop> {
        terminal.step("Which bytes each side saw")?;
        let context = EncryptionContext::new(context_pairs());
        let context =
            context.ok_or_else(|| Stop::NotProven("the encryption context is too long".to_owned()))?;
        let peeled = peel(&self.service, &self.client, &self.folder, &data_key.blob, &context).await?;
        peeled.show(terminal)?;
        prove(
            *peeled.plaintext == data_key.plaintext,
            "both layers opened give the data key that the caller got",
        )?;
        let is_hidden = !share_bytes(&peeled.inner, &data_key.plaintext);
        prove(is_hidden, "what the proxy saw has nothing of the data key in it")?;
        let is_hidden =
            !share_bytes(&data_key.blob, &peeled.inner) && !share_bytes(&data_key.blob, &data_key.plaintext);
        prove(is_hidden, "the ciphertext blob has nothing of the inner layer in it")?;
        let log = self.proxy.request_log(&data_key.request_id).await?;
        let is_its_own =
            log["kmsOperation"] == "GenerateDataKey" && log["kmsKeyArn"] == self.key_arn.as_str();
        prove(is_its_own, &format!("the proxy logs operation and key of the request: {log}"))?;
        terminal.fact("the proxy's log", &format!("the same request id, {}", text(&log["kmsOperation"])))?;
        Ok(peeled)
    }

    fn encrypt_file(
        &self,
        terminal: &mut Terminal,
        data_key: &DataKey,
        content: &[u8],
    ) -> Result<Vec<u8>, Stop> {
        terminal.step("A file, encrypted under the data key")?;
        let file = envelope::seal(&data_key.plaintext, &data_key.blob, content)?;
        terminal.bytes("the file", content, Tone::Secret, &format!("SHA-256 {}…", digest(content)))?;
        terminal.bytes("the encrypted file", &file, Tone::Twice, "the encrypted data key is in it")?;
        prove(!share_bytes(&file, content), "the encrypted file has nothing of the file in it")?;
        Ok(file)
    }

    async fn decrypt_file(&self, terminal: &mut Terminal, file: &[u8], content: &[u8]) -> Result<(), Stop> {
        terminal.step("The file, decrypted with KMS's help")?;
        let data_key = self.caller.call("Decrypt", &decrypt(file, &context_pairs())).await?;
        let data_key = STANDARD.decode(text(&data_key["Plaintext"])).unwrap_or_default();
        let opened = envelope::open(&data_key, file).unwrap_or_default();
        prove(opened == content, "the file comes back byte for byte")?;
        terminal.bytes("the file again", &opened, Tone::Secret, &format!("SHA-256 {}…", digest(&opened)))?;
        let other = BTreeMap::from([("purpose".to_owned(), "another".to_owned())]);
        let refusal = self.caller.refused("Decrypt", &decrypt(file, &other)).await?;
        // KMS says so of any ciphertext, AAD or tag that the proxy finds wrong.
        prove(
            refusal.exception == "KMSInvalidStateException",
            "Decrypt fails in another encryption context",
        )?;
        Ok(terminal.fact("in another context", &terminal.paint(Tone::Bad, &refusal.exception))?)
    }

    async fn disable_key(&mut self, terminal: &mut Terminal, file: &[u8]) -> Result<(), Stop> {
        terminal.step("The external key, disabled in the proxy")?;
        self.restart_proxy(false).await?;
        let refusal = self.caller.refused("Decrypt", &decrypt(file, &context_pairs())).await?;
        terminal.fact(
            "Decrypt",
            &format!("{}\n{}", terminal.paint(Tone::Bad, &refusal.exception), wrapped(&refusal.message)),
        )?;
        prove(
            refusal.exception == "KMSInvalidStateException",
            "Decrypt fails with KMSInvalidStateException",
        )?;
        let key = self.caller.call("DescribeKey", &json!({ "KeyId": ALIAS })).await?;
        let state = text(&key["KeyMetadata"]["KeyState"]);
        terminal.fact("DescribeKey", &format!("{state}: the KMS key's state is its own"))?;
        prove(state == "Enabled", "the KMS key's state is untouched")
    }

    async fn enable_key(&mut self, terminal: &mut Terminal, file: &[u8], content: &[u8]) -> Result<(), Stop> {
        terminal.step("The external key, enabled again")?;
        self.restart_proxy(true).await?;
        let data_key = self.caller.call("Decrypt", &decrypt(file, &context_pairs())).await?;
        let data_key = STANDARD.decode(text(&data_key["Plaintext"])).unwrap_or_default();
        prove(envelope::open(&data_key, file).as_deref() == Some(content), "the file opens again")?;
        Ok(terminal.fact("Decrypt", &terminal.paint(Tone::Good, "the file opens again"))?)
    }

    fn conclude(&self, terminal: &Terminal, peeled: &Peeled, timeout_ms: u64) -> Result<(), Stop> {
        let calls = self.service.journal.latest(usize::MAX);
        let proxy_calls: Vec<_> = calls.iter().flat_map(|call| &call.proxy_calls).collect();
        let slowest = proxy_calls.iter().map(|call| call.report.last_try).max().unwrap_or_default();
        terminal.line(&format!("\n{}", terminal.paint(Tone::Title, "Proven")))?;
        let sizes = format!(
            "a data key of {} bytes went to the proxy as {} encrypted bytes, and nothing of it was in them",
            peeled.plaintext.len(),
            peeled.inner.len()
        );
        for text in [
            "a file was encrypted and decrypted byte for byte, its key wrapped by KMS and then by the HSM",
            &sizes,
            "it takes both: KMS's own key material and the HSM's key opened the blob layer by layer",
            "with the external key disabled, KMS could not decrypt; with it enabled again, nothing was lost",
            "the request id that KMS gave its caller stands in the proxy's log",
            &format!(
                "{} calls to the proxy, the slowest took {:.1} of {timeout_ms} ms",
                proxy_calls.len(),
                slowest.as_secs_f64() * 1e3
            ),
        ] {
            terminal.proven(text)?;
        }
        Ok(())
    }

    /// Says how to go on.
    pub(super) fn explain(&self, terminal: &Terminal) -> Result<(), Stop> {
        let title = format!("Still running, until Ctrl-C. A page to look at: {}/", self.url);
        terminal.line(&format!("\n{}", terminal.paint(Tone::Title, &title)))?;
        Ok(terminal.line(&paste::lines(&self.url, &self.caller.region, ALIAS))?)
    }

    pub(super) async fn end(&mut self) -> Result<(), Stop> {
        self.proxy.end().await
    }

    async fn restart_proxy(&mut self, is_key_enabled: bool) -> Result<(), Stop> {
        // KMS was told this port; nobody else is likely to take it within the moment.
        let port = self.proxy.address.port();
        self.proxy.end().await?;
        self.proxy = ProxyProcess::start(&self.program, &self.folder, port, is_key_enabled).await?;
        Ok(())
    }
}

/// The KMS in this process, its options those of `serve`.
async fn start_kms(arguments: &DemoArgs, proxy: SocketAddr, folder: &Folder) -> Result<Server, Stop> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: ServeArgs,
    }
    let (client_cert, client_key) = folder.client_identity();
    let mut words = vec!["mock-kms".into(), "--listen".into(), arguments.listen.to_string().into()];
    words.extend(["--proxy-timeout-ms".into(), arguments.proxy_timeout_ms.to_string().into()]);
    words.extend(["--resolve".into(), format!("localhost={proxy}").into()]);
    words.extend(["--ca-file".into(), folder.ca_file().into_os_string()]);
    words.extend(["--client-cert".into(), client_cert.into_os_string()]);
    words.extend(["--client-key".into(), client_key.into_os_string()]);
    let line = Line::try_parse_from(words).map_err(|error| Stop::Setup(error.to_string()))?;
    Server::start(&line.serve).await.map_err(|error| Stop::Setup(format!("the KMS does not start: {error}")))
}

fn client(arguments: &DemoArgs, folder: &Folder, proxy: SocketAddr) -> Result<Client, Stop> {
    let timeout = Duration::from_millis(arguments.proxy_timeout_ms);
    let ca = std::fs::read(folder.ca_file()).map_err(|error| Stop::Setup(error.to_string()))?;
    let builder = Client::builder()
        .without_system_roots()
        .resolve("localhost", proxy)
        .try_timeout(timeout)
        .trust_ca_pem(&ca);
    builder.and_then(crate::xks::ClientBuilder::build).map_err(|error| Stop::Setup(error.to_string()))
}

fn context_pairs() -> BTreeMap<String, String> {
    BTreeMap::from([("purpose".to_owned(), "demo".to_owned())])
}

fn decrypt(file: &[u8], context: &BTreeMap<String, String>) -> Value {
    let blob = envelope::encrypted_data_key(file).unwrap_or_default();
    json!({ "CiphertextBlob": STANDARD.encode(blob), "EncryptionContext": context })
}

fn prove(holds: bool, claim: &str) -> Result<(), Stop> {
    if holds { Ok(()) } else { Err(Stop::NotProven(claim.to_owned())) }
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes)[..8])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Breaks a message into lines that fit behind the column of names.
fn wrapped(message: &str) -> String {
    let mut lines = vec![String::new()];
    for word in message.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < 80 => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}
