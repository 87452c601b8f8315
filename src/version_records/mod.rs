//! Which key each number of a version stands for, across configurations and restarts.
//!
//! A number is of one key for ever, since every ciphertext carries it. What the key of a version made of a known text when it
//! first served is kept in the state directory, beside the count of its initialization vectors, and asked of whichever key is
//! configured under that number later. No secret is in it.
//!
//! A thread of its own writes: a crash may lose what was learnt in the last moments, and then it is learnt anew.

mod folder;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;

use crate::hsm::{CheckValue, KeyLocator, KnownVersion};
use crate::iv_budget::VersionId;
use crate::state_folder::StateFault;
use folder::Folder;

/// How long after a failure the same is written again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end of the process may take to write what is left.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Why records cannot be kept.
#[derive(Debug, Error)]
pub enum VersionRecordsFault {
    /// A file or folder cannot be used.
    #[error(transparent)]
    State(#[from] StateFault),
    /// A record cannot be read. It is not taken for none.
    #[error(
        "{} is no record of a key version: restore it, or remove it to let the number stand for whichever key is \
         configured",
        .0.display()
    )]
    Damaged(PathBuf),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// What is known of each version that has ever served.
pub struct VersionRecords {
    known: Mutex<HashMap<VersionId, KnownVersion>>,
    /// To the thread that writes, where there is a directory.
    writer: Option<flume::Sender<Message>>,
}

enum Message {
    Write(VersionId, KnownVersion),
    /// Answered when everything before has been written once.
    Close(flume::Sender<()>),
}

impl VersionRecords {
    /// Reads the records of a state directory and starts the thread that adds to them. Without a directory they last as long
    /// as the process.
    ///
    /// # Errors
    /// [`VersionRecordsFault`]; a record that cannot be read is one.
    pub fn open(state_dir: Option<&Path>) -> Result<Self, VersionRecordsFault> {
        let Some(dir) = state_dir else { return Ok(Self { known: Mutex::default(), writer: None }) };
        let folder = Folder::open(dir)?;
        let known = Mutex::new(folder.read()?);
        let (writer, messages) = flume::unbounded();
        let thread = std::thread::Builder::new().name("key-versions".to_owned());
        thread.spawn(move || write(&folder, &messages)).map_err(VersionRecordsFault::Thread)?;
        Ok(Self { known, writer: Some(writer) })
    }

    /// What a version of a key was found to be.
    #[must_use]
    pub fn known(&self, store: &Arc<str>, key: &str, version: u32) -> Option<KnownVersion> {
        let id = VersionId { store: Arc::clone(store), key: key.into(), version };
        lock(&self.known).get(&id).cloned()
    }

    /// A version has been found to be the key that this is of, under that name.
    pub fn note(
        &self,
        store: &Arc<str>,
        key: &str,
        version: u32,
        locator: &KeyLocator,
        check_value: &CheckValue,
    ) {
        let id = VersionId { store: Arc::clone(store), key: key.into(), version };
        let found = KnownVersion { locator: locator.clone(), check_value: check_value.clone() };
        let before = lock(&self.known).insert(id.clone(), found.clone());
        if before.as_ref() != Some(&found)
            && let Some(writer) = &self.writer
        {
            // The thread ends after the last request.
            let _ = writer.send(Message::Write(id, found));
        }
    }

    /// Has everything written and ends the thread. A disk that hangs or fails is not waited for.
    pub fn close(&self) {
        let Some(writer) = &self.writer else { return };
        let (done, is_done) = flume::bounded(1);
        if writer.send(Message::Close(done)).is_ok() {
            let _ = is_done.recv_timeout(CLOSE_PATIENCE);
        }
    }
}

fn write(folder: &Folder, messages: &flume::Receiver<Message>) {
    let mut late = Vec::new();
    let keep = |late: &mut Vec<_>, id, known| {
        if let Err(fault) = folder.write(&id, &known) {
            tracing::error!(%fault, "cannot keep which key a version is; trying again");
            late.push((id, known));
        }
    };
    loop {
        match messages.recv_timeout(RETRY) {
            Ok(Message::Write(id, known)) => keep(&mut late, id, known),
            Err(flume::RecvTimeoutError::Timeout) => {
                for (id, known) in std::mem::take(&mut late) {
                    keep(&mut late, id, known);
                }
            }
            Ok(Message::Close(done)) => {
                for (id, known) in std::mem::take(&mut late) {
                    keep(&mut late, id, known);
                }
                let _ = done.send(());
                return;
            }
            Err(flume::RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
