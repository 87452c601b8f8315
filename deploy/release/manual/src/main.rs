//! Writes the manual pages and shell completions of `xks-proxy` into a folder: `manual FOLDER`.
//!
//! A program of its own, so that the one that serves carries none of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, value_parser};
use clap_complete::{Shell, generate_to};

const NAME: &str = "xks-proxy";

fn main() -> ExitCode {
    let arguments = Command::new("manual")
        .arg(clap::Arg::new("folder").required(true).value_parser(value_parser!(PathBuf)))
        .get_matches();
    let folder = arguments.get_one::<PathBuf>("folder").cloned().unwrap_or_default();
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("cannot write to {}: {error}", folder.display()));
            ExitCode::FAILURE
        }
    }
}

/// One page a command, and completions for the shells that the packages know places for.
fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // Without this, xks-proxy-help.1 and its like, which say nothing.
    let command = xks_proxy::cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command.clone(), folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command.clone(), NAME, folder)?;
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "for the person at the terminal")]
fn complain(problem: &str) {
    eprintln!("manual: {problem}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page_and_hidden_ones_have_none() {
        let folder = std::env::temp_dir().join(format!("xks-manual-{}", std::process::id()));
        write(&folder).unwrap();
        let page = |name: &str| fs::read_to_string(folder.join(format!("{name}.1")));
        assert!(page(NAME).unwrap().contains("external key store"));
        for name in ["serve", "check", "doctor", "audit-verify", "credentials-new", "keys-create"] {
            let text = page(&format!("{NAME}-{name}")).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{name}: {text}");
        }
        assert!(page("xks-proxy-hsm-helper").is_err());
        for completions in ["xks-proxy.bash", "_xks-proxy", "xks-proxy.fish"] {
            assert!(
                fs::read_to_string(folder.join(completions)).unwrap().contains("doctor"),
                "{completions}"
            );
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
