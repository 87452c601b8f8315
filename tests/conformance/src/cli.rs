//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;

use crate::case::Case;
use crate::report::{html, json, junit, terminal};
use crate::run::{CaseResult, Profile, RunReport, run};
use crate::target::TargetArgs;
use crate::{cases, load};

/// Checks a running XKS proxy of any vendor against every requirement that can be seen from outside.
///
/// Exit status: 0 all is well, 1 a MUST failed, 2 the run did not come about, 3 a SHOULD failed, 4 nothing failed but cases
/// were skipped for lack of what they need and of a declaration.
#[derive(Parser)]
#[command(name = "xks-conformance", version)]
pub struct Cli {
    #[command(flatten)]
    target: TargetArgs,
    /// Which cases to run
    #[arg(long, value_enum, default_value_t = Profile::Full)]
    profile: Profile,
    /// Only cases whose id begins so, such as `sigv4.`; repeatable
    #[arg(long, value_name = "PREFIX")]
    only: Vec<String>,
    /// Only cases that check a requirement, by its id in xks-spec/README.md; repeatable
    #[arg(long, value_name = "ID")]
    requirement: Vec<String>,
    /// Print the cases, and run none
    #[arg(long)]
    list: bool,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Cli {
    /// Does as told and returns the exit status.
    pub async fn execute(self) -> u8 {
        let mut out = std::io::stdout();
        let selected: Vec<Case> = cases::all().into_iter().filter(|case| self.is_wanted(case)).collect();
        if let Err(fault) = self.check(&selected) {
            let _ = writeln!(std::io::stderr(), "xks-conformance: {fault}");
            return 2;
        }
        if self.list {
            for case in selected.iter().filter(|case| self.profile.has(case)) {
                let _ = writeln!(out, "{:6} {}  {}", case.level.name(), case.id, case.does);
            }
            return 0;
        }
        match self.run(selected).await {
            Ok(report) => {
                let _ = out.write_all(terminal::summary(&report).as_bytes());
                report.exit_code()
            }
            Err(fault) => {
                let _ = writeln!(std::io::stderr(), "xks-conformance: {fault}");
                2
            }
        }
    }

    /// A run that looks at nothing would end well.
    fn check(&self, selected: &[Case]) -> Result<(), String> {
        let filters = self.filters().join(" ");
        if self.profile == Profile::Load {
            let has_none = "profile load has no cases to choose from";
            return if filters.is_empty() { Ok(()) } else { Err(format!("{filters}: {has_none}")) };
        }
        for prefix in &self.only {
            if !cases::all().iter().any(|case| case.id.starts_with(prefix.as_str())) {
                return Err(format!("--only {prefix}: no case has an id that begins so; --list prints them"));
            }
        }
        for id in &self.requirement {
            if !cases::all().iter().any(|case| case.requirements.contains(&id.as_str())) {
                return Err(format!("--requirement {id}: no case checks it; --list prints the cases"));
            }
        }
        if selected.iter().any(|case| self.profile.has(case)) {
            return Ok(());
        }
        Err(format!("profile {}, {filters}: no case is left", self.profile.name()))
    }

    fn filters(&self) -> Vec<String> {
        let only = self.only.iter().map(|prefix| format!("--only {prefix}"));
        only.chain(self.requirement.iter().map(|id| format!("--requirement {id}"))).collect()
    }

    fn is_wanted(&self, case: &Case) -> bool {
        let has = |id: &String| case.requirements.contains(&id.as_str());
        (self.only.is_empty() || self.only.iter().any(|prefix| case.id.starts_with(prefix)))
            && (self.requirement.is_empty() || self.requirement.iter().any(has))
    }

    async fn run(self, selected: Vec<Case>) -> Result<RunReport, Box<dyn std::error::Error>> {
        let target = Arc::new(self.target.clone().target().await?);
        let progress = |result: &CaseResult| {
            let _ = std::io::stdout().write_all(terminal::line(result).as_bytes());
        };
        let mut report = tokio::select! {
            report = run(Arc::clone(&target), self.profile, selected, progress) => report,
            _ = tokio::signal::ctrl_c() => {
                target.restore().await?;
                return Err("interrupted: no report".into());
            }
        };
        report.filters = self.filters();
        if self.profile == Profile::Load {
            let load::Loaded { cases, samples } = load::run(&target).await?;
            (report.cases, report.samples) = (cases, samples);
            for result in &report.cases {
                let _ = std::io::stdout().write_all(terminal::line(result).as_bytes());
            }
        }
        for (file, text) in [
            (&self.json, json::report(&report)),
            (&self.junit, junit::report(&report)),
            (&self.html, html::report(&report)),
        ] {
            if let Some(file) = file {
                std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?;
            }
        }
        Ok(report)
    }
}
