//! How the proxy behaves towards a PKCS#11 token, above all one that misbehaves: the module `pkcs11-fault` stands
//! between the two.

pub(crate) mod rig;

pub(crate) mod aes_gcm;
mod deadlines;
mod doctor;
mod epochs;
mod faults;
mod integrity;
mod iv_sources;
mod ivs;
mod keys;
mod many_keys;
mod overtaken;
mod pins;
mod reinitialisation;
mod searches;
mod selection;
