//! The model of a KMS in one account and Region: what there is, which states it is in and what may be done with it.
//!
//! Nothing here speaks HTTP, calls a proxy or reads a clock: operations get the time and give a result or a
//! [`KmsError`]. Only [`snapshot`] touches the disk.

pub mod alias;
pub mod blob;
pub mod constraint;
pub mod context;
pub mod crypto;
pub mod error;
pub mod journal;
pub mod key;
pub mod name;
pub mod page;
pub mod quota;
pub mod snapshot;
pub mod state;
pub mod store;
pub mod stores;
pub mod time;

pub use error::{Exception, KmsError};
pub use state::State;
pub use time::Timestamp;
