//! What is written from the source: docs/metrics.md, docs/configuration.md, and the alert rules as an object of Kubernetes.
//! `UPDATE_DOCUMENTS=1 cargo test -p xks-proxy --test documents generated` writes them anew.

use std::fmt::Write as _;
use std::path::Path;

use xks_proxy::config::{Kind, SETTINGS, Setting, Takeover};
use xks_proxy::metrics::{Row, TABLE, Values};

use super::{ROOT, read};

/// Compares the part of a document behind its marker with what it should be, or writes it.
fn expect(path: &str, generated: &str) {
    const MARKER: &str = "<!-- from here on this is written from the source: CONTRIBUTING.md says how -->\n";
    let document = read(path);
    let (by_hand, present) = document.split_once(MARKER).unwrap_or_else(|| panic!("{path} has no marker"));
    write_or_compare(path, present, generated, &format!("{by_hand}{MARKER}{generated}"));
}

fn write_or_compare(path: &str, present: &str, generated: &str, file: &str) {
    if std::env::var_os("UPDATE_DOCUMENTS").is_some() {
        std::fs::write(Path::new(ROOT).join(path), file).unwrap();
        return;
    }
    assert!(
        present == generated,
        "{path} is not what the source says: UPDATE_DOCUMENTS=1 cargo test -p xks-proxy --test documents generated"
    );
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn labels(row: &Row) -> String {
    let describe = |label: &xks_proxy::metrics::Label| match label.values {
        Values::Known(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
            format!("`{}`: {}", label.name, words.join(", "))
        }
        Values::Open(text) => format!("`{}`: {text}", label.name),
    };
    row.labels.iter().map(describe).collect::<Vec<_>>().join("; ")
}

#[test]
fn the_document_of_metrics_is_the_table() {
    let mut text =
        "\n| metric | type, unit | says | labels | KMS's CloudWatch metric |\n|---|---|---|---|---|\n"
            .to_owned();
    for row in TABLE {
        let (name, kind, unit, help) = (row.name, row.kind, row.unit, row.help);
        let cloudwatch = row.cloudwatch.map(|name| format!("`{name}`")).unwrap_or_default();
        writeln!(
            text,
            "| `{name}` | {kind}, {unit} | {} | {} | {cloudwatch} |",
            cell(help),
            cell(&labels(row))
        )
        .unwrap();
    }
    expect("docs/metrics.md", &text);
}

fn kind(setting: &Setting) -> String {
    match setting.kind {
        Kind::Number(0, u64::MAX) => "whole number".to_owned(),
        Kind::Number(from, to) => format!("{from} to {to}{}", unit(setting)),
        Kind::Flag => "`true` or `false`".to_owned(),
        Kind::Text(text) => text.to_owned(),
        Kind::Address => "address and port".to_owned(),
        Kind::Word(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Kind::Secret => "[secret](#secrets)".to_owned(),
        Kind::List(text) => format!("array of {text}"),
        Kind::Table(text) => text.to_owned(),
    }
}

/// The unit is in the name.
fn unit(setting: &Setting) -> &'static str {
    let units = [
        ("_ms", " ms"),
        ("_secs", " s"),
        ("_bytes", " bytes"),
        ("_percent", " %"),
        ("per_second", " a second"),
    ];
    units.iter().find(|(end, _)| setting.path.ends_with(end)).map_or("", |(_, unit)| unit)
}

const fn takeover(setting: &Setting) -> &'static str {
    match setting.takeover {
        Takeover::Request => "next request",
        Takeover::Connection => "next connection",
        Takeover::Login => "next login",
        Takeover::Once => "at once",
        Takeover::Never => "restart",
    }
}

fn line(setting: &Setting) -> String {
    let name = setting.path.rsplit('.').next().unwrap();
    let default = match setting.default {
        "" => String::new(),
        words if words == "required" || words.contains(' ') => words.to_owned(),
        value => format!("`{value}`"),
    };
    let (takes, when, help) = (cell(&kind(setting)), takeover(setting), cell(setting.help));
    format!("| `{name}` | {takes} | {default} | {when} | {help} |")
}

#[test]
fn the_document_of_the_configuration_is_the_list_of_settings() {
    let mut text = String::new();
    let is_table = |setting: &&Setting| matches!(setting.kind, Kind::Table("a table" | "an array of tables"));
    for table in SETTINGS.iter().filter(is_table) {
        let path = table.path.replace("[]", "");
        let is_array = table.kind == Kind::Table("an array of tables");
        let heading = if is_array { format!("[[{path}]]") } else { format!("[{path}]") };
        let must = if table.default == "required" { " It must be there." } else { "" };
        writeln!(text, "\n## `{heading}`\n\n{}{must}\n", table.help).unwrap();
        text.push_str("| setting | takes | default | change | |\n|---|---|---|---|---|\n");
        let holder = if is_array { format!("{}[]", table.path) } else { table.path.to_owned() };
        let is_here =
            |setting: &&Setting| setting.path.rsplit_once('.').is_some_and(|(parent, _)| parent == holder);
        for setting in SETTINGS.iter().filter(|setting| !is_table(setting)).filter(is_here) {
            writeln!(text, "{}", line(setting)).unwrap();
        }
    }
    expect("docs/configuration.md", &text);
}

const PROMETHEUS_RULE: &str = "deploy/kubernetes/components/alerts/prometheusrule.yaml";

/// What is before the rules.
const PROMETHEUS_RULE_HEAD: &str = "\
# Written from deploy/monitoring/rules.yml by the command of CONTRIBUTING.md: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: xks-proxy
  namespace: xks-proxy
  labels:
    app.kubernetes.io/name: xks-proxy
spec:
";

/// Kustomize reads no file outside of its folder, so that the rules are there twice.
#[test]
fn the_prometheus_rule_is_the_rules_of_deploy_monitoring() {
    let present = std::fs::read_to_string(Path::new(ROOT).join(PROMETHEUS_RULE)).unwrap_or_default();
    let mut generated = PROMETHEUS_RULE_HEAD.to_owned();
    for line in read("deploy/monitoring/rules.yml").lines() {
        let indent = if line.is_empty() { "" } else { "  " };
        writeln!(generated, "{indent}{line}").unwrap();
    }
    write_or_compare(PROMETHEUS_RULE, &present, &generated, &generated);
}

/// Whoever reads the example finds the same settings, and no other.
#[test]
fn the_example_explains_every_setting() {
    let example = read("deploy/xks-proxy.example.toml");
    for setting in SETTINGS {
        let name = setting.path.rsplit(['.']).next().unwrap();
        assert!(example.contains(name), "deploy/xks-proxy.example.toml says nothing of {}", setting.path);
    }
}
