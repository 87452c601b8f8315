//! `deploy/kubernetes`: what kustomize makes of it is what the API takes, and says the same as the configuration in it.

mod configuration;
mod manifests;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::ROOT;
use super::tools::{kubectl, python_environment, run, succeed};

/// What an operator may begin with.
const OVERLAYS: [&str; 3] = ["softhsm", "cloudhsm", "luna"];
/// The oldest version that README.md promises, and the newest whose schema is at hand.
const API_VERSIONS: [&str; 2] = ["1.30.0", "1.37.0"];

/// What kubectl would apply, as YAML.
fn render(folder: &Path) -> String {
    succeed(Command::new(kubectl()).arg("kustomize").arg(folder))
}

/// The same as JSON, each object valid.
fn objects(yaml: &str) -> Result<Vec<Value>, String> {
    let python = python_environment("requirements.txt", |_| {}).join("bin/python");
    let script = Path::new(ROOT).join("tests/deploy/objects.py");
    let json = run(Command::new(python).arg(script).args(API_VERSIONS), yaml)?;
    Ok(serde_json::from_str(&json).unwrap())
}

/// An overlay, rendered.
struct Rendered {
    name: String,
    objects: Vec<Value>,
}

impl Rendered {
    fn overlay(name: &str) -> Self {
        let folder = Path::new(ROOT).join("deploy/kubernetes/overlays").join(name);
        Self { name: name.to_owned(), objects: objects(&render(&folder)).unwrap() }
    }

    /// An overlay with one more component.
    fn with_component(overlay: &str, component: &str) -> Self {
        // Kustomize takes only relative paths, so that the folder must be inside the repository's.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let depth = folder.path().strip_prefix(ROOT).unwrap().components().count();
        let deploy = format!("{}deploy/kubernetes", "../".repeat(depth));
        let kustomization = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n\
             resources: [{deploy}/overlays/{overlay}]\ncomponents: [{deploy}/components/{component}]\n"
        );
        fs::write(folder.path().join("kustomization.yaml"), kustomization).unwrap();
        let name = format!("{overlay} with {component}");
        Self { name, objects: objects(&render(folder.path())).unwrap() }
    }

    fn every() -> Vec<Self> {
        let overlays = OVERLAYS.into_iter().map(Self::overlay);
        overlays.chain([Self::with_component("cloudhsm", "ephemeral")]).collect()
    }

    /// Objects of a kind.
    fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.objects.iter().filter(|object| object["kind"] == kind).collect()
    }

    /// The object of that kind and name.
    fn object(&self, kind: &str, name: &str) -> &Value {
        let found: Vec<_> =
            self.of_kind(kind).into_iter().filter(|object| object["metadata"]["name"] == name).collect();
        assert_eq!(found.len(), 1, "{}: {kind} {name}", self.name);
        found[0]
    }

    /// The StatefulSet or Deployment.
    fn workload(&self) -> &Value {
        let found = [self.of_kind("StatefulSet"), self.of_kind("Deployment")].concat();
        assert_eq!(found.len(), 1, "{}", self.name);
        found[0]
    }

    fn pod(&self) -> &Value {
        &self.workload()["spec"]["template"]["spec"]
    }

    /// The proxy's container.
    fn container(&self) -> &Value {
        list(&self.pod()["containers"]).iter().find(|container| container["name"] == "xks-proxy").unwrap()
    }

    /// The configuration that the proxy is given.
    fn configuration(&self) -> toml::Table {
        self.configuration_text().parse().unwrap()
    }

    fn configuration_text(&self) -> &str {
        self.object("ConfigMap", "xks-proxy-config")["data"]["xks-proxy.toml"].as_str().unwrap()
    }

    /// An annotation of the Service for KMS that speaks to the load balancer controller.
    fn annotation(&self, name: &str) -> Option<&str> {
        let name = format!("service.beta.kubernetes.io/aws-load-balancer-{name}");
        self.object("Service", "xks-proxy")["metadata"]["annotations"][&name].as_str()
    }
}

/// An array's elements; none where there is no array.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
