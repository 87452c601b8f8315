//! `authorization` and `policies` of a store.

use std::path::Path;
use std::sync::Arc;

use super::reader::{Table, Value};
use crate::policy::{Policies, PolicySource};

/// More is no set of policies that anybody has read.
const MAX_POLICY_BYTES: u64 = 1024 * 1024;

#[derive(Clone, Copy)]
enum Authorization {
    None,
    Cedar,
}

/// The policies of a store, `Some(None)` where it is to have none; `None` where something is wrong.
///
/// Both are said: a store whose policies were forgotten would serve everybody who holds its credentials.
pub(super) fn read(table: &mut Table<'_>, folder: &Path) -> Option<Option<Arc<Policies>>> {
    const WORDS: [(&str, Authorization); 2] =
        [("none", Authorization::None), ("cedar", Authorization::Cedar)];
    let authorization = table.require("authorization");
    let files = table.take("policies");
    let word = authorization.as_ref()?.one_of(&WORDS)?;
    match (word, files) {
        (Authorization::None, None) => Some(None),
        (Authorization::None, Some(files)) => {
            files.fault("would not be asked: authorization = \"none\" of this store says so");
            None
        }
        (Authorization::Cedar, None) => {
            authorization?.fault("needs policies = [\"…\"], the files with the store's Cedar policies");
            None
        }
        (Authorization::Cedar, Some(files)) => load(&files, folder).map(Some),
    }
}

fn load(files: &Value<'_>, folder: &Path) -> Option<Arc<Policies>> {
    let values = files.array();
    let sources: Vec<_> = values.iter().map(|file| read_file(file, folder)).collect();
    // One that cannot be read may hold what the others clash with.
    let sources: Vec<_> = sources.into_iter().collect::<Option<_>>()?;
    if sources.is_empty() {
        files.fault("must name at least one file with Cedar policies");
        return None;
    }
    match Policies::load(&sources) {
        Ok(policies) => Some(Arc::new(policies)),
        Err(faults) => {
            // Whoever replaces a file may be in the middle of it.
            faults.iter().for_each(|fault| files.passing_fault(fault.to_string()));
            None
        }
    }
}

fn read_file(file: &Value<'_>, folder: &Path) -> Option<PolicySource> {
    let path = file.file_in(folder)?;
    let is_too_long = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_POLICY_BYTES);
    let problem = match std::fs::read_to_string(&path) {
        Ok(_) if is_too_long => format!("{} is longer than 1 MiB", path.display()),
        Ok(text) => return Some(PolicySource { path, text }),
        Err(error) => format!("cannot read {}: {}", path.display(), error.kind()),
    };
    file.passing_fault(problem);
    None
}
