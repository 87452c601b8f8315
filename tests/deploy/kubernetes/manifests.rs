//! What the manifests say, held against each other and against the configuration that they bring.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::super::ROOT;
use super::super::tools::succeed;
use super::{OVERLAYS, Rendered, list, objects, render};

/// From the end of the drain to the end of the process: the tokens' threads end, and the audit log.
const MARGIN_SECS: i64 = 20;
/// How long a target was seen to get new connections after it was called unhealthy
/// (<https://github.com/aws/containers-roadmap/issues/470>), and after it was to be deregistered, which AWS's support puts at 180 s and
/// more (<https://github.com/kubernetes-sigs/aws-load-balancer-controller/issues/1834>).
const STILL_SENT_SECS: i64 = 40;
const DEREGISTERED_SECS: i64 = 180;
/// What a helper may have unless the configuration says otherwise, and what the proxy itself is left.
const DEFAULT_HELPER_MIB: i64 = 1024;
const OWN_MIB: i64 = 128;

fn port_of(listen: &toml::Value) -> i64 {
    listen.as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()
}

fn number(text: Option<&str>) -> i64 {
    text.unwrap().parse().unwrap()
}

fn seconds(configuration: &toml::Table, key: &str) -> i64 {
    configuration["server"][key].as_integer().unwrap()
}

/// Whether every label that `selector` wants is there.
fn matches(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().expect("a selector that names labels");
    !selector.is_empty() && selector.iter().all(|(name, value)| labels[name] == *value)
}

#[test]
fn what_the_api_does_not_know_is_noticed() {
    let yaml = render(&Path::new(ROOT).join("deploy/kubernetes/overlays/luna"));
    for (right, wrong) in [("readinessProbe:", "readynessProbe:"), ("maxSkew: 2", "maxSkew: two")] {
        assert!(yaml.contains(right));
        let refusal = objects(&yaml.replace(right, wrong)).unwrap_err();
        assert!(refusal.contains("Kubernetes 1.37.0: StatefulSet xks-proxy"), "{refusal}");
    }
}

#[test]
fn ports_and_probes_are_those_of_the_configuration() {
    for rendered in Rendered::every() {
        let configuration = rendered.configuration();
        let container = rendered.container();
        let mut expected = json!({ "kms": null, "ping": null, "admin": null });
        expected["kms"] = port_of(&configuration["server"]["listen"]).into();
        expected["ping"] = port_of(&configuration["ping"]["listen"]).into();
        expected["admin"] = port_of(&configuration["admin"]["listen"]).into();
        let mut ports = json!({});
        for port in list(&container["ports"]) {
            ports[port["name"].as_str().unwrap()] = port["containerPort"].clone();
        }
        assert_eq!(ports, expected, "{}", rendered.name);
        // Every target of a load balancer that is deregistered at once would leave none to fail open: an outage of the HSM is not to
        // do that.
        let is_balanced = rendered.annotation("healthcheck-path").is_some();
        let readiness = if is_balanced { "/livez" } else { "/readyz" };
        for (probe, path) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", readiness)]
        {
            assert_eq!(container[probe]["httpGet"], json!({ "path": path, "port": "admin" }));
        }
        let service = rendered.object("Service", "xks-proxy");
        assert_eq!(service["spec"]["ports"], json!([{ "name": "kms", "port": 443, "targetPort": "kms" }]));
        assert_eq!(container["args"], json!(["serve", "--config", "/etc/xks-proxy/xks-proxy.toml"]));
    }
}

#[test]
fn the_load_balancer_passes_tls_through_and_asks_the_plain_listener() {
    for rendered in Rendered::every().into_iter().filter(|rendered| rendered.name != "softhsm") {
        let configuration = rendered.configuration();
        let ping = port_of(&configuration["ping"]["listen"]);
        let balancer = &rendered.object("Service", "xks-proxy")["spec"];
        assert_eq!(balancer["loadBalancerClass"], "service.k8s.aws/nlb");
        assert_eq!(rendered.annotation("nlb-target-type"), Some("ip"));
        assert_eq!(rendered.annotation("scheme"), Some("internal"));
        for of_tls in ["ssl-cert", "ssl-ports", "backend-protocol"] {
            assert_eq!(rendered.annotation(of_tls), None, "TLS must end in the proxy");
        }
        assert_eq!(number(rendered.annotation("healthcheck-port")), ping);
        assert_eq!(rendered.annotation("healthcheck-protocol"), Some("http"));
        assert_eq!(rendered.annotation("healthcheck-path"), Some("/ping"));
        let attributes: BTreeSet<_> = rendered.annotation("attributes").unwrap().split(',').collect();
        let expected = ["deletion_protection.enabled=true", "load_balancing.cross_zone.enabled=true"];
        assert_eq!(attributes, BTreeSet::from(expected));
    }
}

/// The three places that say which addresses the load balancer has.
#[test]
fn who_must_send_a_proxy_header_is_who_may_connect() {
    for rendered in Rendered::every() {
        let configuration = rendered.configuration();
        let trusted = configuration["server"].get("proxy_protocol_from");
        let trusted: BTreeSet<_> = trusted
            .and_then(toml::Value::as_array)
            .into_iter()
            .flatten()
            .map(|network| network.as_str().unwrap().to_owned())
            .collect();
        let policy = rendered.object("NetworkPolicy", "xks-proxy");
        let rule = list(&policy["spec"]["ingress"])
            .iter()
            .find(|rule| list(&rule["ports"]).iter().any(|port| port["port"] == "kms"));
        let rule = rule.unwrap();
        assert!(list(&rule["ports"]).iter().any(|port| port["port"] == "ping"), "health checks get through");
        let admitted: BTreeSet<_> = list(&rule["from"])
            .iter()
            .filter_map(|from| from["ipBlock"]["cidr"].as_str().map(ToOwned::to_owned))
            .collect();
        assert_eq!(trusted, admitted, "{}", rendered.name);
        let attributes = rendered.annotation("target-group-attributes").unwrap_or_default();
        let sends = attributes.split(',').any(|attribute| attribute == "proxy_protocol_v2.enabled=true");
        assert_eq!(sends, !trusted.is_empty(), "{}", rendered.name);
        // A subnet that neither of them knows would be cut off.
        let subnets = rendered.annotation("subnets").map_or(0, |subnets| subnets.split(',').count());
        assert_eq!(subnets, trusted.len(), "{}", rendered.name);
    }
}

#[test]
fn a_pod_that_goes_serves_until_nobody_is_sent_to_it() {
    for rendered in Rendered::every() {
        let configuration = rendered.configuration();
        let lame_duck = seconds(&configuration, "lame_duck_secs");
        let drain = seconds(&configuration, "drain_secs");
        let grace = rendered.pod()["terminationGracePeriodSeconds"].as_i64().unwrap();
        assert!(grace >= lame_duck + drain + MARGIN_SECS, "{}: {grace} s", rendered.name);
        if rendered.annotation("healthcheck-interval").is_none() {
            continue;
        }
        let of_check = |name: &str| number(rendered.annotation(&format!("healthcheck-{name}")));
        let noticed = of_check("interval") * of_check("unhealthy-threshold") + of_check("timeout");
        assert!(lame_duck >= noticed + STILL_SENT_SECS, "{}: noticed after {noticed} s", rendered.name);
        assert!(of_check("timeout") < of_check("interval"));
        assert!(lame_duck >= DEREGISTERED_SECS, "{}: {lame_duck} s", rendered.name);
        let attributes = rendered.annotation("target-group-attributes").unwrap();
        let delay = attributes.split("deregistration_delay.timeout_seconds=").nth(1);
        assert!(number(delay) >= lame_duck, "{}: no connection is cut off before", rendered.name);
        // The alert on replicas that are not ready waits for longer than this.
        assert!(grace < alert_secs("XksProxyNotReady"), "{}: {grace} s", rendered.name);
    }
}

/// How long an alert waits before it fires.
fn alert_secs(name: &str) -> i64 {
    let rules = std::fs::read_to_string(Path::new(ROOT).join("deploy/monitoring/rules.yml")).unwrap();
    let alert = rules.split(&format!("- alert: {name}\n")).nth(1).unwrap();
    let minutes = alert.lines().find_map(|line| line.trim().strip_prefix("for: ")?.strip_suffix('m'));
    60 * number(minutes)
}

/// A helper whose module leaks is replaced by the proxy before the kernel ends the whole container.
#[test]
fn what_helpers_may_have_fits_into_the_containers_memory() {
    for rendered in Rendered::every() {
        let limit = rendered.container()["resources"]["limits"]["memory"].as_str().unwrap();
        let limit_mib = match limit.strip_suffix("Gi") {
            Some(gib) => number(Some(gib)) * 1024,
            None => number(limit.strip_suffix("Mi")),
        };
        let configuration = rendered.configuration();
        let tokens = configuration["tokens"].as_array().unwrap();
        let is_isolated =
            |token: &&toml::Value| token.get("isolation").is_some_and(|is| is.as_str() == Some("process"));
        let bound = |token: &toml::Value| {
            token.get("helper_memory_mib").map_or(DEFAULT_HELPER_MIB, |mib| mib.as_integer().unwrap())
        };
        let helpers: i64 = tokens.iter().filter(is_isolated).map(bound).sum();
        let name = &rendered.name;
        assert!(helpers + OWN_MIB <= limit_mib, "{name}: helpers {helpers} MiB of {limit_mib} MiB");
    }
}

#[test]
fn the_number_of_replicas_is_that_of_the_configuration() {
    for rendered in Rendered::every() {
        let configuration = rendered.configuration();
        let replicas = rendered.workload()["spec"]["replicas"].as_i64().unwrap();
        let stated = |table: &str, key: &str| {
            let value = configuration.get(table).and_then(|table| table.get(key));
            value.map_or(1, |value| value.as_integer().unwrap())
        };
        assert_eq!(stated("server", "fleet_size"), replicas, "{}", rendered.name);
        assert_eq!(stated("state", "iv_budget_instances"), replicas, "{}", rendered.name);
    }
}

#[test]
fn replicas_are_spread_over_zones_and_nodes_and_go_one_by_one() {
    for rendered in Rendered::every() {
        let labels = &rendered.workload()["spec"]["template"]["metadata"]["labels"];
        let budget = &rendered.object("PodDisruptionBudget", "xks-proxy")["spec"];
        assert_eq!(budget["maxUnavailable"], 1);
        assert!(matches(&budget["selector"]["matchLabels"], labels));
        if rendered.name == "softhsm" {
            continue;
        }
        let affinity = &rendered.pod()["affinity"]["podAntiAffinity"];
        let term = &affinity["requiredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(term["topologyKey"], "kubernetes.io/hostname");
        assert!(matches(&term["labelSelector"]["matchLabels"], labels));
        let spread = &rendered.pod()["topologySpreadConstraints"][0];
        assert_eq!(spread["topologyKey"], "topology.kubernetes.io/zone");
        // A domain that is missing counts as one with none, so that a zone that is left alone may have so many as the skew is.
        assert_eq!((&spread["minDomains"], &spread["maxSkew"]), (&json!(2), &json!(2)));
        assert_eq!(spread["whenUnsatisfiable"], "DoNotSchedule");
        assert!(matches(&spread["labelSelector"]["matchLabels"], labels));
        let wish = &rendered.pod()["topologySpreadConstraints"][1];
        assert_eq!((&wish["maxSkew"], &wish["whenUnsatisfiable"]), (&json!(1), &json!("ScheduleAnyway")));
        assert_eq!(wish["topologyKey"], spread["topologyKey"]);
        assert!(matches(&wish["labelSelector"]["matchLabels"], labels));
        assert!(rendered.workload()["spec"]["replicas"].as_i64().unwrap() >= 4);
    }
}

#[test]
fn selectors_find_what_they_are_for() {
    for rendered in Rendered::every() {
        let labels = &rendered.workload()["spec"]["template"]["metadata"]["labels"];
        for service in rendered.of_kind("Service") {
            assert!(matches(&service["spec"]["selector"], labels), "{service}");
        }
        for policy in rendered.of_kind("NetworkPolicy") {
            let selector = &policy["spec"]["podSelector"]["matchLabels"];
            assert!(matches(selector, labels), "{policy}");
        }
        for monitor in rendered.of_kind("ServiceMonitor") {
            let spec = &monitor["spec"];
            let selected: Vec<_> = rendered
                .of_kind("Service")
                .into_iter()
                .filter(|service| matches(&spec["selector"]["matchLabels"], &service["metadata"]["labels"]))
                .collect();
            assert_eq!(selected.len(), 1, "each replica is scraped once");
            assert_eq!(selected[0]["spec"]["clusterIP"], "None");
            assert_eq!(selected[0]["spec"]["ports"][0]["name"], spec["endpoints"][0]["port"]);
            let job = spec["jobLabel"].as_str().unwrap();
            assert_eq!(selected[0]["metadata"]["labels"][job], "xks-proxy");
        }
        if let Some(name) = rendered.workload()["spec"]["serviceName"].as_str() {
            rendered.object("Service", name);
        }
    }
}

/// A custom resource, whose schema is not at hand: the rules in it are what Prometheus takes, and its own fields are these.
#[test]
fn the_prometheus_rule_holds_rules_that_prometheus_takes() {
    let rendered = Rendered::with_component("cloudhsm", "alerts");
    let rule = rendered.object("PrometheusRule", "xks-proxy");
    assert_eq!(rule["apiVersion"], "monitoring.coreos.com/v1");
    assert_eq!(rule["metadata"]["namespace"], "xks-proxy");
    let fields: Vec<_> = rule["spec"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["groups"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rule["spec"].to_string()).unwrap();
    let said = succeed(Command::new("promtool").args(["check", "rules"]).arg(file.path()));
    let alerts = list(&rule["spec"]["groups"]).iter().flat_map(|group| list(&group["rules"])).count();
    assert!(said.contains(&format!("SUCCESS: {alerts} rules found")), "{said}");
    assert!(alerts > 30, "{alerts}");
    // The alerts select by the job that the ServiceMonitor makes.
    assert_eq!(rendered.of_kind("ServiceMonitor").len(), 1);
}

/// The rules of the Pod Security Standard "restricted" that the namespace enforces, and some of our own.
#[test]
fn pods_may_do_nothing_that_they_need_not() {
    for rendered in Rendered::every() {
        let pod = rendered.pod();
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["automountServiceAccountToken"], false);
        for host in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[host].is_null());
        }
        for container in list(&pod["containers"]).iter().chain(list(&pod["initContainers"])) {
            let name = format!("{}: {}", rendered.name, container["name"]);
            let expected = json!({
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            });
            assert_eq!(container["securityContext"], expected, "{name}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            assert!(container["resources"]["limits"]["cpu"].is_null(), "{name} would be throttled");
        }
        const ALLOWED: [&str; 5] = ["configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"];
        for volume in list(&pod["volumes"]) {
            let kind = volume.as_object().unwrap().keys().find(|key| *key != "name").unwrap();
            assert!(ALLOWED.contains(&kind.as_str()), "{}: {kind}", rendered.name);
        }
        let namespace = rendered.object("Namespace", "xks-proxy");
        assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    }
}

/// What a replica alone has is on a volume of its own.
#[test]
fn counts_and_audit_log_outlive_a_pod() {
    for name in OVERLAYS {
        let rendered = Rendered::overlay(name);
        let configuration = rendered.configuration();
        let audit = configuration["audit"]["path"].as_str().unwrap();
        let folders = [
            ("state", configuration["state"]["dir"].as_str().unwrap()),
            ("audit", audit.rsplit_once('/').unwrap().0),
        ];
        let claims = list(&rendered.workload()["spec"]["volumeClaimTemplates"]);
        for (volume, folder) in folders {
            assert!(claims.iter().any(|claim| claim["metadata"]["name"] == volume), "{name}: {volume}");
            let mount = json!({ "name": volume, "mountPath": folder });
            assert!(list(&rendered.container()["volumeMounts"]).contains(&mount), "{name}: {mount}");
        }
        assert_eq!(
            rendered.workload()["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"],
            "Retain"
        );
    }
}
