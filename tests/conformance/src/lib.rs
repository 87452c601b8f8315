//! A conformance suite for AWS KMS external key store proxies: it calls a running proxy, of any vendor, as AWS KMS would
//! and as KMS never would, and says which requirements of the specification it keeps.
//!
//! It knows the contract (`xks-spec`) and mock-kms's client, and shares no code with any proxy.
//!
//! | module | holds |
//! |---|---|
//! | [`target`] | what is under test: flags, environment, declarations |
//! | [`need`] | what cases need of it, and the declarations that it is not there |
//! | [`client`] | requests at every level: signed, signed by hand, raw bytes, ClientHello |
//! | [`case`] | a case: id, section, level, requirements, what it does and expects |
//! | [`wire`] | what a case holds in hand: it sends, judges and keeps a record |
//! | [`cases`] | the cases, one file a section |
//! | [`coverage`] | requirements that no case checks, and why |
//! | [`run`] | runs cases one after another |
//! | [`load`] | the profile `load` |
//! | [`report`] | terminal, JSON, JUnit XML, HTML |

pub mod case;
pub mod cases;
pub mod cli;
pub mod client;
pub mod coverage;
pub mod load;
pub mod need;
pub mod report;
pub mod run;
pub mod target;
pub mod wire;
