//! deploy/monitoring: what alerts and dashboard name exists, every alert is tested and has its section of the runbook.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use xks_harness::document::blocks_run_by;
use xks_proxy::metrics::TABLE;

use super::markdown::{anchor, headings};
use super::{ROOT, read};

const RULES: &str = "deploy/monitoring/rules.yml";
const TESTS: &str = "deploy/monitoring/rules.test.yml";
const DASHBOARD: &str = "deploy/monitoring/dashboard.json";

/// The names of metrics in an expression: words of their form that begin as ours do.
fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("xks_") || word.starts_with("process_")).map(str::to_owned).collect()
}

/// Whether the table has the metric, or it is a series of one of its histograms.
fn exists(name: &str) -> bool {
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    TABLE.iter().any(|row| row.name == name || (row.kind == "histogram" && Some(row.name) == of_histogram))
}

/// The alerts: name and the lines of each.
fn alerts() -> Vec<(String, String)> {
    let rules = read(RULES);
    let parts = rules.split("- alert: ").skip(1).map(str::to_owned);
    parts.map(|part| (part.lines().next().unwrap().to_owned(), part)).collect()
}

#[test]
fn every_metric_that_rules_and_dashboard_name_exists() {
    for file in [RULES, TESTS, DASHBOARD, "deploy/monitoring/README.md", "docs/runbook.md"] {
        let text = read(file);
        // The dashboard's name is no metric.
        let unknown: Vec<_> = metric_names(&text).into_iter().filter(|name| !exists(name)).collect();
        assert!(unknown.is_empty(), "{file} names metrics that do not exist: {unknown:?}");
    }
}

#[test]
fn every_label_word_that_rules_match_is_one_that_is_counted() {
    let known: BTreeSet<_> = TABLE
        .iter()
        .flat_map(|row| row.labels)
        .filter_map(|label| match label.values {
            xks_proxy::metrics::Values::Known(words) => Some(words.iter().map(|word| (label.name, *word))),
            xks_proxy::metrics::Values::Open(_) => None,
        })
        .flatten()
        .collect();
    for (alert, text) in alerts() {
        for label in ["reason", "kind", "meaning", "outcome", "operation"] {
            for operator in ["=\"", "=~\""] {
                for rest in text.split(&format!("{label}{operator}")).skip(1) {
                    for word in rest.split('"').next().unwrap().split('|') {
                        assert!(known.contains(&(label, word)), "{alert}: {label}={word}");
                    }
                }
            }
        }
    }
}

/// What comes between the last sample of one window and the first of the next is in neither.
#[test]
fn rules_that_look_at_a_minute_are_evaluated_as_often_as_proxies_are_scraped() {
    let rules = read(RULES);
    let groups: Vec<_> = rules.split("\n  - name: ").skip(1).filter(|group| group.contains("[1m]")).collect();
    assert!(!groups.is_empty());
    for group in groups {
        assert!(group.contains("\n    interval: 15s\n"), "{group}");
    }
}

#[test]
fn every_alert_is_shown_to_fire_and_not_to_fire() {
    let tests = read(TESTS);
    let cases: Vec<_> = tests.split("alertname: ").skip(1).collect();
    let has = |alert: &str, is_quiet: bool| {
        cases.iter().any(|case| {
            case.lines().next() == Some(alert)
                && case.lines().nth(1).unwrap().ends_with("exp_alerts: []") == is_quiet
        })
    };
    for (alert, _) in alerts() {
        assert!(has(&alert, false), "{alert} is never seen to fire");
        assert!(has(&alert, true), "{alert} is never seen not to fire");
    }
    assert!(alerts().len() > 30, "the rules are found");
}

#[test]
fn every_alert_leads_to_its_section_of_the_runbook() {
    let anchors: BTreeSet<_> =
        headings(&read("docs/runbook.md")).iter().map(|(_, text)| anchor(text)).collect();
    for (alert, text) in alerts() {
        let url = text.lines().find_map(|line| line.trim().strip_prefix("runbook_url: docs/runbook.md#"));
        let url = url.unwrap_or_else(|| panic!("{alert} has no runbook_url"));
        assert_eq!(url, alert.to_lowercase(), "{alert}");
        assert!(anchors.contains(url), "docs/runbook.md has no section {alert}");
        let severity = text.lines().find_map(|line| line.trim().strip_prefix("severity: "));
        assert!(matches!(severity, Some("critical" | "warning" | "info")), "{alert}: {severity:?}");
    }
}

#[test]
fn the_runbook_has_no_section_of_an_alert_that_is_not() {
    let alerts: BTreeSet<_> = alerts().into_iter().map(|(name, _)| name).collect();
    for (_, heading) in headings(&read("docs/runbook.md")) {
        let is_alert = heading.starts_with("XksProxy") && heading.chars().all(char::is_alphanumeric);
        assert!(!is_alert || alerts.contains(&heading), "{heading}");
    }
}

/// KMS must not call a restart an outage: lame-duck time and start go by before anybody is woken.
#[test]
fn a_proxy_that_is_restarted_wakes_nobody() {
    let (_, text) = alerts().into_iter().find(|(name, _)| name == "XksProxyNotReady").unwrap();
    assert!(text.contains("for: 5m"), "{text}");
}

/// The commands of deploy/monitoring/README.md, as they stand there.
#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() {
    let mut output = String::new();
    for commands in blocks_run_by("tests/documents/monitoring.rs", ("deploy/monitoring/README.md", 2)) {
        let run = Command::new("bash").args(["-euc", &commands]).current_dir(ROOT).output().unwrap();
        let text = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{commands}{text}");
        output.push_str(&text);
    }
    assert!(output.contains(&format!("SUCCESS: {} rules found", alerts().len())), "{output}");
    assert!(output.contains("runbook_url: https://wiki.example.com/xks-proxy/docs/runbook.md#"), "{output}");
    assert!(!output.contains("runbook_url: docs/"), "{output}");
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let rows: Vec<_> =
        panels.iter().filter(|panel| panel["type"] == "row").map(|row| row["title"].clone()).collect();
    assert_eq!(rows, ["KMS's view", "HSM tokens", "Capacity", "Security", "Process"]);
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            assert!(!metric_names(target["expr"].as_str().unwrap()).is_empty(), "{panel}");
        }
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{panel}");
    }
    // What can be seen is seen somewhere, but for what only a query in an hour of need wants.
    let shown = metric_names(&read(DASHBOARD)).into_iter().chain(metric_names(&read(RULES)));
    let shown: BTreeSet<_> = shown.collect();
    let for_queries = ["xks_audit_head", "xks_audit_records_total", "xks_config_loaded_timestamp_seconds"];
    let is_shown = |name: &str| {
        for_queries.contains(&name)
            || shown.iter().any(|shown| {
                shown == name
                    || shown
                        .strip_prefix(name)
                        .is_some_and(|rest| ["_bucket", "_sum", "_count"].contains(&rest))
            })
    };
    let hidden: Vec<_> = TABLE.iter().map(|row| row.name).filter(|name| !is_shown(name)).collect();
    assert!(hidden.is_empty(), "neither alert nor panel shows {hidden:?}");
}

/// Every expression of the dashboard is PromQL: promtool reads them as rules.
#[test]
fn promtool_accepts_the_expressions_of_the_dashboard() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels =
        dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
    let expressions: Vec<_> = panels.flatten().map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(expressions.len() > 40, "{}", expressions.len());
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (index, expression) in expressions.iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "5m");
        rules.push_str(&format!("  - record: x{index}\n    expr: {}\n", Value::from(expression)));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yml");
    std::fs::write(&file, rules).unwrap();
    let run = Command::new("promtool").args(["check", "rules"]).arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{text}");
}
