//! A local AWS KMS whose external key stores call a real external key store proxy, just as AWS KMS would.
//!
//! Any AWS SDK uses it through an endpoint URL. What it does with keys of origin `EXTERNAL_KEY_STORE` is what AWS
//! documents: it encrypts under key material of its own, has the proxy encrypt the result, and checks what comes back.
//!
//! | module | holds |
//! |---|---|
//! | [`xks`] | the client that calls a proxy, with knobs for tests |
//! | [`kms`] | the model: key stores, keys, aliases, states, limits, texts; no I/O |
//! | [`api`] | one KMS operation after another: parse, ask the model, call the proxy, answer |
//! | [`server`] | AWS JSON 1.1 over HTTP and HTTPS, signatures of callers, background work |
//! | [`page`] | the page for looking at `/`, and `/metrics` |
//! | [`demo`] | the whole way there and back as one command |
//! | [`cli`] | the command line |

pub mod api;
pub mod cli;
pub mod demo;
pub mod kms;
pub mod page;
pub mod server;
pub mod xks;
