//! How fast a token is.

use std::time::{Duration, Instant};

use super::super::connection::Connection;
use super::super::iv::IvSource;
use super::super::probe::{self, ProbeFault, ProbeKey};
use super::super::session::Session;
use super::{Throughput, TimeBySize};
use crate::clock;

/// Sizes of plaintexts: a data key, and up to the longest that every proxy must take.
const SIZES_BYTES: [usize; 4] = [32, 256, 1024, 4300];
/// How often each size is done at most.
const MAX_RUNS: usize = 200;
/// How long one size may take.
const TIME_OF_A_SIZE: Duration = Duration::from_millis(500);
/// How long throughput is measured with one number of sessions.
const TIME_OF_A_COUNT: Duration = Duration::from_millis(400);

/// Times of single calls, one after the other on one session.
pub(super) fn times(
    session: &dyn Session,
    key: &ProbeKey,
    source: IvSource,
) -> Result<Vec<TimeBySize>, String> {
    let measure = |bytes| time_of(session, key, source, bytes);
    let measured: Result<_, ProbeFault> = SIZES_BYTES.into_iter().map(measure).collect();
    measured.map_err(|fault| format!("while times were measured, {fault}"))
}

fn time_of(
    session: &dyn Session,
    key: &ProbeKey,
    source: IvSource,
    plaintext_bytes: usize,
) -> Result<TimeBySize, ProbeFault> {
    let plaintext = vec![0x5a; plaintext_bytes];
    let key = key.handle();
    let (mut encryptions, mut decryptions) = (Vec::new(), Vec::new());
    let until = clock::now() + TIME_OF_A_SIZE;
    while encryptions.is_empty() || (encryptions.len() < MAX_RUNS && clock::now() < until) {
        let started = clock::now();
        let sealed = source.encrypt(session, key, probe::AAD, &plaintext).map_err(ProbeFault::Call)?;
        encryptions.push(micros_since(started));
        let started = clock::now();
        session.decrypt(key, &sealed, probe::AAD).map_err(ProbeFault::Call)?;
        decryptions.push(micros_since(started));
    }
    encryptions.sort_unstable();
    decryptions.sort_unstable();
    let median = |times: &[u64]| times[times.len() / 2];
    let max = |times: &[u64]| times[times.len() - 1];
    Ok(TimeBySize {
        plaintext_bytes,
        runs: encryptions.len(),
        encrypt_median_us: median(&encryptions),
        encrypt_max_us: max(&encryptions),
        decrypt_median_us: median(&decryptions),
        decrypt_max_us: max(&decryptions),
    })
}

fn micros_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Encryptions a second with 1, 2, 4 … sessions, each on a thread of its own, up to `most`.
pub(super) fn throughput(
    connection: &Connection,
    key: &ProbeKey,
    source: IvSource,
    most: usize,
) -> Vec<Throughput> {
    let doubled = std::iter::successors(Some(1), |count| Some(count * 2));
    doubled
        .take_while(|count| *count <= most)
        .filter_map(|sessions| {
            let done = encryptions_of(connection, key, source, sessions)?;
            let encryptions_per_second = done * 1000 / u64::try_from(TIME_OF_A_COUNT.as_millis()).ok()?;
            Some(Throughput { sessions, encryptions_per_second })
        })
        .collect()
}

/// How many encryptions that many sessions do in [`TIME_OF_A_COUNT`]; `None` where one of them fails.
fn encryptions_of(connection: &Connection, key: &ProbeKey, source: IvSource, sessions: usize) -> Option<u64> {
    let key = key.handle();
    let access = connection.profile.access_to_use_keys();
    let open = || connection.module.open_session(connection.slot, access).ok();
    let sessions: Vec<Box<dyn Session>> = (0..sessions).map(|_| open()).collect::<Option<_>>()?;
    let until = clock::now() + TIME_OF_A_COUNT;
    let work = |session: Box<dyn Session>| {
        let mut done = 0_u64;
        while clock::now() < until {
            source.encrypt(&*session, key, probe::AAD, &[0x5a; 32]).ok()?;
            done += 1;
        }
        Some(done)
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            sessions.into_iter().map(|session| scope.spawn(move || work(session))).collect();
        threads.into_iter().map(|thread| thread.join().ok().flatten()).sum()
    })
}
