//! What a case is, and what can come of it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::target::Need;
use crate::wire::Wire;

/// How binding a requirement is (RFC 2119).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Leave given or good advice: a failure is a remark.
    May,
    /// To be kept unless there is a good reason.
    Should,
    /// To be kept.
    Must,
}

impl Level {
    /// As the specification writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::May => "MAY",
            Self::Should => "SHOULD",
            Self::Must => "MUST",
        }
    }
}

/// Part of the suite, one file of `cases` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it, and `title` says it again")]
pub enum Section {
    Transport,
    Tls,
    Paths,
    Sigv4,
    Rotation,
    Mtls,
    Metadata,
    Encrypt,
    Decrypt,
    Cdiv,
    Aad,
    Errors,
    Isolation,
    Authorization,
    Health,
    Iv,
    Concurrency,
    Latency,
    Slow,
    Smuggling,
    Load,
}

impl Section {
    /// Heading in reports.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Transport => "HTTP transport",
            Self::Tls => "TLS and certificate",
            Self::Paths => "Paths and methods",
            Self::Sigv4 => "SigV4 authentication",
            Self::Rotation => "Rotation of credentials",
            Self::Mtls => "Mutual TLS",
            Self::Metadata => "GetKeyMetadata and request metadata",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
            Self::Cdiv => "Ciphertext data integrity value",
            Self::Aad => "AAD and ciphertext metadata",
            Self::Errors => "Errors",
            Self::Isolation => "Isolation of stores and keys",
            Self::Authorization => "Secondary authorization",
            Self::Health => "GetHealthStatus",
            Self::Iv => "Initialization vectors",
            Self::Concurrency => "Concurrency",
            Self::Latency => "Latency",
            Self::Slow => "Idle and slow connections",
            Self::Smuggling => "Request smuggling",
            Self::Load => "Load",
        }
    }

    /// First part of its cases' ids.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transport => "transport",
            Self::Tls => "tls",
            Self::Paths => "paths",
            Self::Sigv4 => "sigv4",
            Self::Rotation => "rotation",
            Self::Mtls => "mtls",
            Self::Metadata => "metadata",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Cdiv => "cdiv",
            Self::Aad => "aad",
            Self::Errors => "errors",
            Self::Isolation => "isolation",
            Self::Authorization => "authorization",
            Self::Health => "health",
            Self::Iv => "iv",
            Self::Concurrency => "concurrency",
            Self::Latency => "latency",
            Self::Slow => "slow",
            Self::Smuggling => "smuggling",
            Self::Load => "load",
        }
    }
}

/// Why a case ends early.
#[derive(Clone, Debug)]
pub enum Stop {
    /// The target does not do as expected.
    Failed {
        /// What was expected.
        expected: String,
        /// What was seen.
        seen: String,
    },
    /// The case does not apply to what this target is, for the reason given: a fact that the case itself found.
    NotApplicable(String),
}

/// What a case finds: in words what was seen where it is right.
pub type Finding = Result<String, Stop>;

/// The failure of an expectation.
///
/// # Errors
/// Always: it is an error made short to write.
pub fn fail<T>(expected: impl Into<String>, seen: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Failed { expected: expected.into(), seen: seen.into() })
}

/// Fails unless `holds`.
///
/// # Errors
/// [`Stop::Failed`] where it does not.
pub fn expect(holds: bool, expected: impl Into<String>, seen: impl Into<String>) -> Result<(), Stop> {
    if holds { Ok(()) } else { fail(expected, seen) }
}

/// A running case.
pub type Running = Pin<Box<dyn Future<Output = Finding> + Send>>;
type Run = Arc<dyn Fn(Wire) -> Running + Send + Sync>;

/// One case.
#[derive(Clone)]
pub struct Case {
    /// Section and name, such as `encrypt.round-trip`; never changes its meaning.
    pub id: String,
    /// Section.
    pub section: Section,
    /// How much a failure weighs.
    pub level: Level,
    /// Rows of `xks-spec/README.md` that it checks.
    pub requirements: Vec<&'static str>,
    /// Where a rule comes from that is not in the specification; empty where it is.
    pub source: &'static str,
    /// What it does, in a sentence.
    pub does: String,
    /// What it expects.
    pub expects: String,
    /// What the target must have for it.
    pub needs: Vec<Need>,
    /// Whether every answer is right, and the report notes which one came.
    pub is_note: bool,
    /// Longest that it may take; one that hangs has failed.
    pub timeout: Duration,
    run: Run,
}

impl Case {
    /// A case; its id is `section` and `name`.
    pub fn new<F>(
        section: Section,
        name: impl std::fmt::Display,
        level: Level,
        does: impl Into<String>,
        expects: impl Into<String>,
        run: impl Fn(Wire) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Finding> + Send + 'static,
    {
        Self {
            id: format!("{}.{name}", section.name()),
            section,
            level,
            requirements: Vec::new(),
            source: "",
            does: does.into(),
            expects: expects.into(),
            needs: Vec::new(),
            is_note: false,
            timeout: Duration::from_secs(180),
            run: Arc::new(move |wire| Box::pin(run(wire))),
        }
    }

    /// Names the requirements that it checks.
    #[must_use]
    pub fn of(mut self, requirements: &[&'static str]) -> Self {
        self.requirements = requirements.to_vec();
        self
    }

    /// Names another source than the specification.
    #[must_use]
    pub fn source(mut self, source: &'static str) -> Self {
        self.source = source;
        self
    }

    /// Names what the target must have.
    #[must_use]
    pub fn needs(mut self, needs: &[Need]) -> Self {
        self.needs.extend_from_slice(needs);
        self
    }

    /// Has the report note what is seen: the specification leaves it open, and nobody is to pass or fail by our reading.
    #[must_use]
    pub fn noted(mut self) -> Self {
        self.is_note = true;
        self
    }

    /// Another time-out.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it.
    pub async fn run(&self, wire: Wire) -> Finding {
        (self.run)(wire).await
    }
}

/// What came of a case.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub enum Outcome {
    /// As expected.
    Passed {
        /// What was seen, where the specification leaves a choice above all.
        seen: String,
    },
    /// What is neither right nor wrong.
    Noted {
        /// What was seen.
        seen: String,
    },
    /// Not as expected.
    Failed {
        /// The request as a command line to paste.
        request: String,
        /// The answer to it.
        answer: String,
        /// What was expected.
        expected: String,
        /// What was seen.
        seen: String,
    },
    /// The target's owner has declared that it has not what the case needs, or the case found so.
    NotApplicable {
        /// The declaration, or the fact.
        declared: String,
    },
    /// The target has not what the case needs, and nobody has declared so.
    Skipped {
        /// What to supply, or to declare.
        missing: String,
    },
}
