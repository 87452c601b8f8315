//! The development folder that `softhsm-setup.sh` makes: token, certificates, credentials, configuration.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use toml::{Table, Value};
use zeroize::Zeroizing;

use super::Stop;

const SCRIPT: &str = "softhsm-setup.sh";
const CONFIGURATION: &str = "xks-proxy.toml";
/// The store and the external key of the script's configuration that the demo uses.
const STORE: &str = "demo";
pub(super) const EXTERNAL_KEY_ID: &str = "demo";

/// The folder, and what the demo has to know of its store.
pub(super) struct Folder {
    path: PathBuf,
    configuration: Table,
    /// `XksProxyUriPath`.
    pub(super) uri_path: String,
    pub(super) access_key_id: String,
    pub(super) secret_access_key: Zeroizing<String>,
}

impl Folder {
    /// Reads the folder, made anew where there is none. `true` where it had to be made.
    pub(super) fn find_or_make(wanted: Option<&Path>) -> Result<(Self, bool), Stop> {
        let path = match wanted {
            Some(path) => path.to_owned(),
            None => root()?.join(".dev"),
        };
        let is_missing = !path.join(CONFIGURATION).is_file();
        if is_missing {
            make(&path)?;
        }
        Ok((Self::read(&path)?, is_missing))
    }

    fn read(path: &Path) -> Result<Self, Stop> {
        let path = path.canonicalize().map_err(|error| fault(path, error))?;
        let file = path.join(CONFIGURATION);
        let text = fs::read_to_string(&file).map_err(|error| fault(&file, error))?;
        // toml's own message would quote the line, which may hold a secret.
        let configuration: Table = text.parse().map_err(|_| fault(&file, "is not TOML"))?;
        let missing = || {
            fault(&file, format!("has no store {STORE:?} as {SCRIPT} makes it; delete it and run that again"))
        };
        let store = store(&configuration).ok_or_else(missing)?;
        let text = |table: &Table, name: &str| table.get(name).and_then(Value::as_str).map(str::to_owned);
        let prefix = text(store, "uri_path_prefix").ok_or_else(missing)?;
        let credential = store.get("credentials").and_then(|all| all.get(0)).and_then(Value::as_table);
        let credential = credential.ok_or_else(missing)?;
        let access_key_id = text(credential, "access_key_id").ok_or_else(missing)?;
        let secret_file = credential.get("secret_access_key").and_then(|secret| secret.get("file"));
        let secret_file = path.join(secret_file.and_then(Value::as_str).ok_or_else(missing)?);
        let secret = fs::read_to_string(&secret_file).map(Zeroizing::new);
        let secret = secret.map_err(|error| fault(&secret_file, error))?;
        let secret_access_key = Zeroizing::new(secret.trim_end_matches('\n').to_owned());
        Ok(Self {
            uri_path: format!("{prefix}/kms/xks/v1"),
            path,
            configuration,
            access_key_id,
            secret_access_key,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn ca_file(&self) -> PathBuf {
        self.path.join("tls/ca.pem")
    }

    /// The client certificate's chain and key, as KMS would show where the proxy asks.
    pub(super) fn client_identity(&self) -> (PathBuf, PathBuf) {
        (self.path.join("tls/client.pem"), self.path.join("tls/client.key"))
    }

    /// The folder's configuration with the demo's ports, its key enabled or not.
    pub(super) fn configuration(&self, port: u16, is_key_enabled: bool) -> Result<String, Stop> {
        let mut changed = self.configuration.clone();
        let stale = || {
            Stop::Setup(format!("{CONFIGURATION} is not as {SCRIPT} makes it; delete it and run that again"))
        };
        let server = changed.get_mut("server").and_then(Value::as_table_mut).ok_or_else(stale)?;
        server.insert("listen".to_owned(), format!("127.0.0.1:{port}").into());
        server.insert("lame_duck_secs".to_owned(), 0.into());
        changed.insert(
            "admin".to_owned(),
            Table::from_iter([("listen".to_owned(), "127.0.0.1:0".into())]).into(),
        );
        changed.remove("ping");
        let keys = store_mut(&mut changed).and_then(|store| store.get_mut("keys")?.as_array_mut());
        let is_ours =
            |key: &&mut Value| key.get("external_key_id").and_then(Value::as_str) == Some(EXTERNAL_KEY_ID);
        let key = keys.and_then(|keys| keys.iter_mut().find(is_ours)).and_then(Value::as_table_mut);
        key.ok_or_else(stale)?.insert("enabled".to_owned(), is_key_enabled.into());
        Ok(changed.to_string())
    }
}

fn store(configuration: &Table) -> Option<&Table> {
    let stores = configuration.get("stores")?.as_array()?;
    stores.iter().filter_map(Value::as_table).find(|store| is_ours(store))
}

fn store_mut(configuration: &mut Table) -> Option<&mut Table> {
    let stores = configuration.get_mut("stores")?.as_array_mut()?;
    stores.iter_mut().filter_map(Value::as_table_mut).find(|store| is_ours(store))
}

fn is_ours(store: &Table) -> bool {
    store.get("name").and_then(Value::as_str) == Some(STORE)
}

fn make(path: &Path) -> Result<(), Stop> {
    let script = root()?.join(SCRIPT);
    let status = Command::new(&script).arg(path).stdin(Stdio::null()).status();
    let status = status.map_err(|error| fault(&script, error))?;
    if status.success() { Ok(()) } else { Err(fault(&script, "failed")) }
}

/// The proxy's program beside this one, built in the same profile where cargo is at hand. That takes minutes the first
/// time, so cargo may say what it does.
pub(super) fn build_proxy() -> Result<PathBuf, Stop> {
    let this = std::env::current_exe().map_err(|error| Stop::Setup(error.to_string()))?;
    let folder = this.parent().unwrap_or(Path::new("."));
    let program = folder.join("xks-proxy");
    let is_release = folder.file_name().is_some_and(|name| name == "release");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or(OsString::from("cargo")));
    build.args(["build", "-p", "xks-proxy", "--bin", "xks-proxy"]).args(is_release.then_some("--release"));
    build.arg("--manifest-path").arg(root()?.join("Cargo.toml"));
    build.arg("--target-dir").arg(folder.parent().unwrap_or(folder));
    match build.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(program),
        Ok(_) => Err(Stop::Setup("cargo could not build xks-proxy".to_owned())),
        Err(_) if program.is_file() => Ok(program),
        Err(error) => {
            Err(Stop::Setup(format!("no cargo to build xks-proxy with: {error}; name it with --proxy")))
        }
    }
}

/// The repository: around the working folder, or around this program. Where it was built is not in it, so that a release
/// is the same wherever that was.
fn root() -> Result<PathBuf, Stop> {
    let here = std::env::current_dir().unwrap_or_default();
    let this = std::env::current_exe().unwrap_or_default();
    let mut around = here.ancestors().chain(this.ancestors());
    let root = around.find(|folder| folder.join(SCRIPT).is_file());
    root.map(Path::to_owned)
        .ok_or_else(|| Stop::Setup(format!("{SCRIPT} is not to be found; name its folder with --dir")))
}

fn fault(path: &Path, error: impl std::fmt::Display) -> Stop {
    Stop::Setup(format!("{}: {error}", path.display()))
}
