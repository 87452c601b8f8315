//! Reading a TOML document into settings while collecting every fault, each with line, column and path.
//!
//! serde would stop at the first fault, and the texts of `toml`'s own errors quote the source, secrets included. So the
//! document is walked by hand: each getter returns `None` and notes a fault where the document is wrong. No fault ever
//! carries text of the document.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Something wrong in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// Where in the document, such as `stores[0].credentials[1].access_key_id`; empty for the whole.
    pub path: String,
    /// What is wrong and what to do.
    pub problem: String,
    /// It may be over in a moment: somebody may be replacing the files that this names one after the other.
    pub may_pass: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} column {}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.problem)
    }
}

/// The faults found so far, and the files that the document names and that were read.
pub(super) struct Faults<'d> {
    source: &'d str,
    found: RefCell<Vec<Fault>>,
    files: RefCell<BTreeSet<PathBuf>>,
    /// Those of them that hold secrets; the empty path is the document itself.
    secret_files: RefCell<BTreeSet<PathBuf>>,
    /// Every setting that was asked for, with the range of numbers where it was asked for as one.
    #[cfg(test)]
    pub(super) asked: RefCell<std::collections::BTreeMap<String, Option<RangeInclusive<u64>>>>,
}

impl<'d> Faults<'d> {
    pub(super) const fn new(source: &'d str) -> Self {
        Self {
            source,
            found: RefCell::new(Vec::new()),
            files: RefCell::new(BTreeSet::new()),
            secret_files: RefCell::new(BTreeSet::new()),
            #[cfg(test)]
            asked: RefCell::new(std::collections::BTreeMap::new()),
        }
    }

    /// `[0]` and the like become `[]`.
    #[cfg(test)]
    fn note_asked(&self, path: &str, range: Option<RangeInclusive<u64>>) {
        let parts: Vec<_> =
            path.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect();
        let mut asked = self.asked.borrow_mut();
        let entry = asked.entry(parts.join("[]")).or_default();
        *entry = entry.take().or(range);
    }

    pub(super) fn note(&self, offset: usize, path: &str, problem: impl Into<String>) {
        let before = self.source.get(..offset).unwrap_or(self.source);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let fault = Fault {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            path: path.to_owned(),
            problem: problem.into(),
            may_pass: false,
        };
        self.found.borrow_mut().push(fault);
    }

    pub(super) fn note_file(&self, path: PathBuf) {
        self.files.borrow_mut().insert(path);
    }

    pub(super) fn note_secret_file(&self, path: PathBuf) {
        self.secret_files.borrow_mut().insert(path);
    }

    /// Those noted so far.
    pub(super) fn secret_files(&self) -> BTreeSet<PathBuf> {
        self.secret_files.borrow().clone()
    }

    /// The files noted so far.
    pub(super) fn files(&self) -> BTreeSet<PathBuf> {
        self.files.borrow().clone()
    }

    pub(super) fn into_sorted(self) -> Vec<Fault> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|fault| (fault.line, fault.column));
        found
    }
}

/// A table of the document, and which of its keys have been asked for.
pub(super) struct Table<'d> {
    path: String,
    offset: usize,
    entries: &'d DeTable<'d>,
    known: Vec<&'static str>,
    faults: &'d Faults<'d>,
}

impl<'d> Table<'d> {
    pub(super) fn root(document: &'d Spanned<DeTable<'d>>, faults: &'d Faults<'d>) -> Self {
        Self { path: String::new(), offset: 0, entries: document.get_ref(), known: Vec::new(), faults }
    }

    /// The value of a key, if it is there.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value<'d>> {
        self.known.push(name);
        #[cfg(test)]
        self.faults.note_asked(&self.child_path(name), None);
        let value = self.entries.get(name)?;
        Some(Value { path: self.child_path(name), value, faults: self.faults })
    }

    /// The value of a key that must be there.
    pub(super) fn require(&mut self, name: &'static str) -> Option<Value<'d>> {
        let value = self.take(name);
        if value.is_none() {
            self.fault(format!("{name} is missing"));
        }
        value
    }

    /// A table below this one, empty where it is absent.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'d> {
        match self.take(name) {
            Some(value) => value.table().map_or(Section::Broken, Section::Present),
            None => Section::Absent,
        }
    }

    pub(super) fn fault(&self, problem: impl Into<String>) {
        self.faults.note(self.offset, &self.path, problem);
    }

    /// Notes every key that was not asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.entries {
            if self.known.contains(&&**key.get_ref()) {
                continue;
            }
            let near = self.known.iter().min_by_key(|known| distance(known, key.get_ref()));
            let hint = match near {
                Some(near) if distance(near, key.get_ref()) <= 3 => format!("; did you mean {near}?"),
                _ => format!("; known here: {}", self.known.join(", ")),
            };
            self.faults.note(key.span().start, &self.path, format!("unknown key{hint}"));
        }
    }

    fn child_path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// A table that may be absent, in which case every key has its default.
pub(super) enum Section<'d> {
    Present(Table<'d>),
    Absent,
    /// There, but no table: the fault has been noted.
    Broken,
}

impl<'d> Section<'d> {
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value<'d>> {
        match self {
            Self::Present(table) => table.take(name),
            Self::Absent | Self::Broken => None,
        }
    }

    /// A whole number within a range, or the default.
    pub(super) fn number(&mut self, name: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
        self.take(name).and_then(|value| value.integer(range)).unwrap_or(default)
    }

    /// The same as a size in memory.
    pub(super) fn size(&mut self, name: &'static str, range: RangeInclusive<u64>, default: u64) -> usize {
        usize::try_from(self.number(name, range, default)).unwrap_or(usize::MAX)
    }

    /// Milliseconds.
    pub(super) fn millis(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Duration {
        Duration::from_millis(self.number(name, range, default))
    }

    /// Seconds.
    pub(super) fn secs(&mut self, name: &'static str, range: RangeInclusive<u64>, default: u64) -> Duration {
        Duration::from_secs(self.number(name, range, default))
    }

    pub(super) fn finish(self) {
        if let Self::Present(table) = self {
            table.finish();
        }
    }
}

/// A value of the document.
pub(super) struct Value<'d> {
    pub(super) path: String,
    value: &'d Spanned<DeValue<'d>>,
    faults: &'d Faults<'d>,
}

impl<'d> Value<'d> {
    pub(super) fn fault(&self, problem: impl Into<String>) {
        self.faults.note(self.span().start, &self.path, problem);
    }

    /// A fault that may be over in a moment.
    pub(super) fn passing_fault(&self, problem: impl Into<String>) {
        self.fault(problem);
        self.faults.found.borrow_mut().last_mut().into_iter().for_each(|fault| fault.may_pass = true);
    }

    fn span(&self) -> Range<usize> {
        self.value.span()
    }

    pub(super) fn is_string(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::String(_))
    }

    pub(super) fn string(&self) -> Option<&'d str> {
        match self.value.get_ref() {
            DeValue::String(text) => Some(text),
            _ => self.wrong("must be a string"),
        }
    }

    /// A string that is not empty.
    pub(super) fn text(&self) -> Option<&'d str> {
        match self.string()? {
            "" => self.wrong("must not be empty"),
            text => Some(text),
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong("must be true or false"),
        }
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        #[cfg(test)]
        self.faults.note_asked(&self.path, Some(range.clone()));
        let number = match self.value.get_ref() {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => Some(number),
            _ => self.wrong(format!("must be a whole number from {} to {}", range.start(), range.end())),
        }
    }

    /// A string that `parse` takes; its error says what it should be.
    pub(super) fn parsed<T, E: fmt::Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        match parse(self.string()?) {
            Ok(parsed) => Some(parsed),
            Err(error) => self.wrong(error.to_string()),
        }
    }

    /// One of several words.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.fault(format!("must be one of {}", words.join(", ")));
        }
        found
    }

    pub(super) fn socket_address(&self) -> Option<SocketAddr> {
        self.parsed(|text| text.parse().map_err(|_| "must be an address and a port, such as \"0.0.0.0:443\""))
    }

    /// A path, relative to `folder` unless it is absolute.
    pub(super) fn path_in(&self, folder: &Path) -> Option<PathBuf> {
        self.text().map(|text| folder.join(text))
    }

    /// The same of a file that is read now: when it changes, so does the configuration.
    pub(super) fn file_in(&self, folder: &Path) -> Option<PathBuf> {
        self.path_in(folder).inspect(|path| self.faults.note_file(path.clone()))
    }

    /// It, or the file, holds a secret.
    pub(super) fn note_secret(&self, file: Option<PathBuf>) {
        file.iter().for_each(|file| self.faults.note_file(file.clone()));
        self.faults.note_secret_file(file.unwrap_or_default());
    }

    pub(super) fn table(&self) -> Option<Table<'d>> {
        match self.value.get_ref() {
            DeValue::Table(entries) => Some(Table {
                path: self.path.clone(),
                offset: self.span().start,
                entries,
                known: Vec::new(),
                faults: self.faults,
            }),
            _ => self.wrong("must be a table"),
        }
    }

    pub(super) fn array(&self) -> Vec<Value<'d>> {
        let DeValue::Array(items) = self.value.get_ref() else {
            self.fault("must be an array");
            return Vec::new();
        };
        let item =
            |(index, value)| Value { path: format!("{}[{index}]", self.path), value, faults: self.faults };
        items.iter().enumerate().map(item).collect()
    }

    /// Names and texts of a table of strings.
    pub(super) fn string_map(&self) -> Vec<(String, String)> {
        let DeValue::Table(entries) = self.value.get_ref() else {
            self.fault("must be a table of strings");
            return Vec::new();
        };
        let mut map = Vec::new();
        for (name, value) in entries {
            match value.get_ref() {
                DeValue::String(text) => map.push((name.get_ref().to_string(), text.to_string())),
                _ => self.faults.note(value.span().start, &self.path, "must be a string"),
            }
        }
        map
    }

    /// A table as a JSON object.
    pub(super) fn json_object(&self) -> serde_json::Map<String, serde_json::Value> {
        let DeValue::Table(entries) = self.value.get_ref() else {
            self.fault("must be a table");
            return serde_json::Map::new();
        };
        entries.iter().map(|(name, value)| (name.get_ref().to_string(), self.json(value))).collect()
    }

    fn json(&self, value: &Spanned<DeValue<'_>>) -> serde_json::Value {
        match value.get_ref() {
            DeValue::String(text) => text.as_ref().into(),
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).ok().into(),
            DeValue::Float(digits) => digits.as_str().parse::<f64>().ok().into(),
            DeValue::Boolean(value) => (*value).into(),
            DeValue::Datetime(_) => {
                self.faults.note(
                    value.span().start,
                    &self.path,
                    "a date has no place in JSON: write a string",
                );
                serde_json::Value::Null
            }
            DeValue::Array(items) => items.iter().map(|item| self.json(item)).collect(),
            DeValue::Table(entries) => {
                entries.iter().map(|(name, value)| (name.get_ref().to_string(), self.json(value))).collect()
            }
        }
    }

    fn wrong<T>(&self, problem: impl Into<String>) -> Option<T> {
        self.fault(problem);
        None
    }
}

/// Edits between two words (Levenshtein), to suggest what was meant.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.chars().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("listen", "listen"), 0);
        assert_eq!(distance("listen", "listne"), 2);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn faults_know_where_they_are_and_quote_nothing() {
        let source = "a = 1\n[table]\ntypo-with-hunter2 = \"hunter2\"\nnumber = \"hunter2\"\n";
        let document = DeTable::parse(source).unwrap();
        let faults = Faults::new(source);
        let mut root = Table::root(&document, &faults);
        root.take("a");
        let mut table = root.take("table").unwrap().table().unwrap();
        assert_eq!(table.take("number").unwrap().integer(1..=9), None);
        table.finish();
        root.finish();
        let found = faults.into_sorted();
        let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "line 3 column 1: table: unknown key; known here: number",
                "line 4 column 10: table.number: must be a whole number from 1 to 9"
            ]
        );
    }
}
