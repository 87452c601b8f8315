//! The text of a control file: one rule a line, `FUNCTION FAULT [OPTION…]`.

use crate::fault::{Fault, FaultKind, Hang};
use crate::names::Ckr;
use crate::rule::{Rule, RuleError};
use cryptoki_sys::{CKR_ATTRIBUTE_TYPE_INVALID, CKR_DEVICE_ERROR, CKR_FUNCTION_FAILED};
use std::collections::HashSet;
use std::fmt;
use std::str::{Chars, FromStr};

/// A line of a control file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {error}")]
pub struct ControlError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    #[source]
    pub error: RuleError,
}

/// Reads the text of a control file. Empty lines and comments, from `#` to the end of the line, are left out.
///
/// # Errors
/// The first line that is not a rule, that would never do anything, or that repeats an earlier one.
pub fn parse_rules(text: &str) -> Result<Vec<Rule>, ControlError> {
    let mut rules = Vec::new();
    let mut seen = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let at_line = |error| ControlError { line: index + 1, error };
        let words = words(line).map_err(at_line)?;
        if words.is_empty() {
            continue;
        }
        let rule = rule_of(words).map_err(at_line)?;
        // Rules are told apart by their text, in the counters too.
        if !seen.insert(rule.clone()) {
            return Err(at_line(RuleError::new("the same rule stands on an earlier line")));
        }
        rules.push(rule);
    }
    Ok(rules)
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        if line.contains(['\n', '\r']) {
            return Err(RuleError::new("a rule is one line"));
        }
        rule_of(words(line)?)
    }
}

/// `key` or `key=value`.
struct Word {
    key: String,
    value: Option<String>,
}

/// The words after function and fault, each of which must be taken exactly once.
struct Options(Vec<Word>);

impl Options {
    fn flag(&mut self, key: &str) -> bool {
        let found = self.0.iter().position(|word| word.key == key && word.value.is_none());
        found.map(|index| self.0.remove(index)).is_some()
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let found = self.0.iter().position(|word| word.key == key && word.value.is_some())?;
        self.0.remove(found).value
    }

    fn number(&mut self, key: &str) -> Result<Option<u64>, RuleError> {
        self.text(key).map(|text| parsed(key, &text)).transpose()
    }

    fn finish(self) -> Result<(), RuleError> {
        match self.0.first() {
            None => Ok(()),
            Some(word) => {
                Err(RuleError::new(format!("unknown, repeated or incomplete option \"{}\"", word.key)))
            }
        }
    }
}

fn parsed<T: FromStr<Err: fmt::Display>>(key: &str, text: &str) -> Result<T, RuleError> {
    text.parse().map_err(|error| RuleError::new(format!("{key}: {error}")))
}

fn rule_of(words: Vec<Word>) -> Result<Rule, RuleError> {
    let mut words = words.into_iter();
    let (Some(function), Some(fault)) = (words.next(), words.next()) else {
        return Err(RuleError::new("expected: FUNCTION FAULT [OPTION…]"));
    };
    if function.value.is_some() {
        return Err(RuleError::new("a line begins with a function, such as C_Encrypt, or with *"));
    }
    let function = match function.key.as_str() {
        "*" => None,
        name => Some(parsed("function", name)?),
    };
    let mut options = Options(words.collect());
    let fault = fault_of(fault, &mut options)?;
    let rule = Rule {
        fault,
        function,
        slot: options.number("slot")?,
        token: options.text("token"),
        label: options.text("label"),
        after: options.number("after")?.unwrap_or(0),
        every: options.number("every")?.unwrap_or(1),
        times: options.number("times")?,
    };
    options.finish()?;
    rule.check()?;
    Ok(rule)
}

fn fault_of(word: Word, options: &mut Options) -> Result<Fault, RuleError> {
    let Some(kind) = FaultKind::ALL.iter().find(|kind| kind.keyword() == word.key) else {
        return Err(RuleError::new(format!("unknown fault \"{}\"", word.key)));
    };
    let key = kind.keyword();
    let given = word.value;
    let value = || given.as_deref().ok_or_else(|| RuleError::new(format!("{key} needs a value: {key}=…")));
    let value_or = |default| given.as_deref().map_or(Ok(Ckr(default)), |text| parsed(key, text));
    let bare = |fault| match given {
        None => Ok(fault),
        Some(_) => Err(RuleError::new(format!("{key} takes no value"))),
    };
    Ok(match kind {
        FaultKind::DelayMs => Fault::DelayMs(parsed(key, value()?)?),
        FaultKind::Hang => {
            let hang = Hang::ALL.iter().copied().find(|hang| options.flag(&hang.to_string()));
            bare(Fault::Hang(hang.ok_or_else(|| RuleError::new("hang needs until_removed or forever"))?))?
        }
        FaultKind::Fail => Fault::Fail(parsed(key, value()?)?),
        FaultKind::ForwardThenFail => Fault::ForwardThenFail(parsed(key, value()?)?),
        FaultKind::Abort => bare(Fault::Abort)?,
        FaultKind::LeakKib => Fault::LeakKib(parsed(key, value()?)?),
        FaultKind::Busy => Fault::Busy(value_or(CKR_FUNCTION_FAILED)?),
        FaultKind::DropSessions => bare(Fault::DropSessions)?,
        FaultKind::ForgetLogins => bare(Fault::ForgetLogins)?,
        FaultKind::InvalidateHandles => bare(Fault::InvalidateHandles)?,
        FaultKind::PermuteHandles => bare(Fault::PermuteHandles)?,
        FaultKind::NeedReinit => Fault::NeedReinit(value_or(CKR_DEVICE_ERROR)?),
        FaultKind::Corrupt => Fault::Corrupt(parsed(key, value()?)?),
        FaultKind::RemoveToken => {
            Fault::RemoveToken(given.as_deref().map(|text| parsed(key, text)).transpose()?)
        }
        FaultKind::OtherValue => bare(Fault::OtherValue)?,
        FaultKind::GcmIv => Fault::GcmIv(parsed(key, value()?)?),
        FaultKind::Random => Fault::Random(parsed(key, value()?)?),
        FaultKind::BadTag => Fault::BadTag(parsed(key, value()?)?),
        FaultKind::TokenFlag => Fault::TokenFlag(parsed(key, value()?)?),
        FaultKind::HideMechanism => Fault::HideMechanism(parsed(key, value()?)?),
        FaultKind::SessionLimit => Fault::SessionLimit(parsed(key, value()?)?),
        FaultKind::RefuseReadOnly => Fault::RefuseReadOnly(value_or(CKR_FUNCTION_FAILED)?),
        FaultKind::HideAttribute => {
            let attribute = parsed(key, value()?)?;
            let answer = options.text("answer").map(|text| parsed("answer", &text)).transpose()?;
            Fault::HideAttribute { attribute, answer: answer.unwrap_or(Ckr(CKR_ATTRIBUTE_TYPE_INVALID)) }
        }
    })
}

/// Splits a line at white space. A value may be quoted, `key="a value"`, with the escapes `\"`, `\\` and `\u{hex}`.
fn words(line: &str) -> Result<Vec<Word>, RuleError> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let end = rest.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(rest.len());
        let key = rest[..end].to_owned();
        if key.is_empty() || key.contains('"') {
            return Err(RuleError::new(format!("expected a word at \"{rest}\"")));
        }
        rest = &rest[end..];
        let value = match rest.strip_prefix('=') {
            None => None,
            Some(after) => {
                let (value, left) = value(after)?;
                rest = left;
                Some(value)
            }
        };
        words.push(Word { key, value });
        rest = rest.trim_start();
    }
    Ok(words)
}

/// The value at the head of the text, and what follows it.
fn value(text: &str) -> Result<(String, &str), RuleError> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()));
        return match value {
            "" => Err(RuleError::new("a value is missing after \"=\": an empty one is written \"\"")),
            _ if value.contains('"') => Err(RuleError::new("a quote inside an unquoted value")),
            _ => Ok((value.to_owned(), rest)),
        };
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next() {
            None => return Err(RuleError::new("a quoted value does not end")),
            Some('"') => break,
            Some('\\') => value.push(escaped(&mut chars)?),
            Some(c) => value.push(c),
        }
    }
    let rest = chars.as_str();
    if rest.chars().next().is_some_and(|c| !c.is_whitespace()) {
        return Err(RuleError::new("a quoted value must end its word"));
    }
    Ok((value, rest))
}

fn escaped(chars: &mut Chars<'_>) -> Result<char, RuleError> {
    let code_point = |text: &str| {
        let (digits, rest) = text.strip_prefix('{')?.split_once('}')?;
        Some((char::from_u32(u32::from_str_radix(digits, 16).ok()?)?, rest.len()))
    };
    match chars.next() {
        Some(c @ ('"' | '\\')) => Ok(c),
        Some('u') => {
            let text = chars.as_str();
            let (c, left) = code_point(text).ok_or_else(|| RuleError::new("expected \\u{hexadecimal}"))?;
            *chars = text[text.len() - left..].chars();
            Ok(c)
        }
        _ => Err(RuleError::new("the escapes are \\\", \\\\ and \\u{hexadecimal}")),
    }
}

/// Writes a value so that [`value`] reads it back: quoted only where it must be.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '"' && c != '\\';
        if !self.0.is_empty() && self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        f.write_str("\"")?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        f.write_str("\"")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.kind().keyword();
        match self {
            Fault::DelayMs(value) | Fault::LeakKib(value) | Fault::SessionLimit(value) => {
                write!(f, "{key}={value}")
            }
            Fault::Hang(value) => write!(f, "{key} {value}"),
            Fault::Fail(value)
            | Fault::ForwardThenFail(value)
            | Fault::Busy(value)
            | Fault::NeedReinit(value)
            | Fault::BadTag(value)
            | Fault::RefuseReadOnly(value)
            | Fault::RemoveToken(Some(value)) => write!(f, "{key}={value}"),
            Fault::Corrupt(value) => write!(f, "{key}={value}"),
            Fault::GcmIv(value) => write!(f, "{key}={value}"),
            Fault::Random(value) => write!(f, "{key}={value}"),
            Fault::TokenFlag(value) => write!(f, "{key}={value}"),
            Fault::HideMechanism(value) => write!(f, "{key}={value}"),
            Fault::HideAttribute { attribute, answer } => write!(f, "{key}={attribute} answer={answer}"),
            Fault::Abort
            | Fault::DropSessions
            | Fault::ForgetLogins
            | Fault::InvalidateHandles
            | Fault::PermuteHandles
            | Fault::RemoveToken(None)
            | Fault::OtherValue => f.write_str(key),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.function.map_or("*", |function| function.name()), self.fault)?;
        if let Some(slot) = self.slot {
            write!(f, " slot={slot}")?;
        }
        if let Some(token) = &self.token {
            write!(f, " token={}", Quoted(token))?;
        }
        if let Some(label) = &self.label {
            write!(f, " label={}", Quoted(label))?;
        }
        if self.after != 0 {
            write!(f, " after={}", self.after)?;
        }
        if self.every != 1 {
            write!(f, " every={}", self.every)?;
        }
        if let Some(times) = self.times {
            write!(f, " times={times}")?;
        }
        Ok(())
    }
}
