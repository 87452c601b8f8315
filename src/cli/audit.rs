//! `xks-proxy audit`.

use std::path::PathBuf;

use clap::Args;

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, complain, print};
use crate::audit::{self, Expected, Hash, Hasher, Verified, VerifyFault};
use crate::secret::SecretSource;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Hash of a record that must be there: the head as the log or the metric xks_audit_head told it.
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    expect_head: Option<Hash>,
    /// Hash of the last record before these files, where older ones are kept elsewhere.
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    after: Option<Hash>,
    /// The chain's hmac_key.
    #[arg(long, value_name = "FILE")]
    hmac_key_file: Option<PathBuf>,
    /// The audit files of one chain, decompressed. Files ending in .head, which a pattern such as audit.log* takes along, are
    /// left out.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

fn parse_hash(text: &str) -> Result<Hash, &'static str> {
    Hash::parse(text.as_bytes()).ok_or("must be 64 lower-case hexadecimal digits")
}

pub(super) fn verify(args: &VerifyArgs) -> u8 {
    let key = args.hmac_key_file.clone().map(|file| SecretSource::File(file).read()).transpose();
    let key = match key {
        Ok(key) => key,
        Err(fault) => {
            complain(&format!("--hmac-key-file: {fault}"));
            return EXIT_CONFIG;
        }
    };
    let expected = Expected { after: args.after, head: args.expect_head };
    match audit::verify(&audit_files(&args.files), &Hasher::new(key.as_ref()), expected) {
        Ok(verified) => {
            print(&describe(&verified));
            EXIT_OK
        }
        Err(fault @ (VerifyFault::Unreadable { .. } | VerifyFault::Compressed { .. })) => {
            complain(&fault);
            EXIT_CONFIG
        }
        Err(fault) => {
            print(&fault);
            if key.is_none() {
                print(
                    &"(a chain that was written with an hmac_key can be verified with --hmac-key-file alone)",
                );
            }
            EXIT_FAILED
        }
    }
}

/// Without the head files: a record that is in none of the others is missed all the same.
fn audit_files(given: &[PathBuf]) -> Vec<PathBuf> {
    let is_head_file = |file: &&PathBuf| file.extension().is_some_and(|extension| extension == "head");
    let files: Vec<_> = given.iter().filter(|file| !is_head_file(file)).cloned().collect();
    if files.is_empty() { given.to_vec() } else { files }
}

fn describe(verified: &Verified) -> String {
    let Verified { first, head, torn, is_end_torn, behind_expected, is_closed } = verified;
    let mut text = format!("whole: records {first} to {}, head {}", head.seq, head.hash);
    for (index, place) in torn.iter().enumerate() {
        let is_end = *is_end_torn && index + 1 == torn.len();
        text.push_str(&format!("\n{place}: torn, "));
        text.push_str(if is_end {
            "as a crash leaves it, or whoever cuts the tail off inside a line: --expect-head alone tells which"
        } else {
            "by a crash, as the record behind it says: no tampering"
        });
    }
    text.push_str(match (behind_expected, is_closed) {
        (Some(_), _) => "",
        (None, true) => {
            "\nends with an orderly stop; whether records behind it were cut off tells --expect-head alone"
        }
        (None, false) => {
            "\nends with no orderly stop; whether its tail was cut off tells --expect-head alone"
        }
    });
    if let Some(records @ 1..) = behind_expected {
        text.push_str(&format!(
            "\n{records} records are behind the expected head, which does not vouch for them"
        ));
    }
    text
}
