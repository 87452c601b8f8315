//! Throughput on a token that takes its time: the sessions must never idle.

use xks_harness::{Faults, Setup};

use super::Part;
use crate::rig::{BareModule, Fault, Load, Rig, run_clean, target_args};
use crate::statistics::{Interval, median_of};
use crate::table::Row;

const CALL_MS: f64 = 5.0;
const SESSIONS: u32 = 8;

pub(super) fn measure(rig: &Rig) -> Result<Vec<Row>, Fault> {
    let faults = Faults::new();
    let setup = faults.between(Setup { token: format!("sessions = {SESSIONS}"), ..rig.setup() });
    let token = rig.token(1);
    // Not C_Encrypt, which the bare module calls twice: it asks for the output's size first.
    let rule = format!("C_EncryptInit delay_ms={CALL_MS}");
    let mut bare = BareModule::start(rig, &token, &setup)?;
    let proxy = rig.start(&setup, token);
    faults.set(&rule);
    let load = Load { connections: 64, ..Load::closed("encrypt=1", rig.duration()) };
    let engine = load.on(&target_args(&proxy, 1, None))?;
    let (mut per_sec, mut bare_per_sec) = (Vec::new(), Vec::new());
    for _ in 0..rig.rounds {
        // What timer, scheduler and SoftHSM2 leave of the ideal on this core where nothing else is done on it.
        bare_per_sec.push(bare.encrypts_per_sec(SESSIONS, rig.duration())?);
        per_sec.push(run_clean(&engine)?.ok_per_sec);
    }
    let Interval { median, low, high, coverage } = Interval::of(&per_sec);
    let ideal_per_sec = f64::from(SESSIONS) / CALL_MS * 1e3;
    let row = Row::shown(
        Part::SlowToken.name(),
        format!("encrypts a second with {SESSIONS} sessions, {CALL_MS} ms a call"),
        median,
        "/s",
    );
    let share = 100.0 * median / ideal_per_sec;
    let note = format!(
        "{low:.1}–{high:.1}/s, {:.0} %; {share:.1} % of {ideal_per_sec:.0}/s; the bare module alone with as many sessions \
         {:.1}/s, since SoftHSM2's own time and what the system adds to a sleep come on top of the 5 ms",
        100.0 * coverage,
        median_of(&bare_per_sec),
    );
    Ok(vec![row.at_least(0.95 * ideal_per_sec).noted(note)])
}
