//! Another configuration while the proxy serves.

mod changes;
mod connections;
mod faults;
mod files;
mod hsm;
mod late_bodies;
mod load;
pub(crate) mod rig;
pub(crate) mod versions;

pub(crate) use rig::Reloading;
