//! Versions of a key: which one encrypts, which ones decrypt, and that the ciphertext metadata alone chooses.

mod states;
