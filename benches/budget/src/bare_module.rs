//! A PKCS#11 module in a process of its own, without a proxy: what everything in the budget is compared with.
//!
//! It initialises the module, logs in and searches for one key, and says how long that took. Then it does what is asked of
//! it, a line each: `encrypt SECS KEYS` encrypts under so many of the token's keys in turn, `sessions SECS COUNT` on so many
//! sessions at once. It ends with its standard input. Nothing else is linked into it, so that its memory is the module's.

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use rustix::time::{ClockId, clock_gettime};

/// What is encrypted: a data key, under the context of a usual size.
const PLAINTEXT: [u8; 32] = [0x5a; 32];
const AAD: [u8; 100] = [0x61; 100];
/// Calls between two looks at the clock.
const BATCH: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().collect();
    let [_, module, token, key] = words.as_slice() else {
        return Err("usage: TOKEN_PIN=… xks-bare-module MODULE TOKEN-LABEL KEY-LABEL".into());
    };
    let pin = AuthPin::from(std::env::var("TOKEN_PIN")?);
    let began = Instant::now();
    let pkcs11 = Pkcs11::new(module)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let mut session = None;
    for slot in pkcs11.get_slots_with_initialized_token()? {
        if pkcs11.get_token_info(slot)?.label() == token.as_str() {
            session = Some((slot, pkcs11.open_ro_session(slot)?));
        }
    }
    let (slot, session) = session.ok_or("the module has no such token")?;
    session.login(UserType::User, Some(&pin))?;
    let sought = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(key.as_bytes().to_vec())];
    let mut keys = vec![*session.find_objects(&sought)?.first().ok_or("the token has no such key")?];
    let mut out = std::io::stdout();
    writeln!(out, "{}", began.elapsed().as_micros())?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<_> = line.split(' ').collect();
        let [what @ ("encrypt" | "sessions"), secs, count] = words.as_slice() else {
            return Err("expected: encrypt SECS KEYS, or sessions SECS COUNT".into());
        };
        let (duration, count) = (Duration::from_secs_f64(secs.parse()?), count.parse()?);
        if *what == "sessions" {
            let sessions = (0..count).map(|_| pkcs11.open_ro_session(slot)).collect::<Result<Vec<_>, _>>()?;
            writeln!(out, "{}", encrypts_per_sec(sessions, keys[0], duration)?)?;
            continue;
        }
        if keys.len() < count {
            keys = session.find_objects(&sought[..1])?;
            let used = keys.get(..count).ok_or("the token has not so many keys")?;
            // What a key costs the first time is not what is measured.
            used.iter().try_for_each(|key| encrypt(&session, *key, 0))?;
        }
        let (calls, cpu, wall) = encrypt_for(&session, &keys[..count], duration, BATCH)?;
        writeln!(out, "{calls} {} {}", cpu.as_nanos(), wall.as_nanos())?;
    }
    Ok(())
}

/// Encrypts one after the other on one session, under each key in turn; returns how often, and the CPU and the time that it
/// took.
fn encrypt_for(
    session: &Session,
    keys: &[ObjectHandle],
    duration: Duration,
    batch: usize,
) -> Result<(u64, Duration, Duration), Box<dyn Error>> {
    let cpu_now = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime));
    let (began, cpu_before) = (Instant::now(), cpu_now()?);
    let mut calls: u64 = 0;
    let mut turns = keys.iter().cycle();
    while began.elapsed() < duration {
        for key in turns.by_ref().take(batch) {
            encrypt(session, *key, calls)?;
            calls += 1;
        }
    }
    Ok((calls, cpu_now()?.saturating_sub(cpu_before), began.elapsed()))
}

/// Encrypts on each session one after the other, on a thread of its own.
fn encrypts_per_sec(
    sessions: Vec<Session>,
    key: ObjectHandle,
    duration: Duration,
) -> Result<f64, Box<dyn Error>> {
    let work = |session: Session| {
        let done = encrypt_for(&session, &[key], duration, 1);
        done.map(|(calls, _, wall)| calls as f64 / wall.as_secs_f64()).map_err(|error| error.to_string())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            sessions.into_iter().map(|session| scope.spawn(move || work(session))).collect();
        let mut per_sec = 0.0;
        for thread in threads {
            per_sec += thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(per_sec)
    })
}

/// Calls C_Encrypt twice: `cryptoki` asks for the output's size first, and has no call without that or of that alone. So
/// what it takes is in every figure of this program, and was not measured apart.
fn encrypt(session: &Session, key: ObjectHandle, number: u64) -> Result<(), Box<dyn Error>> {
    let mut iv = [0; 12];
    iv[..8].copy_from_slice(&number.to_be_bytes());
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, &AAD, 128.into())?);
    session.encrypt(&mechanism, key, &PLAINTEXT)?;
    Ok(())
}
