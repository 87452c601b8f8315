//! One row of the matrix: a proxy of its own, each request under the fault, and the way back.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use xks_harness::proxy::main_store;
use xks_harness::request::{bytes_of, decrypt_body, encrypt_body};
use xks_harness::token::{LABEL, PIN, SO_PIN};
use xks_harness::{Answer, Connection, Faults, Http, Proxy, Setup, SoftHsm, XksRequest};

use super::rows::{Request, Row, Told, When};
use crate::tokens::aes_gcm::{KEY, hex, open};
use crate::tokens::rig::{AAD, PLAINTEXT, RECOVERY, Rig, with_bad_tag};

const SECOND: &str = "xks-second";
/// Leaves a busy machine time to answer; what waits for it is a fault that lasts.
const DEADLINE: Duration = Duration::from_millis(600);
/// How much later than the deadline an answer may be.
const MARGIN: Duration = Duration::from_millis(20);
/// A machine that is busy with other things makes an answer late now and then, but not each time.
const TRIES: usize = 4;
/// How long requests of one kind go on until a fault strikes that their caller would be told of: several probes.
const STRIKE_PATIENCE: Duration = Duration::from_secs(2);
/// Requests of one kind at most, once it has.
const MAX_REQUESTS: usize = 5;
/// Older attributes of a key are read anew.
const ATTRIBUTES_AGE: Duration = Duration::from_millis(100);

/// How many tokens hold the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tokens {
    One,
    Two,
}

/// What came of one kind of request.
pub(super) struct Cell {
    pub(super) told: Vec<String>,
    /// The longest time between a request's first byte and its answer, by the proxy's log.
    pub(super) longest: Duration,
    /// Tries before this one in which an answer came too late.
    pub(super) late: usize,
}

/// A row at work.
struct Bench<'r> {
    row: &'r Row,
    tokens: Tokens,
    rig: Rig,
    /// Made before the fault.
    sealed: Value,
    ivs: HashSet<Vec<u8>>,
    fired: Vec<u64>,
}

/// Runs a row; what is wrong with it, if anything.
pub(super) async fn run(row: &Row, tokens: Tokens) -> Result<Vec<Cell>, String> {
    let (rig, sealed) = start(row, tokens).await;
    let fired = vec![0; row.rules.len()];
    let mut bench = Bench { row, tokens, rig, sealed, ivs: HashSet::new(), fired };
    let told = if tokens == Tokens::One { row.one } else { row.two };
    let mut cells = Vec::new();
    for (request, told) in Request::ALL.into_iter().zip(told) {
        cells.push(bench.cell(request, told).await.map_err(|fault| format!("{}: {fault}", request.name()))?);
    }
    bench.recover().await?;
    match bench.fired.iter().position(|fired| *fired == 0) {
        Some(never) => Err(format!("{} never struck", row.rules[never])),
        None => Ok(cells),
    }
}

async fn start(row: &Row, tokens: Tokens) -> (Rig, Value) {
    let token = SoftHsm::empty();
    token.tool(&["init", "--label", SECOND, "--so-pin", SO_PIN, "--pin", PIN]);
    for name in [LABEL, SECOND] {
        token.tool(&["import", "--token", name, "--label", "demo", "--value", &hex(&KEY)]);
        for other in ["xks-health", "demo-2"] {
            token.tool(&["generate", "--token", name, "--label", other]);
        }
    }
    let isolation = if row.is_isolated { "isolation = \"process\"" } else { "" };
    let lines = format!(
        "sessions = 2\n{isolation}\n{}\nintervals = {{ health_probe_ms = 200, key_attributes_ms = {} }}",
        row.setting,
        ATTRIBUTES_AGE.as_millis()
    );
    let deadline_ms = DEADLINE.as_millis();
    let faults = Faults::new();
    let mut setup = faults.between(Setup {
        token: lines.clone(),
        keys: "[[stores.keys]]\nexternal_key_id = \"demo\"\nlabel = \"demo\"\n".to_owned(),
        timeouts: format!("answer_ms = {deadline_ms}\nfirst_answer_ms = {deadline_ms}"),
        ..Setup::default()
    });
    if tokens == Tokens::Two {
        setup.tokens = r#"["softhsm", "second"]"#.to_owned();
        // A helper has the variables of its own token alone.
        let of_token = token.environment().map(|(name, path)| (name.to_owned(), path.display().to_string()));
        let variables = of_token.into_iter().chain(setup.environment.clone());
        let variables: Vec<_> = variables.map(|(name, value)| format!("{name} = {value:?}")).collect();
        setup.more = format!(
            "[[tokens]]\nname = \"second\"\nmodule = {:?}\nlabel = \"{SECOND}\"\npin = \"{PIN}\"\n\
             environment = {{ {} }}\n{lines}\n",
            Faults::module().display().to_string(),
            variables.join(", ")
        );
    }
    let proxy = Proxy::start_without_waiting(&setup, Arc::new(token));
    let rig = Rig { faults, proxy };
    rig.proxy.wait_until_ready().await;
    let sealed = rig.wait_until_it_encrypts().await;
    (rig, sealed)
}

impl Bench<'_> {
    /// One kind of request under the fault, again where only an answer's time was wrong, or where the fault was not met.
    async fn cell(&mut self, request: Request, allowed: Told) -> Result<Cell, String> {
        let mut why = String::new();
        let mut late = 0;
        for _ in 0..TRIES {
            self.recover().await?;
            let before = self.struck();
            self.misbehave().await?;
            let cell = Cell { late, ..self.requests(request, allowed, before).await? };
            let is_struck = self.struck() > before;
            self.count();
            if self.row.needs_restart {
                (self.rig, self.sealed) = start(self.row, self.tokens).await;
            }
            // That an answer came too late for what it should have been is a matter of time as well.
            let is_late = cell.longest > DEADLINE + MARGIN;
            let is_told = cell.told.iter().all(|told| allowed.contains(&told.as_str()));
            if !is_late && is_told {
                // What need not be noticed may strike something else, or nothing.
                if is_struck || !self.row.is_noticed(request) {
                    return Ok(cell);
                }
                why = "the fault did not strike".to_owned();
                continue;
            }
            late += 1;
            why = format!("told {:?} within {:?}, not {allowed:?} by the deadline", cell.told, cell.longest);
            if !is_told && !cell.told.iter().any(|told| told == "DependencyTimeout") {
                return Err(format!("{why}\n{}", self.rig.last_lines()));
            }
        }
        Err(format!("each of {TRIES} times, the last time: {why}"))
    }

    fn scope(&self) -> String {
        let is_one = self.tokens == Tokens::One || self.row.is_of_module;
        if is_one { String::new() } else { format!(" token={LABEL}") }
    }

    fn scoped_rules(&self) -> Vec<String> {
        self.row.rules.iter().map(|rule| format!("{rule}{}", self.scope())).collect()
    }

    /// Lets the fault begin.
    async fn misbehave(&self) -> Result<(), String> {
        let rules = self.scoped_rules().join("\n");
        let before = self.strikes();
        if self.row.when == When::Connecting {
            self.rig.faults.set(&format!("* remove_token{}", self.scope()));
            self.wait_for("the loss of the token", |health, _| health[0] == "UNAVAILABLE").await?;
        }
        self.rig.faults.set(&rules);
        match self.row.when {
            When::Serving => Ok(()),
            When::Probed => self.wait_for("a probe to see it", |health, _| health[0] == "UNAVAILABLE").await,
            When::Connecting | When::LoggingIn => {
                let until = Instant::now() + RECOVERY;
                while self.strikes().iter().zip(&before).any(|(now, before)| now == before) {
                    if Instant::now() > until {
                        return Err("the new connection does not meet the fault".to_owned());
                    }
                    // Workers open their sessions when they get work.
                    let mut clients = self.rig.clients(2).await;
                    let (first, second) = clients.split_at_mut(1);
                    tokio::join!(first[0].encrypt("demo"), second[0].encrypt("demo"));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                self.wait_for("a verdict", |_, metrics| {
                    metrics.contains("xks_token_connected{token=\"softhsm\"} 1") == self.connects()
                })
                .await
            }
        }
    }

    /// Whether the token is connected in spite of a fault at the connection: then some of it works.
    fn connects(&self) -> bool {
        self.row.one[1] != ["Internal"]
    }

    /// Takes the fault away, and waits until all is as it was.
    async fn recover(&self) -> Result<(), String> {
        if self.row.when == When::Connecting {
            // What was found at a connection holds for its time.
            self.rig.faults.set(&format!("* remove_token{}", self.scope()));
            self.wait_for("the loss of the token", |health, _| health[0] == "UNAVAILABLE").await?;
        }
        self.rig.faults.clear();
        self.serve().await?;
        self.wait_for("the way back", |health, metrics| {
            let is_well = |name: &str| {
                metrics.contains(&format!("xks_token_connected{{token=\"{name}\"}} 1"))
                    && !metrics.contains(&format!("xks_token_breaker_open{{token=\"{name}\"}} 1"))
            };
            health.iter().all(|status| status == "ACTIVE")
                && is_well("softhsm")
                && (self.tokens == Tokens::One || is_well("second"))
        })
        .await
    }

    /// Sends requests until each token has served again: what has not proven its key is asked last.
    async fn serve(&self) -> Result<(), String> {
        let served = |name: &'static str| {
            let metric = format!("xks_hsm_call_seconds_count{{call=\"encrypt\",token=\"{name}\"}}");
            async move { self.rig.proxy.metric(&metric).await }
        };
        let before = (served("softhsm").await, served("second").await);
        let mut client = self.rig.client().await;
        let mut in_a_row = 0;
        let until = Instant::now() + RECOVERY;
        loop {
            // An odd number, since they take turns.
            let is_served = client.encrypt("demo").await.status == 200
                && client.encrypt("demo").await.status == 200
                && client.decrypt("demo", &self.sealed).await.status == 200;
            in_a_row = if is_served { in_a_row + 1 } else { 0 };
            if in_a_row >= 4
                && served("softhsm").await > before.0
                && (self.tokens == Tokens::One || served("second").await > before.1)
            {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("does not serve again\n{}", self.rig.last_lines()));
            }
        }
    }

    async fn wait_for(&self, what: &str, is_so: impl Fn(&[String], &str) -> bool) -> Result<(), String> {
        let until = Instant::now() + RECOVERY;
        loop {
            let mut client = self.rig.client().await;
            let answer = client.health().await;
            let (_, metrics) = self.rig.proxy.admin("/metrics").await;
            if answer.status == 200 {
                let details = answer.json()["ekmFleetDetails"].as_array().cloned().unwrap_or_default();
                let health: Vec<_> = details
                    .iter()
                    .map(|token| token["healthStatus"].as_str().unwrap_or_default().to_owned())
                    .collect();
                if is_so(&health, &metrics) {
                    return Ok(());
                }
            }
            if Instant::now() > until {
                return Err(format!(
                    "waited in vain for {what}: {:?}\n{}",
                    answer.body,
                    self.rig.last_lines()
                ));
            }
            // A worker that could not open a session tries again with its next request.
            client.encrypt("demo").await;
            // GetHealthStatus has a quota of its own.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends requests under the fault, and judges each answer but for its name.
    async fn requests(
        &mut self,
        request: Request,
        allowed: Told,
        struck_before: u64,
    ) -> Result<Cell, String> {
        let mut cell = Cell { told: Vec::new(), longest: Duration::ZERO, late: 0 };
        let mut connection = self.rig.proxy.connect(Http::One).await;
        // Attributes are read anew.
        tokio::time::sleep(ATTRIBUTES_AGE).await;
        let before = self.struck();
        let until = Instant::now() + STRIKE_PATIENCE;
        // With two tokens requests take turns, so that the second at the latest meets the fault, unless one token is busy. What
        // strikes a probe alone is waited for.
        for number in 1.. {
            let struck = self.struck();
            let is_struck = struck > before || request == Request::Health;
            let is_enough = is_struck || self.tokens == Tokens::One || number > MAX_REQUESTS;
            let is_awaited =
                self.row.may_be_noticed(request) && struck == struck_before && Instant::now() < until;
            if number > 2 && is_enough && !is_awaited {
                break;
            }
            let told = self.one(request, &mut connection, &mut cell.longest).await?;
            let is_over = told == "no answer" || told == "DependencyTimeout";
            if !cell.told.contains(&told) {
                cell.told.push(told);
            }
            if is_over && allowed != ["ok"] {
                break;
            }
        }
        Ok(cell)
    }

    async fn one(
        &mut self,
        request: Request,
        connection: &mut Connection,
        longest: &mut Duration,
    ) -> Result<String, String> {
        let store = main_store();
        let decrypt = |sealed| XksRequest::decrypt(&store, "demo", &decrypt_body(sealed, Some(AAD)));
        let encrypt = |cdiv| XksRequest::encrypt(&store, "demo", &encrypt_body(PLAINTEXT, Some(AAD), cdiv));
        let sent = match request {
            Request::Health => XksRequest::health(&store),
            Request::Metadata => XksRequest::metadata(&store, "demo"),
            Request::Encrypt => encrypt(false),
            Request::EncryptWithCdiv => encrypt(true),
            Request::Decrypt => decrypt(&self.sealed),
            Request::DecryptForged => decrypt(&with_bad_tag(&self.sealed)),
        };
        let body: Value = serde_json::from_slice(&sent.body).unwrap();
        let id = body["requestMetadata"]["kmsRequestId"].as_str().unwrap();
        // Whatever becomes of it, KMS would not wait that long.
        let answer = tokio::time::timeout(RECOVERY, connection.try_send(&sent)).await;
        let Ok(answer) = answer else { return Err("a request was lost".to_owned()) };
        let Ok(answer) = answer else { return Ok("no answer".to_owned()) };
        let took_us = self.rig.proxy.request_log(id)["total_us"].as_u64().unwrap_or(u64::MAX);
        *longest = (*longest).max(Duration::from_micros(took_us));
        if answer.status != 200 {
            let (_, name) = answer.refusal();
            return Ok(name.trim_end_matches("Exception").to_owned());
        }
        self.judge(request, &answer)?;
        Ok("ok".to_owned())
    }

    /// What left must be right.
    fn judge(&mut self, request: Request, answer: &Answer) -> Result<(), String> {
        let body = answer.json();
        match request {
            Request::Health | Request::Metadata => Ok(()),
            Request::Encrypt | Request::EncryptWithCdiv => {
                if open(&KEY, &body, AAD).as_deref() != Some(PLAINTEXT) {
                    return Err("a ciphertext left that nobody can open".to_owned());
                }
                let iv = bytes_of(&body["initializationVector"]);
                let is_new = iv.iter().any(|byte| *byte != 0) && self.ivs.insert(iv);
                if is_new { Ok(()) } else { Err("an IV left twice".to_owned()) }
            }
            Request::Decrypt if bytes_of(&body["plaintext"]) == PLAINTEXT => Ok(()),
            Request::Decrypt => Err("another plaintext left".to_owned()),
            Request::DecryptForged => Err("a forged ciphertext was decrypted".to_owned()),
        }
    }

    /// How often any rule has struck.
    fn struck(&self) -> u64 {
        self.strikes().iter().sum()
    }

    /// How often each has.
    fn strikes(&self) -> Vec<u64> {
        self.scoped_rules().iter().map(|rule| self.rig.faults.fired(rule)).collect()
    }

    /// Notes which rules have struck.
    fn count(&mut self) {
        let strikes = self.strikes();
        self.fired.iter_mut().zip(strikes).for_each(|(fired, strikes)| *fired += strikes);
    }
}
