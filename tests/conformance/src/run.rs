//! Runs cases one after another, and gathers what came of them.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use mock_kms::xks::Request;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::error::Elapsed;
use xks_spec::Operation;

use crate::case::{Case, Finding, Level, Outcome, Section, Stop};
use crate::cases::health::restored;
use crate::target::{Lack, Target};
use crate::wire::{Journal, Trace, Wire, body_of};

/// Longest that a run waits for a target that a case has brought down.
const AWAY: Duration = Duration::from_secs(30);

/// Which cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// What the specification demands.
    Must,
    /// What it recommends too.
    Should,
    /// Leave given and good advice too.
    Full,
    /// 100,000 encrypts at 1800 a second, and nothing else.
    Load,
}

impl Profile {
    /// As on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Must => "must",
            Self::Should => "should",
            Self::Full => "full",
            Self::Load => "load",
        }
    }

    /// Whether a case belongs to it.
    #[must_use]
    pub fn has(self, case: &Case) -> bool {
        match self {
            Self::Must => case.level == Level::Must,
            Self::Should => case.level >= Level::Should,
            Self::Full => true,
            Self::Load => false,
        }
    }
}

/// What came of one case.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseResult {
    /// Id.
    pub id: String,
    /// Section.
    pub section: Section,
    /// Level.
    pub level: Level,
    /// Requirements.
    pub requirements: Vec<&'static str>,
    /// Where else the rule comes from.
    pub source: &'static str,
    /// What it does.
    pub does: String,
    /// What it expects.
    pub expects: String,
    /// How long it took.
    pub took_ms: u64,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// One latency, for the plot.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// `metadata`, `encrypt`, `decrypt` or `health`.
    pub operation: String,
    /// Whether it came first on its connection.
    pub is_first: bool,
    /// From the start to the last byte, connecting included.
    pub total_ms: f64,
}

/// What a target says of itself.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reported {
    /// `xksProxyVendor`.
    pub proxy_vendor: String,
    /// `xksProxyModel`.
    pub proxy_model: String,
    /// `ekmVendor`.
    pub ekm_vendor: String,
}

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunReport {
    /// Name and version of this suite.
    pub suite: String,
    /// Commit that it was built from, with `-changed` behind it where the source was not that; `unknown` where it was built
    /// outside of a checkout.
    pub commit: &'static str,
    /// When it began, UTC, as `YYYY-MM-DDTHH:MM:SSZ`.
    pub began: String,
    /// What was tested: host and path, nothing secret.
    pub target: String,
    /// What its owner calls it.
    pub product: Option<String>,
    /// What it calls itself, by GetHealthStatus, where it answered at the start of the run.
    pub reported: Option<Reported>,
    /// Profile.
    pub profile: Profile,
    /// Flags that kept cases of the profile out.
    pub filters: Vec<String>,
    /// Declarations in force.
    pub declarations: Vec<String>,
    /// Cases in their order.
    pub cases: Vec<CaseResult>,
    /// Latencies of right answers; of profile load a thousand quantiles of them.
    pub samples: Vec<Sample>,
}

impl RunReport {
    /// Cases that failed at a level.
    #[must_use]
    pub fn failed(&self, level: Level) -> usize {
        self.count(|case| case.level == level && matches!(case.outcome, Outcome::Failed { .. }))
    }

    /// Cases of which something holds.
    pub fn count(&self, is: impl Fn(&CaseResult) -> bool) -> usize {
        self.cases.iter().filter(|case| is(case)).count()
    }

    /// 0 where all is well, 1 a MUST failed, 3 a SHOULD failed, 4 nothing failed but cases were skipped undeclared.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.failed(Level::Must) > 0 {
            1
        } else if self.failed(Level::Should) > 0 {
            3
        } else if self.count(|case| matches!(case.outcome, Outcome::Skipped { .. })) > 0 {
            4
        } else {
            0
        }
    }
}

/// Runs those of `cases` that `profile` has; `progress` hears of each as it ends.
pub async fn run(
    target: Arc<Target>,
    profile: Profile,
    cases: Vec<Case>,
    mut progress: impl FnMut(&CaseResult),
) -> RunReport {
    let journal = Journal::default();
    let mut results = Vec::new();
    let began = iso_date(time::OffsetDateTime::now_utc());
    let reported = reported(&target).await;
    let mut is_up = true;
    for case in cases.into_iter().filter(|case| profile.has(case)) {
        let mut result = one(&target, &journal, case).await;
        if let Outcome::Failed { seen, .. } = &mut result.outcome
            && is_up
        {
            is_up = is_back(&target, seen).await;
        }
        progress(&result);
        results.push(result);
    }
    let answers = journal.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let samples = answers.into_iter().filter(|seen| seen.status == 200).map(|seen| Sample {
        operation: seen.operation,
        is_first: seen.is_first,
        total_ms: seen.total.as_secs_f64() * 1000.0,
    });
    RunReport {
        suite: format!("xks-conformance {}", env!("CARGO_PKG_VERSION")),
        commit: env!("XKS_CONFORMANCE_COMMIT"),
        began,
        target: format!("https://{}{}", target.proxy.host, target.proxy.uri_path),
        product: target.args.product.clone(),
        reported,
        profile,
        filters: Vec::new(),
        declarations: target.declarations(),
        cases: results,
        samples: samples.collect(),
    }
}

/// Whether the target listens, at once or after its owner's supervisor has started it again. What a case has brought down
/// would fail all that come behind, and hide that it was this one.
async fn is_back(target: &Target, seen: &mut String) -> bool {
    let begin = Instant::now();
    let mut is_first = true;
    while TcpStream::connect(target.address).await.is_err() {
        if begin.elapsed() > AWAY {
            seen.push_str("; and nobody has listened since");
            return false;
        }
        is_first = false;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if !is_first {
        seen.push_str(&format!("; and nobody listened for {} ms", begin.elapsed().as_millis()));
    }
    true
}

/// What the target says of itself, in its words cut to a line's length.
async fn reported(target: &Target) -> Option<Reported> {
    let body = body_of(Operation::GetHealthStatus).to_string();
    let request = Request::post(target.proxy.health_path(), body);
    let answer = target.http1.send(&target.proxy, &request).await.outcome.ok()?;
    let answer: Value = serde_json::from_slice(&answer.body).ok()?;
    let text = |field: &str| answer[field].as_str().unwrap_or_default().chars().take(100).collect();
    (answer["xksProxyVendor"].is_string() || answer["xksProxyModel"].is_string()).then(|| Reported {
        proxy_vendor: text("xksProxyVendor"),
        proxy_model: text("xksProxyModel"),
        ekm_vendor: text("ekmVendor"),
    })
}

fn iso_date(at: time::OffsetDateTime) -> String {
    let (hour, minute, second) = at.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", at.date())
}

async fn one(target: &Arc<Target>, journal: &Journal, case: Case) -> CaseResult {
    let begin = Instant::now();
    let lack = case.needs.iter().find_map(|need| target.lacks(*need));
    let outcome = match lack {
        Some(Lack::Declared(declared)) => Outcome::NotApplicable { declared },
        Some(Lack::Undeclared(missing)) => Outcome::Skipped { missing },
        None => {
            let wire = Wire::new(Arc::clone(target), &case.id, Journal::clone(journal));
            let finding = tokio::time::timeout(case.timeout, case.run(wire.clone())).await;
            let outcome = judged(&case, finding, wire.trace());
            if target.is_changed() { after_restoring(&wire, outcome).await } else { outcome }
        }
    };
    CaseResult {
        id: case.id,
        section: case.section,
        level: case.level,
        requirements: case.requirements,
        source: case.source,
        does: case.does,
        expects: case.expects,
        took_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        outcome,
    }
}

fn judged(case: &Case, finding: Result<Finding, Elapsed>, trace: Trace) -> Outcome {
    let failed =
        |expected, seen| Outcome::Failed { request: trace.request, answer: trace.answer, expected, seen };
    match finding {
        Ok(Ok(seen)) if case.is_note => Outcome::Noted { seen },
        Ok(Ok(seen)) => Outcome::Passed { seen },
        Ok(Err(Stop::NotApplicable(declared))) => Outcome::NotApplicable { declared },
        Ok(Err(Stop::Failed { expected, seen })) => failed(expected, seen),
        Err(_) => failed(case.expects.clone(), format!("the case did not end within {:?}", case.timeout)),
    }
}

/// A case that was given up, or could not restore the target itself, leaves it broken for all that come behind.
async fn after_restoring(wire: &Wire, outcome: Outcome) -> Outcome {
    let Err(Stop::Failed { seen: fault, .. }) = restored(wire).await else { return outcome };
    let fault = format!("the target could not be restored: {fault}");
    match outcome {
        Outcome::Failed { request, answer, expected, seen } => {
            Outcome::Failed { request, answer, expected, seen: format!("{seen}; and {fault}") }
        }
        _ => {
            let Trace { request, answer } = wire.trace();
            Outcome::Failed { request, answer, expected: "a target as it was before".to_owned(), seen: fault }
        }
    }
}
