//! The arguments, as clap reads them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use softhsm_token::{Hex, KeySpec, Usages};

/// Makes and changes SoftHSM2 tokens for development and tests.
///
/// SoftHSM2 finds its tokens through the file that SOFTHSM2_CONF names.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done or nothing to do, 1 failed, \
    2 wrong arguments, 3 no such token or key."
)]
pub(crate) struct Arguments {
    /// The PKCS#11 library [default: libsofthsm2.so where distributions install it]
    #[arg(long, global = true, env = "SOFTHSM2_MODULE", value_name = "PATH")]
    pub(crate) module: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a token, unless one with this label exists
    Init(InitArguments),
    /// Have the token generate AES keys, unless their labels exist
    Generate(GenerateArguments),
    /// Write an AES key of a known value, unless its label exists; for tests with fixed expectations
    Import(ImportArguments),
    /// Destroy every key with this label; none is no failure
    Destroy {
        #[command(flatten)]
        token: TokenArguments,
        #[command(flatten)]
        key: KeyArguments,
    },
    /// Change what every key with this label may do
    Set {
        #[command(flatten)]
        token: TokenArguments,
        #[command(flatten)]
        key: KeyArguments,
        /// The operations allowed, separated by commas, or `none`; all others are forbidden
        #[arg(long)]
        usage: Usages,
    },
    /// List the objects on the token, without values
    List {
        #[command(flatten)]
        token: TokenArguments,
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Print the path of the PKCS#11 library that would be used
    Module,
}

#[derive(Args)]
pub(crate) struct InitArguments {
    /// The token's label, at most 32 bytes
    #[arg(long)]
    pub(crate) label: String,
    /// The security officer's PIN; other users of the machine can see it. Or set TOKEN_SO_PIN
    #[arg(long, value_name = "PIN", conflicts_with = "so_pin_file")]
    pub(crate) so_pin: Option<String>,
    /// A file with the security officer's PIN
    #[arg(long, value_name = "PATH")]
    pub(crate) so_pin_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) pin: PinArguments,
    /// Leave the user PIN unset, as an interrupted set-up does; a later `init` sets it
    #[arg(long, conflicts_with_all = ["pin", "pin_file"])]
    pub(crate) no_pin: bool,
}

#[derive(Args)]
pub(crate) struct PinArguments {
    /// The user's PIN; other users of the machine can see it. Or set TOKEN_PIN
    #[arg(long, value_name = "PIN", conflicts_with = "pin_file")]
    pub(crate) pin: Option<String>,
    /// A file with the user's PIN
    #[arg(long, value_name = "PATH")]
    pub(crate) pin_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct TokenArguments {
    /// The token's label [default: the only token]
    #[arg(long, value_name = "LABEL")]
    pub(crate) token: Option<String>,
    #[command(flatten)]
    pub(crate) pin: PinArguments,
}

#[derive(Args)]
pub(crate) struct KeyArguments {
    /// The key's label
    #[arg(long)]
    pub(crate) label: String,
    /// The key's id, where several keys share the label
    #[arg(long, value_name = "HEX")]
    pub(crate) id: Option<Hex>,
}

#[derive(Args)]
pub(crate) struct NewKeyArguments {
    /// The operations allowed, separated by commas, or `none`; all others are forbidden
    #[arg(long, default_value = "encrypt,decrypt")]
    pub(crate) usage: Usages,
    /// Make the key even if its label exists
    #[arg(long)]
    pub(crate) duplicate: bool,
}

impl NewKeyArguments {
    pub(crate) fn spec(self, id: Option<Hex>) -> KeySpec {
        KeySpec { id: id.unwrap_or_default().0, usages: self.usage, duplicate: self.duplicate }
    }
}

#[derive(Args)]
pub(crate) struct GenerateArguments {
    #[command(flatten)]
    pub(crate) token: TokenArguments,
    /// The key's label
    #[arg(long, required_unless_present = "count")]
    pub(crate) label: Option<String>,
    /// The key's id [default: empty]
    #[arg(long, value_name = "HEX", conflicts_with = "count")]
    pub(crate) id: Option<Hex>,
    /// The key's size: 128, 192 or 256
    #[arg(long, default_value_t = 256)]
    pub(crate) bits: u16,
    /// Make this many keys, labelled with the prefix and the numbers from 0
    #[arg(long, requires = "label_prefix", conflicts_with = "label")]
    pub(crate) count: Option<u32>,
    /// What the labels of `--count` begin with
    #[arg(long, value_name = "PREFIX", requires = "count")]
    pub(crate) label_prefix: Option<String>,
    #[command(flatten)]
    pub(crate) new_key: NewKeyArguments,
}

#[derive(Args)]
pub(crate) struct ImportArguments {
    #[command(flatten)]
    pub(crate) token: TokenArguments,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
    /// The key itself: 16, 24 or 32 bytes
    #[arg(long, value_name = "HEX")]
    pub(crate) value: Hex,
    #[command(flatten)]
    pub(crate) new_key: NewKeyArguments,
}
