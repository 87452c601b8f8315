//! Every fenced block says what it is; commands are run by a test, or say why they are not; TOML is configuration.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use xks_harness::binary::program;
use xks_proxy::config::{Config, Fault};

use super::markdown::{Block, blocks};
use super::{ROOT, documents, read};

/// Marks of commands that nobody can run here.
const CANNOT_RUN: [&str; 2] = ["needs hardware", "needs AWS"];

fn every_block() -> Vec<(String, Block)> {
    let of =
        |document: String| blocks(&read(&document)).into_iter().map(move |block| (document.clone(), block));
    documents().into_iter().flat_map(of).collect()
}

fn is_shell(block: &Block) -> bool {
    ["sh", "bash", "shell", "console"].contains(&&*block.language)
}

#[test]
fn every_fence_says_its_language() {
    let unnamed: Vec<_> = every_block()
        .into_iter()
        .filter(|(_, block)| block.language.is_empty())
        .map(|(document, block)| format!("{document}:{}", block.line))
        .collect();
    assert!(unnamed.is_empty(), "write ```text where it is no language: {unnamed:#?}");
}

/// Whether a line is what somebody types into a shell, be it a vendor's own: `$ ls`, `lunacm:> role list`.
fn has_prompt(line: &str) -> bool {
    let is_name = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || ['-', '_'].contains(&c))
    };
    let line = line.trim_start();
    let prompt = line.split_once("> ").map(|(prompt, _)| prompt.trim_end_matches([' ', ':']));
    line.starts_with("$ ") || prompt.is_some_and(is_name)
}

#[test]
fn commands_are_not_called_text() {
    let hidden: Vec<_> = every_block()
        .into_iter()
        .filter(|(_, block)| block.language == "text" && block.content.lines().any(has_prompt))
        .map(|(document, block)| format!("{document}:{}", block.line))
        .collect();
    assert!(hidden.is_empty(), "write ```console, and how it is known to work: {hidden:#?}");
    assert!(has_prompt("lunacm:> role list") && has_prompt("hsm > key list") && has_prompt("$ ls"));
    assert!(!has_prompt("C_Encrypt   delay_ms=50") && !has_prompt("sessions = a > b"));
}

/// What is wrong with the mark of a block of commands.
fn fault_of_mark(document: &str, block: &Block) -> Option<String> {
    let Some(mark) = &block.mark else { return Some("has no mark".to_owned()) };
    let (mark, _reason) = mark.split_once(": ").unwrap_or((mark, ""));
    if CANNOT_RUN.contains(&mark) {
        return None;
    }
    let runs = mark.strip_suffix(" runs this block");
    let Some(file) = runs.or_else(|| mark.strip_suffix(" covers this block")) else {
        return Some(format!("has a mark that is none: {mark:?}"));
    };
    let Ok(source) = std::fs::read_to_string(Path::new(ROOT).join(file)) else {
        return Some(format!("{file} is not there"));
    };
    // Who runs a block reads it from the document, so that it cannot be another.
    if runs.is_some() {
        return (!source.contains(document)).then(|| format!("{file} does not read {document}"));
    }
    let is_known = |word: &&str| word.len() >= 4 && source.contains(*word);
    let lines = block.content.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words: BTreeSet<_> =
        lines.flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_'))).collect();
    (!words.iter().any(is_known)).then(|| format!("nothing of it is in {file}"))
}

#[test]
fn every_block_of_commands_is_run_or_says_why_not() {
    let faults: Vec<_> = every_block()
        .iter()
        .filter(|(_, block)| is_shell(block))
        .filter_map(|(document, block)| Some((document, block.line, fault_of_mark(document, block)?)))
        .map(|(document, line, fault)| format!("{document}:{line} {fault}"))
        .collect();
    assert!(faults.is_empty(), "CONTRIBUTING.md (Documents) has the rules: {faults:#?}");
}

/// The commands of a block that call the proxy: subcommands, and the options given.
fn calls(block: &Block) -> Vec<(Vec<String>, Vec<String>)> {
    let content = block.content.replace("\\\n", " ");
    let mut calls = Vec::new();
    for line in content.lines() {
        let line = line.split(" #").next().unwrap();
        for command in line.split(['|', ';', '&']) {
            let words: Vec<_> = command.split_whitespace().collect();
            let is_proxy = |word: &&str| *word == "xks-proxy" || word.ends_with("/xks-proxy");
            let Some(at) = words.iter().position(is_proxy) else { continue };
            // A package of cargo's.
            if at > 0 && ["-p", "--package", "--bin"].contains(&words[at - 1]) {
                continue;
            }
            let words = words[at + 1..].iter().map(|word| (*word).to_owned());
            let words: Vec<_> = words.collect();
            let is_word = |word: &&String| {
                word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
            };
            let subcommands: Vec<_> = words.iter().take_while(is_word).take(2).cloned().collect();
            let options = words.iter().filter(|word| word.starts_with("--"));
            let options = options.map(|option| option.split('=').next().unwrap().to_owned()).collect();
            calls.push((subcommands, options));
        }
    }
    calls
}

/// Also of blocks that nobody can run here: a command that does not exist helps nobody.
#[test]
fn every_command_and_option_of_the_proxy_exists() {
    let mut unknown = Vec::new();
    for (document, block) in every_block().iter().filter(|(_, block)| is_shell(block)) {
        for (subcommands, options) in calls(block) {
            let mut arguments = subcommands.clone();
            let help = loop {
                let output =
                    Command::new(program("xks-proxy")).args(&arguments).arg("--help").output().unwrap();
                let help = String::from_utf8_lossy(&output.stdout).into_owned();
                // The second word may be an argument.
                if output.status.success() || arguments.len() < 2 {
                    break help;
                }
                arguments.pop();
            };
            let lacks = |option: &&String| !help.contains(&***option);
            let lacking: Vec<_> = options.iter().filter(lacks).collect();
            if help.is_empty() || !lacking.is_empty() {
                unknown.push(format!("{document}:{}: {subcommands:?} {lacking:?}", block.line));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// A block of TOML is a part of the configuration of this proxy unless it is marked as another's: each of its keys is known
/// where it stands. What else is missing or wrong in it, such as a file that is not here, is no matter.
#[test]
fn toml_of_the_documents_is_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let mut faults = Vec::new();
    for (document, block) in every_block() {
        if block.language != "toml"
            || block.mark.as_deref().is_some_and(|mark| mark.starts_with("not of the proxy"))
        {
            continue;
        }
        // What belongs into a store or a token may stand without it.
        let before = match block.content.trim_start() {
            part if part.starts_with("[[stores.") || !part.starts_with('[') => "[[stores]]\n",
            part if part.starts_with("[tokens.") => "[[tokens]]\n",
            _ => "",
        };
        let found =
            Config::parse(&format!("{before}{}", block.content), folder.path()).err().unwrap_or_default();
        let is_of_text = |fault: &&Fault| {
            ["unknown key", "this is not TOML", "must be"]
                .iter()
                .any(|begin| fault.problem.starts_with(begin))
        };
        for fault in found.iter().filter(is_of_text) {
            faults.push(format!("{document}:{}: {fault}", block.line));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
