//! What every form of the report says before anything else: whatever a citation needs.

use crate::run::RunReport;

/// What it says, in order.
pub const NAMES: [&str; 10] = [
    "Target",
    "Product",
    "Says of itself",
    "Suite",
    "Commit",
    "Specification",
    "Profile",
    "Filters",
    "Began",
    "Declared",
];

/// Names and values, none of them secret.
#[must_use]
pub fn rows(report: &RunReport) -> [(&'static str, String); 10] {
    let listed = |all: &[String]| if all.is_empty() { "none".to_owned() } else { all.join(", ") };
    let reported = report.reported.as_ref().map_or_else(
        || "nothing: GetHealthStatus was not answered at the start".to_owned(),
        |said| {
            format!(
                "vendor {}, model {}, key manager {}",
                said.proxy_vendor, said.proxy_model, said.ekm_vendor
            )
        },
    );
    let values = [
        report.target.clone(),
        report.product.clone().unwrap_or_else(|| "not named (--product)".to_owned()),
        reported,
        report.suite.clone(),
        report.commit.to_owned(),
        "AWS KMS External Key Store Proxy API 1.0.3".to_owned(),
        report.profile.name().to_owned(),
        listed(&report.filters),
        report.began.clone(),
        listed(&report.declarations),
    ];
    let mut names = NAMES.into_iter();
    values.map(|value| (names.next().unwrap_or_default(), value))
}
