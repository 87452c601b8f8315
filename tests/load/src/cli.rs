//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use serde_json::{Value, json};
use xks_load::client::HttpVersion;
use xks_load::engine::{OpenLoop, Plan};
use xks_load::report::Limits;
use xks_load::schedule::Arrivals;
use xks_load::target::TargetArgs;
use xks_load::workload::{Mix, WorkloadSettings};

/// Open-loop load generator for any XKS proxy (AWS KMS External Key Store Proxy API).
///
/// Requests leave at fixed instants whatever the target does, and latency counts from those instants.
/// Exit status: 0 within all limits, 1 beyond one, 2 when the run did not come about.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve as a null target, which answers everything and verifies nothing
    EchoServer(EchoArgs),
}

#[derive(Args)]
pub(crate) struct EchoArgs {
    /// Address to listen on; port 0 for any
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Where to write the certificate for clients to trust
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate_out: PathBuf,
}

#[derive(Args)]
#[command(group(ArgGroup::new("loop").required(true).args(["rate", "closed"])))]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) requests: RequestArgs,
    #[command(flatten)]
    pub(crate) verdict: VerdictArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    /// Open loop at this many requests a second
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    rate: Option<f64>,
    /// Closed loop instead: each connection sends as soon as it has its answer; finds the peak throughput, hides stalls
    #[arg(long)]
    closed: bool,
    /// Spacing of the open loop's instants
    #[arg(long, value_enum, default_value_t = Arrivals::Fixed)]
    arrivals: Arrivals,
    /// Length of the measured phase
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration_secs: f64,
    /// Length of the same load before it
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    warmup_secs: f64,
    /// Most requests of the measured phase
    #[arg(long, default_value_t = 100_000_000)]
    max_requests: u64,
    /// Kept connections
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// HTTP version
    #[arg(long, value_enum, default_value_t = HttpVersion::Http1)]
    http: HttpVersion,
    /// Requests at once on each HTTP/2 connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    streams: u32,
    /// Of the open loop's requests, so many a second open a connection of their own
    #[arg(long, value_name = "PER_SECOND", default_value_t = 0.0, value_parser = not_negative)]
    new_connections_per_second: f64,
    /// Let new connections resume TLS sessions; otherwise every handshake is a full one
    #[arg(long)]
    tls_resumption: bool,
    /// Most requests due and not ended; an open loop drops and counts further ones
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_outstanding: u32,
    /// Time allowed for a request, from its scheduled instant
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    timeout_ms: u64,
    /// Use each request's signature again for SECS (default 60) instead of signing every request
    #[arg(long, value_name = "SECS", num_args = 0..=1, default_missing_value = "60",
          value_parser = clap::value_parser!(u64).range(1..=240))]
    presign: Option<u64>,
    /// Threads of the generator, each with its share of rate and connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
#[command(next_help_heading = "Requests")]
pub(crate) struct RequestArgs {
    /// Weights of the operations
    #[arg(long, default_value = "encrypt=90,decrypt=5,metadata=4,health=1")]
    mix: Mix,
    /// Plaintext of an encrypt
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4_300))]
    plaintext_bytes: u16,
    /// Additional authenticated data; 0 leaves the field out
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=8_192))]
    aad_bytes: u16,
    /// Ask for a ciphertext data integrity value in every encrypt
    #[arg(long)]
    cdiv: bool,
    /// Distinct requests of each operation, all held in memory (default: one for each key, from 256 to 10,000)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pool: Option<u32>,
    /// awsPrincipalArn of the request metadata
    #[arg(long, default_value = "arn:aws:iam::123456789012:user/Alice")]
    principal_arn: String,
    /// kmsKeyArn of the request metadata
    #[arg(
        long,
        default_value = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-000000000000"
    )]
    kms_key_arn: String,
    /// Check one in N encrypts thoroughly: Base64 of the ciphertext, integrity value
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    thorough_every: u64,
    /// Look for repeated IVs after the run; keeps up to 20 million, at 20 bytes each
    #[arg(long)]
    check_ivs: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Verdict and output")]
pub(crate) struct VerdictArgs {
    /// Tolerate failed and dropped requests
    #[arg(long)]
    allow_errors: bool,
    /// Fail if the 99th percentile of the latency exceeds this
    #[arg(long, value_parser = positive)]
    max_p99_ms: Option<f64>,
    /// Fail if the rate of right answers falls under this share of --rate
    #[arg(long, value_parser = positive, requires = "rate")]
    min_rate_share: Option<f64>,
    /// Compare with a second target, in turns: a file of NAME=VALUE lines (XKS_PROXY_HOST, URI_PREFIX, …); names not
    /// in it are taken from the first
    #[arg(long, value_name = "ENVFILE")]
    pub(crate) versus: Option<PathBuf>,
    /// Rounds of the comparison; fewer than six cannot cover a median with 95 %
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) rounds: u32,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw latency by percentile and throughput over time
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

fn number(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() { Ok(number) } else { Err("not finite".to_owned()) }
}

fn positive(text: &str) -> Result<f64, String> {
    number(text)
        .and_then(|number| if number > 0.0 { Ok(number) } else { Err("must be above zero".to_owned()) })
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text)
        .and_then(|number| if number >= 0.0 { Ok(number) } else { Err("must not be negative".to_owned()) })
}

fn seconds(text: &str) -> Result<f64, String> {
    let within = |secs: &f64| (0.0..=86_400.0).contains(secs);
    number(text).and_then(|secs| if within(&secs) { Ok(secs) } else { Err("from 0 to 86400".to_owned()) })
}

impl RunArgs {
    pub(crate) fn limits(&self) -> Limits {
        let VerdictArgs { allow_errors, max_p99_ms, min_rate_share, .. } = self.verdict;
        Limits { allow_errors, max_p99_ms, min_rate_share }
    }

    pub(crate) fn rate(&self) -> Option<f64> {
        self.load.rate
    }

    /// The plan, or in words what in it contradicts itself.
    pub(crate) fn plan(&self) -> Result<Plan, String> {
        let load = &self.load;
        if load.duration_secs == 0.0 {
            return Err("--duration-secs must be above zero".to_owned());
        }
        if load.connections < load.threads {
            return Err("--connections must be at least --threads".to_owned());
        }
        if load.http == HttpVersion::Http1 && load.streams > 1 {
            return Err("--streams needs --http 2".to_owned());
        }
        let new_connections_per_sec = load.new_connections_per_second;
        match load.rate {
            None if new_connections_per_sec > 0.0 => {
                return Err("--new-connections-per-second needs --rate".to_owned());
            }
            Some(rate) if new_connections_per_sec > rate => {
                return Err("--new-connections-per-second must not exceed --rate".to_owned());
            }
            _ => {}
        }
        Ok(Plan {
            open: load.rate.map(|rate_per_sec| OpenLoop {
                arrivals: load.arrivals,
                rate_per_sec,
                new_connections_per_sec,
                max_outstanding: load.max_outstanding,
            }),
            http: load.http,
            tls_resumption: load.tls_resumption,
            warmup: Duration::from_secs_f64(load.warmup_secs),
            duration: Duration::from_secs_f64(load.duration_secs),
            max_requests: load.max_requests,
            connections: load.connections,
            streams: load.streams,
            threads: load.threads,
            timeout: Duration::from_millis(load.timeout_ms),
            presign: load.presign.map(Duration::from_secs),
            thorough_every: self.requests.thorough_every,
            check_ivs: self.requests.check_ivs,
            seed: load.seed,
        })
    }

    /// What the requests hold, for a target of `keys` keys.
    pub(crate) fn workload(&self, keys: usize) -> WorkloadSettings {
        let requests = &self.requests;
        WorkloadSettings {
            mix: requests.mix,
            plaintext_bytes: requests.plaintext_bytes.into(),
            aad_bytes: requests.aad_bytes.into(),
            cdiv: requests.cdiv,
            pool: requests.pool.map_or(keys.clamp(256, 10_000), |pool| pool as usize),
            principal_arn: requests.principal_arn.clone(),
            kms_key_arn: requests.kms_key_arn.clone(),
            seed: self.load.seed,
        }
    }

    /// How requests are signed, in words.
    pub(crate) fn signing(&self) -> String {
        match self.load.presign {
            None => "signed per request".to_owned(),
            Some(secs) => format!("pre-signed, renewed every {secs} s"),
        }
    }

    /// The settings as they belong into the report: everything that shapes the figures, nothing secret.
    pub(crate) fn settings(&self, keys: usize) -> Value {
        let (load, requests) = (&self.load, &self.requests);
        let workload = self.workload(keys);
        json!({
            "loop": if load.closed { "closed" } else { "open" },
            "ratePerSec": load.rate,
            "arrivals": load.arrivals,
            "durationSecs": load.duration_secs,
            "warmupSecs": load.warmup_secs,
            "maxRequests": load.max_requests,
            "connections": load.connections,
            "http": load.http,
            "streams": load.streams,
            "newConnectionsPerSec": load.new_connections_per_second,
            "tlsResumption": load.tls_resumption,
            "maxOutstanding": load.max_outstanding,
            "timeoutMs": load.timeout_ms,
            "signing": self.signing(),
            "threads": load.threads,
            "seed": load.seed,
            "mix": requests.mix.to_string(),
            "plaintextBytes": requests.plaintext_bytes,
            "aadBytes": requests.aad_bytes,
            "cdiv": requests.cdiv,
            "keys": keys,
            "pool": workload.pool,
            "thoroughEvery": requests.thorough_every,
        })
    }

    /// The settings in two lines.
    pub(crate) fn headline(&self, keys: usize) -> String {
        let (load, requests) = (&self.load, &self.requests);
        let pace = match load.rate {
            Some(rate) => {
                let spacing = match load.arrivals {
                    Arrivals::Fixed => "evenly spaced",
                    Arrivals::Poisson => "Poisson arrivals",
                };
                format!("open loop, {rate} requests/s ({spacing})")
            }
            None => "closed loop (latencies hide stalls)".to_owned(),
        };
        let http = match load.http {
            HttpVersion::Http1 => "HTTP/1.1".to_owned(),
            HttpVersion::Http2 => format!("HTTP/2 with {} streams", load.streams),
        };
        format!(
            "{pace}, {} s after {} s of warm-up; {} connections of {http}, {}\n\
             {}; {keys} keys; {} bytes of plaintext, {} of AAD{}",
            load.duration_secs,
            load.warmup_secs,
            load.connections,
            self.signing(),
            requests.mix,
            requests.plaintext_bytes,
            requests.aad_bytes,
            if requests.cdiv { ", integrity value" } else { "" },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<RunArgs, String> {
        let cli = Cli::try_parse_from(std::iter::once(&"xks-load").chain(args)).map_err(|e| e.to_string())?;
        Ok(cli.run)
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_run_is_open_or_closed_and_never_both_or_neither() {
        assert!(parsed(&["--rate", "100"]).unwrap().plan().unwrap().open.is_some());
        assert!(parsed(&["--closed"]).unwrap().plan().unwrap().open.is_none());
        assert!(parsed(&["--closed", "--rate", "1"]).is_err());
        assert!(parsed(&["--connections", "1"]).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        for args in [
            &["--rate", "10", "--streams", "2"][..],
            &["--rate", "10", "--threads", "17"],
            &["--rate", "10", "--new-connections-per-second", "11"],
            &["--closed", "--new-connections-per-second", "1"],
            &["--rate", "10", "--duration-secs", "0"],
        ] {
            assert!(parsed(args).unwrap().plan().is_err(), "{args:?}");
        }
        for args in [&["--rate", "0"][..], &["--rate", "inf"], &["--rate", "1", "--plaintext-bytes", "4301"]]
        {
            assert!(parsed(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn presigning_has_a_default_and_stays_within_the_five_minutes() {
        let presign = |args: &[&str]| parsed(args).map(|run| run.plan().unwrap().presign);
        assert_eq!(presign(&["--rate", "1"]).unwrap(), None);
        assert_eq!(presign(&["--rate", "1", "--presign"]).unwrap(), Some(Duration::from_secs(60)));
        assert_eq!(presign(&["--rate", "1", "--presign", "1"]).unwrap(), Some(Duration::from_secs(1)));
        assert!(presign(&["--rate", "1", "--presign", "300"]).is_err());
    }
}
