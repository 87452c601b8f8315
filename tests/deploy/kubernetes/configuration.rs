//! The configurations of the overlays, laid out as a pod sees them and given to the proxy.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;
use xks_harness::SoftHsm;
use xks_harness::binary::{profile_folder, program};
use xks_harness::pki::TestCa;
use xks_harness::request::bytes_of;
use xks_harness::token::{LABEL, PIN};

use super::super::ROOT;
use super::super::tools::{kubectl, run, succeed};
use super::{Rendered, list, objects};

/// The folders of a pod, each with the name of its copy.
const FOLDERS: [(&str, &str); 4] = [
    ("/etc/xks-proxy", "etc"),
    ("/var/lib/xks-proxy", "state"),
    ("/var/log/xks-proxy", "audit"),
    ("/var/lib/softhsm", "softhsm"),
];

/// Secrets by name, their values by key.
type Secrets = HashMap<String, HashMap<String, Vec<u8>>>;

/// A pod's folders, on this machine.
struct Laid {
    folder: TempDir,
}

impl Laid {
    /// The volume `config` of the pod, with every path led into the folder and every port free to choose.
    fn out(rendered: &Rendered, secrets: &Secrets) -> Self {
        let laid = Self { folder: tempfile::tempdir().unwrap() };
        for (_, copy) in FOLDERS {
            fs::create_dir(laid.path(copy)).unwrap();
        }
        fs::create_dir(laid.path("etc/tls")).unwrap();
        // As the proxy wants the folders of its state and its audit log.
        for copy in ["state", "audit"] {
            fs::set_permissions(laid.path(copy), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let volumes = list(&rendered.pod()["volumes"]);
        let config = volumes.iter().find(|volume| volume["name"] == "config").unwrap();
        for source in list(&config["projected"]["sources"]) {
            for (key, content, path) in files(rendered, secrets, source) {
                assert!(!laid.path("etc").join(&path).exists(), "{key} is there twice");
                fs::write(laid.path("etc").join(path), content).unwrap();
            }
        }
        for file in ["etc/xks-proxy.toml", "etc/softhsm2.conf"] {
            laid.lead_paths(Path::new(file));
        }
        laid
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn lead_paths(&self, file: &Path) {
        let file = self.folder.path().join(file);
        let Ok(mut text) = fs::read_to_string(&file) else { return };
        for (folder, copy) in FOLDERS {
            text = text.replace(folder, self.path(copy).to_str().unwrap());
        }
        for port in [8443, 8080, 9464] {
            text = text.replace(&format!("0.0.0.0:{port}"), "127.0.0.1:0");
        }
        fs::write(file, text).unwrap();
    }

    /// What `xks-proxy check` says, and whether all is well.
    fn check(&self) -> Result<String, String> {
        run(
            Command::new(program("xks-proxy"))
                .args(["check", "--config"])
                .arg(self.path("etc/xks-proxy.toml")),
            "",
        )
    }

    /// The token is the one given, whatever the configuration says of its module.
    fn with_token(&self, token: &SoftHsm) {
        let file = self.path("etc/xks-proxy.toml");
        let mut configuration: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        let tokens = configuration["tokens"].as_array_mut().unwrap();
        for settings in tokens.iter_mut().map(|settings| settings.as_table_mut().unwrap()) {
            for vendors in ["profile", "user_type"] {
                settings.remove(vendors);
            }
            settings.insert("module".to_owned(), SoftHsm::module().to_str().unwrap().into());
            settings.insert("label".to_owned(), LABEL.into());
            let variables = token.environment().into_iter();
            let variables: toml::Table =
                variables.map(|(name, value)| (name.to_owned(), value.to_str().unwrap().into())).collect();
            settings.insert("environment".to_owned(), variables.into());
        }
        fs::write(file, toml::to_string(&configuration).unwrap()).unwrap();
    }
}

/// Key, content and path of each file that a source of the volume brings.
fn files(rendered: &Rendered, secrets: &Secrets, source: &Value) -> Vec<(String, Vec<u8>, String)> {
    let (kind, reference) = source.as_object().unwrap().iter().next().unwrap();
    let name = reference["name"].as_str().unwrap();
    let data: HashMap<String, Vec<u8>> = match kind.as_str() {
        "configMap" => {
            let data = rendered.object("ConfigMap", name)["data"].as_object().unwrap();
            let text = |value: &Value| value.as_str().unwrap().as_bytes().to_vec();
            data.iter().map(|(key, value)| (key.clone(), text(value))).collect()
        }
        "secret" => secrets[name].clone(),
        other => panic!("{other}"),
    };
    let items = list(&reference["items"]);
    if items.is_empty() {
        return data.into_iter().map(|(key, content)| (key.clone(), content, key)).collect();
    }
    let file = |item: &Value| {
        let key = item["key"].as_str().unwrap();
        (key.to_owned(), data[key].clone(), item["path"].as_str().unwrap().to_owned())
    };
    items.iter().map(file).collect()
}

/// The Secrets of the try-out, as its script makes them.
fn secrets_of_the_script() -> Secrets {
    let script = Path::new(ROOT).join("deploy/kubernetes/overlays/softhsm/make-secrets.sh");
    let folder = tempfile::tempdir().unwrap();
    let program = succeed(Command::new("sh").args(["-c", "command -v \"$0\""]).arg(kubectl()));
    symlink(program.trim(), folder.path().join("kubectl")).unwrap();
    let yaml = succeed(Command::new(script).env("PATH", with_folder(folder.path())));
    let by_key = |object: &Value| {
        let data = object["data"].as_object().unwrap();
        data.iter().map(|(key, value)| (key.clone(), bytes_of(value))).collect()
    };
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    objects(&yaml).unwrap().iter().map(|object| (name(object), by_key(object))).collect()
}

/// PATH with one more folder before all others.
fn with_folder(folder: &Path) -> String {
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

/// The Secrets that README.md tells the operator to make.
fn secrets_of_an_operator() -> Secrets {
    let next_year = SystemTime::now() + Duration::from_secs(365 * 86_400);
    let certificate = TestCa::new("authority").issue_server("xks.example.com", "xks.example.com", next_year);
    let secret = |files: &[(&str, &str)]| {
        let file = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
        files.iter().map(file).collect::<HashMap<_, _>>()
    };
    let tls = secret(&[("tls.crt", &certificate.certificate), ("tls.key", &certificate.key)]);
    let (of_store, of_audit) = ("s".repeat(43), "k".repeat(43));
    let others = secret(&[("pin", PIN), ("payments.secret", &of_store), ("audit.key", &of_audit)]);
    [("xks-proxy-tls".to_owned(), tls), ("xks-proxy-secrets".to_owned(), others)].into()
}

/// The whole way of the try-out but for the cluster: Secrets, token, keys, a proxy that finds no fault.
fn try_out() -> Laid {
    let laid = Laid::out(&Rendered::overlay("softhsm"), &secrets_of_the_script());
    let module = SoftHsm::module();
    let text = fs::read_to_string(laid.path("etc/xks-proxy.toml")).unwrap();
    // Other distributions have it elsewhere.
    let text = text.replace("/usr/lib/softhsm/libsofthsm2.so", module.to_str().unwrap());
    fs::write(laid.path("etc/xks-proxy.toml"), text).unwrap();
    let mut script = Command::new("sh");
    script.arg(laid.path("etc/make-token.sh")).arg(laid.path("etc")).arg(laid.path("softhsm"));
    script.env("PATH", with_folder(&profile_folder()));
    succeed(&mut script);
    // A pod that is started again finds its token.
    let again = succeed(&mut script);
    assert_eq!(again, "");
    laid
}

#[test]
fn the_try_out_works_with_the_secrets_and_the_token_of_its_scripts() {
    let said = try_out().check().unwrap();
    assert!(said.contains("\n0 faults"), "{said}");
}

#[test]
fn what_is_not_the_vendors_is_right_in_the_overlays_for_hardware() {
    let token = SoftHsm::with_keys();
    token.generate("ledger", &["--usage", "encrypt,decrypt"]);
    for overlay in ["cloudhsm", "luna"] {
        let laid = Laid::out(&Rendered::overlay(overlay), &secrets_of_an_operator());
        // All that the file says can be read; only the module is not here.
        let refusal = laid.check().unwrap_err();
        assert!(refusal.contains("is well-formed"), "{refusal}");
        let faults: Vec<_> = refusal.lines().filter(|line| line.starts_with("FAULT")).collect();
        assert!(!faults.is_empty(), "{refusal}");
        for fault in faults {
            assert!(fault.contains("cannot load the PKCS#11 module"), "{fault}");
        }
        laid.with_token(&token);
        let said = laid.check().unwrap_or_else(|refusal| panic!("{overlay}: {refusal}"));
        assert!(said.contains("\n0 faults"), "{overlay}: {said}");
    }
}

/// What stands in the mounted configuration of the client is where the pod mounts it.
#[test]
fn the_clients_files_are_mounted_where_the_module_looks() {
    let mount = |rendered: &Rendered, name: &str| {
        let mounts = list(&rendered.container()["volumeMounts"]);
        let mount = mounts.iter().find(|mount| mount["name"] == name).unwrap();
        mount["mountPath"].as_str().unwrap().to_owned()
    };
    let luna = Rendered::overlay("luna");
    let token = &luna.configuration()["tokens"][0];
    let variable = token["environment"]["ChrystokiConfigurationPath"].as_str().unwrap().to_owned();
    assert_eq!(mount(&luna, "hsm-client"), variable);
    let cloudhsm = Rendered::overlay("cloudhsm");
    assert_eq!(mount(&cloudhsm, "hsm-client"), "/opt/cloudhsm/etc");
    assert_eq!(mount(&cloudhsm, "hsm-client-run"), "/opt/cloudhsm/run");
}

/// A proxy that ends with the test.
struct Serving(Child);

impl Serving {
    /// Returns once it is connected to its token.
    fn start(laid: &Laid) -> Self {
        let mut command = Command::new(program("xks-proxy"));
        command.args(["serve", "--config"]).arg(laid.path("etc/xks-proxy.toml"));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("connected to the token")));
        // Nobody reads on: a full pipe costs log lines, and nothing else.
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command of the proxy's that waits for its configuration, from a pipe.
struct Waiting {
    command: Child,
    pipe: PathBuf,
}

impl Waiting {
    fn start(laid: &Laid) -> Self {
        let pipe = laid.path("pipe");
        succeed(Command::new("mkfifo").arg(&pipe));
        let command =
            Command::new(program("xks-proxy")).args(["check", "--config"]).arg(&pipe).spawn().unwrap();
        Self { command, pipe }
    }

    /// How it ends once it is given a configuration that is none.
    fn end(mut self) -> ExitStatus {
        // For both, so that it can be opened whether or not somebody still reads.
        let mut pipe = fs::File::options().read(true).write(true).open(&self.pipe).unwrap();
        pipe.write_all(b"nonsense").unwrap();
        drop(pipe);
        self.command.wait().unwrap()
    }
}

#[test]
fn the_rotation_beside_the_proxy_loses_no_record_and_ends_no_command() {
    let laid = try_out();
    let serving = Serving::start(&laid);
    let waiting = Waiting::start(&laid);
    // The pod's processes: here, of all those of this machine, the one proxy, and what somebody calls in the same container.
    let processes = laid.path("processes");
    fs::create_dir(&processes).unwrap();
    for process in [serving.0.id().to_string(), waiting.command.id().to_string()] {
        symlink(Path::new("/proc").join(&process), processes.join(&process)).unwrap();
    }
    let log = laid.path("audit/audit.log");
    let rotate = |max_bytes: &str| {
        let script = Path::new(ROOT).join("deploy/kubernetes/components/audit-rotation/rotate.sh");
        let mut command = Command::new("sh");
        command.arg(script).env("AUDIT_LOG", &log).env("PROC", &processes);
        command.env("MAX_BYTES", max_bytes).env("INTERVAL_SECS", "0");
        succeed(&mut command);
    };
    let files = || {
        let names = fs::read_dir(laid.path("audit")).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    rotate("1000000");
    assert_eq!(files(), ["audit.log", "audit.log.head"], "it is not large yet");
    rotate("1");
    let after = files();
    assert_eq!(after.len(), 3, "{after:?}");
    let compressed = after.iter().find(|name| name.ends_with("Z.gz")).unwrap();
    succeed(Command::new("gunzip").arg(laid.path("audit").join(compressed)));
    let rotated = laid.path("audit").join(compressed.trim_end_matches(".gz"));
    let mut verify = Command::new(program("xks-proxy"));
    let key = laid.path("etc/audit.key");
    verify.args(["audit", "verify", "--hmac-key-file"]).arg(key).arg(&log).arg(rotated);
    succeed(&mut verify);
    assert_eq!(waiting.end().code(), Some(2), "the command lives on, and ends by itself");
}
