//! The shared object: the 68 functions of the C interface over a real module.
//!
//! | module | holds |
//! |---|---|
//! | `abi` | the function list: arguments in, nothing else |
//! | `call` | the course of every call: rules before, the real call, rules after |
//! | `slots`, `sessions`, `objects`, `attributes`, `cipher`, `random` | calls that need more than to be forwarded |
//! | `events`, `other_value`, `gcm`, `abandon` | faults of more than a line |
//! | `handles` | session and object handles as the application knows them |
//! | `live` | the rules in force |
//! | `tally` | the counters |
//! | `real`, `caller` | the pointers of the real module and of the application |

// Above the others: it defines the macro with which the real module is called.
#[macro_use]
mod real;

mod abandon;
mod abi;
mod attributes;
mod call;
mod caller;
mod cipher;
mod events;
mod gcm;
mod handles;
mod live;
mod objects;
mod other_value;
mod random;
mod sessions;
mod slots;
mod tally;

use crate::setup::Setup;
use handles::Handles;
use live::Control;
use real::Real;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tally::Tally;

/// What one loaded shared object works with, from the first call to the end of the process.
struct Module {
    real: Real,
    control: Control,
    tally: Tally,
    handles: Handles,
}

impl Module {
    /// The one of this shared object, or `None` if it was not set up as it must be, which was reported.
    fn instance() -> Option<&'static Module> {
        static MODULE: OnceLock<Option<Module>> = OnceLock::new();
        let set_up = || match Module::set_up() {
            Ok(module) => Some(module),
            Err(error) => {
                report(&format!("every call will fail: {error}"));
                None
            }
        };
        MODULE.get_or_init(set_up).as_ref()
    }

    fn set_up() -> Result<Self, Box<dyn std::error::Error>> {
        let own_path = real::stay_loaded()?;
        let setup = Setup::find(&own_path)?;
        let counts = setup.counts.as_deref();
        Ok(Module {
            real: Real::load(&setup.module)
                .map_err(|error| format!("{}: {error}", setup.module.display()))?,
            control: Control::new(setup.control),
            tally: Tally::open(counts).map_err(|error| format!("counters file {counts:?}: {error}"))?,
            handles: Handles::default(),
        })
    }
}

/// Writes a line to standard error, if there is one.
fn report(text: &str) {
    // Nothing can be done about it, and a test module must not fall over it.
    let _ = writeln!(std::io::stderr(), "pkcs11-fault: {text}");
}

/// Locks, whatever happened to the thread that held the lock before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
