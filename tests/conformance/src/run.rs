//! Runs cases one after another, and gathers what came of them.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::case::{Case, Level, Outcome, Section, Stop};
use crate::target::{Lack, Target};
use crate::wire::{Journal, Wire};

/// Longest that a case may take; one that hangs has failed.
const CASE_TIMEOUT: Duration = Duration::from_secs(180);

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

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunReport {
    /// Name and version of this suite.
    pub suite: String,
    /// When it began, UTC, as `YYYYMMDDTHHMMSSZ`.
    pub began: String,
    /// What was tested: host and path, nothing secret.
    pub target: String,
    /// Profile.
    pub profile: Profile,
    /// Declarations in force.
    pub declarations: Vec<String>,
    /// Cases in their order.
    pub cases: Vec<CaseResult>,
    /// Latencies of right answers.
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
    let began = crate::client::sigv4::amz_date(time::OffsetDateTime::now_utc());
    for case in cases.into_iter().filter(|case| profile.has(case)) {
        let result = one(&target, &journal, case).await;
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
        began,
        target: format!("https://{}{}", target.proxy.host, target.proxy.uri_path),
        profile,
        declarations: target.declarations(),
        cases: results,
        samples: samples.collect(),
    }
}

async fn one(target: &Arc<Target>, journal: &Journal, case: Case) -> CaseResult {
    let begin = Instant::now();
    let lack = case.needs.iter().find_map(|need| target.lacks(*need));
    let outcome = match lack {
        Some(Lack::Declared(declared)) => Outcome::NotApplicable { declared },
        Some(Lack::Undeclared(missing)) => Outcome::Skipped { missing },
        None => {
            let wire = Wire::new(Arc::clone(target), &case.id, Journal::clone(journal));
            let finding = tokio::time::timeout(CASE_TIMEOUT, case.run(wire.clone())).await;
            let trace = wire.trace();
            let failed = |expected, seen| Outcome::Failed {
                request: trace.request,
                answer: trace.answer,
                expected,
                seen,
            };
            match finding {
                Ok(Ok(seen)) => Outcome::Passed { seen },
                Ok(Err(Stop::NotApplicable(declared))) => Outcome::NotApplicable { declared },
                Ok(Err(Stop::Failed { expected, seen })) => failed(expected, seen),
                Err(_) => {
                    failed(case.expects.clone(), format!("the case did not end within {CASE_TIMEOUT:?}"))
                }
            }
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
