//! Every fenced block says what it is; commands are run by a test, or say why they are not; TOML is configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use xks_harness::binary::program;
use xks_proxy::config::{Config, Fault};

use super::markdown::{Block, blocks};
use super::{ROOT, documents, read};

/// How many blocks of commands no test runs. It may become fewer; each more is a question for whoever reads the change.
const NOT_RUN: usize = 31;
/// Programs of this repository that people call.
const PROGRAMS: [&str; 4] = ["mock-kms", "xks-conformance", "xks-load", "xks-proxy"];

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

/// How a block of commands is known to work.
#[derive(Debug, PartialEq, Eq)]
enum Mark {
    RunBy(String),
    NotRun,
}

/// # Errors
/// What is wrong with a block's mark.
fn mark(block: &Block) -> Result<Mark, String> {
    let mark = block.mark.as_deref().ok_or("has no mark")?;
    if let Some(reason) = mark.strip_prefix("not run:") {
        return if reason.split_whitespace().count() >= 2 {
            Ok(Mark::NotRun)
        } else {
            Err("gives no reason".to_owned())
        };
    }
    let (mark, _remark) = mark.split_once(": ").unwrap_or((mark, ""));
    let file =
        mark.strip_suffix(" runs this block").ok_or_else(|| format!("has a mark that is none: {mark:?}"))?;
    Ok(Mark::RunBy(file.to_owned()))
}

/// Whether a file says that it runs so many blocks of a document, as a pair or as words of a shell. What it takes from the document
/// is held against the number when it runs, so that no block can be marked and not run.
fn runs(source: &str, document: &str, count: usize) -> bool {
    let is_end = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
    [format!("\"{document}\", {count}"), format!(" {document} {count}")]
        .iter()
        .any(|words| source.split(words.as_str()).skip(1).any(is_end))
}

#[test]
fn every_block_of_commands_is_run_or_says_why_not() {
    let (mut faults, mut not_run, mut run) = (Vec::new(), 0, BTreeMap::new());
    for (document, block) in every_block().into_iter().filter(|(_, block)| is_shell(block)) {
        match mark(&block) {
            Ok(Mark::NotRun) => not_run += 1,
            Ok(Mark::RunBy(file)) => *run.entry((file, document)).or_insert(0_usize) += 1,
            Err(fault) => faults.push(format!("{document}:{} {fault}", block.line)),
        }
    }
    for ((file, document), count) in run {
        let source = std::fs::read_to_string(Path::new(ROOT).join(&file)).unwrap_or_default();
        if !runs(&source, &document, count) {
            faults.push(format!("{file} does not say that it runs {count} blocks of {document}"));
        }
    }
    assert!(faults.is_empty(), "CONTRIBUTING.md (Documents) has the rules: {faults:#?}");
    assert_eq!(not_run, NOT_RUN, "blocks that no test runs");
}

#[test]
fn marks_are_read() {
    let of = |mark: &str| blocks(&format!("<!-- {mark} -->\n```sh\nls\n```\n")).remove(0);
    assert_eq!(mark(&of("a/b.rs runs this block: with c")), Ok(Mark::RunBy("a/b.rs".to_owned())));
    assert_eq!(mark(&of("not run: needs a: b")), Ok(Mark::NotRun));
    for none in ["not run:", "not run", "a/b.rs covers this block", "something else"] {
        assert!(mark(&of(none)).is_err(), "{none}");
    }
    assert!(
        runs("[(\"README.md\", 2)]", "README.md", 2) && runs("block a docs/x.md 3 \"$n\"", "docs/x.md", 3)
    );
    assert!(
        !runs("(\"tests/README.md\", 2)", "README.md", 2) && !runs("(\"README.md\", 20)", "README.md", 2)
    );
}

/// The script that other scripts take blocks with prints those that a test here would run.
#[test]
fn the_script_prints_the_blocks_of_a_file() {
    let (file, document) = ("tests/documents/commands.rs", "docs/key-rotation.md");
    let wanted: Vec<_> = blocks(&read(document))
        .into_iter()
        .filter(|block| mark(block) == Ok(Mark::RunBy(file.to_owned())))
        .collect();
    let print = |count: usize, number: &str| {
        let script = Path::new(ROOT).join("tests/documents/block");
        let output =
            Command::new(script).args([file, document, &count.to_string(), number]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let without_indentation = |text: &str| text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
    for (index, block) in wanted.iter().enumerate() {
        let (is_well, printed) = print(wanted.len(), &(index + 1).to_string());
        assert!(is_well);
        assert_eq!(without_indentation(&printed), without_indentation(&block.content));
    }
    assert!(!print(wanted.len() + 1, "1").0 && !print(wanted.len() - 1, "1").0);
}

/// A command that calls a program of this repository: subcommands, and the options given.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    program: &'static str,
    subcommands: Vec<String>,
    options: Vec<String>,
}

/// The calls of a block.
fn calls(block: &Block) -> Vec<Call> {
    let content = block.content.replace("\\\n", " ");
    let mut calls = Vec::new();
    for line in content.lines() {
        let line = line.split(" #").next().unwrap();
        for command in line.split(['|', ';', '&']) {
            let words: Vec<_> = command.split_whitespace().collect();
            for program in PROGRAMS {
                let is_program = |word: &&str| word.rsplit('/').next() == Some(program);
                let Some(at) = words.iter().position(is_program) else { continue };
                let mut words = &words[at..];
                // A package of cargo's, whose program's own words come after two dashes.
                if at > 0
                    && ["-p", "--package", "--bin"].contains(&command.split_whitespace().nth(at - 1).unwrap())
                {
                    let dashes = words.iter().position(|word| *word == "--");
                    // What `cargo test` passes on is for the tests.
                    let Some(dashes) = dashes.filter(|_| command.contains("cargo run")) else { continue };
                    words = &words[dashes..];
                }
                let words = words[1..].iter().map(|word| (*word).to_owned());
                let words: Vec<_> = words.collect();
                let is_word = |word: &&String| {
                    word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
                };
                let subcommands = words.iter().take_while(is_word).take(2).cloned().collect();
                let options = words.iter().filter(|word| word.starts_with("--"));
                let options = options.map(|option| option.split('=').next().unwrap().to_owned()).collect();
                calls.push(Call { program, subcommands, options });
                break;
            }
        }
    }
    calls
}

/// Also of blocks that nobody can run here: a command that does not exist helps nobody.
#[test]
fn every_command_and_option_of_the_programs_exists() {
    let mut unknown = Vec::new();
    let mut called = BTreeSet::new();
    for (document, block) in every_block().iter().filter(|(_, block)| is_shell(block)) {
        for call in calls(block) {
            let mut arguments = call.subcommands.clone();
            let help = loop {
                let output =
                    Command::new(program(call.program)).args(&arguments).arg("--help").output().unwrap();
                let help = String::from_utf8_lossy(&output.stdout).into_owned();
                // The second word may be an argument.
                if output.status.success() || arguments.len() < 2 {
                    break help;
                }
                arguments.pop();
            };
            let words: BTreeSet<_> =
                help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).collect();
            let lacking: Vec<_> =
                call.options.iter().filter(|option| !words.contains(option.as_str())).collect();
            if help.is_empty() || !lacking.is_empty() {
                unknown.push(format!("{document}:{}: {call:?} {lacking:?}", block.line));
            }
            called.insert(call.program);
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert_eq!(called, BTreeSet::from(PROGRAMS), "each is called somewhere");
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
