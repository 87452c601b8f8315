//! The proxy's side of a helper: a process that holds a PKCS#11 module for one token.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;
use cryptoki::slot::Slot;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::COMMAND;
use super::wire::{Bytes, Code, FailedCall, Line, Request, decode};
use crate::clock;
use crate::hsm::ckr::HELPER_ENDED;
use crate::hsm::gate::Gate;
use crate::hsm::gcm::{self, Failure, NewIv};
use crate::hsm::keys::KeyObject;
use crate::hsm::module::ModuleFault;
use crate::hsm::session::{Access, Module, Session, TokenInfo};
use crate::hsm::settings::{TokenSettings, UserType};
use crate::hsm::{KeyLocator, Sealed};
use crate::secret::Secret;

/// Variables of the proxy's environment that a helper gets besides those that the token's settings name: none of them holds
/// a secret.
const KEPT_VARIABLES: [&str; 9] =
    ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"];
/// How long a process that was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two questions for its memory.
const MEMORY_INTERVAL: Duration = Duration::from_millis(250);
/// How long the answer may take: it is asked for between two looks at the token's threads.
const MEMORY_PATIENCE: Duration = Duration::from_millis(50);

/// A process that holds a module. Killed when dropped.
pub(in crate::hsm) struct Helper {
    process: Mutex<Child>,
    /// Takes over the helper's ends of lines; where it closes, the helper ends.
    control: UnixStream,
    /// For what is about no session.
    line: Mutex<Line>,
    /// For its memory; `None` where it could not be opened anew.
    memory: Mutex<Option<MemoryLine>>,
    /// Every line, to close them all.
    lines: Mutex<Vec<Weak<UnixStream>>>,
    /// Always open: a helper is killed where a module would be initialised anew.
    gate: Gate,
    is_killed: AtomicBool,
    pub(super) started_at: Instant,
}

impl Helper {
    /// Starts a process that has loaded no module yet.
    pub(super) fn start(settings: &TokenSettings) -> io::Result<Self> {
        let (control, of_helper) = UnixStream::pair()?;
        let lines = Mutex::default();
        // Before the process, so that nothing fails once it is there; it takes them over when it has started.
        let line = Mutex::new(open_line(&control, &lines)?);
        let memory = Mutex::new(Some(MemoryLine::open(&control, &lines)?));
        let kept = KEPT_VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        // The very file that runs, even where another has been installed in its place meanwhile.
        let process = Command::new("/proc/self/exe")
            .arg0(env!("CARGO_PKG_NAME"))
            .args([COMMAND, &*settings.name])
            .env_clear()
            .envs(kept)
            .envs(&settings.environment)
            .stdin(OwnedFd::from(of_helper))
            // What a module prints is no log line.
            .stdout(Stdio::from(io::stderr()))
            // A signal from the terminal is for the proxy, which ends its helpers itself.
            .process_group(0)
            .spawn()?;
        let (process, started_at) = (Mutex::new(process), clock::now());
        let (gate, is_killed) = Default::default();
        Ok(Self { process, control, line, memory, lines, gate, is_killed, started_at })
    }

    /// Has the module loaded and initialised.
    pub(super) fn load(&self, settings: &TokenSettings) -> Result<(), ModuleFault> {
        let Some(module) = settings.module.to_str() else {
            return Err(ModuleFault::load(&settings.module, &"its path is not UTF-8"));
        };
        let loaded = self.ask(&Request::Load { module });
        loaded.unwrap_or_else(|_| Err(ModuleFault::HelperEnded(settings.module.clone())))
    }

    /// How the process has ended, `None` where it has not.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        lock(&self.process).try_wait().ok().flatten()
    }

    /// How much of its memory is in RAM, where it is time to ask: `None` in between, and for one that does not say.
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        let mut place = lock(&self.memory);
        let memory = place.as_mut().filter(|memory| memory.asked_at.elapsed() >= MEMORY_INTERVAL)?;
        memory.asked_at = clock::now();
        let answer: Result<Option<u64>, _> = ask(&memory.line, &Request::Memory);
        if answer.is_err() {
            // What comes later would be taken for the answer to the next question.
            *place = MemoryLine::open(&self.control, &self.lines).ok();
        }
        answer.ok().flatten()
    }

    /// Ends the process whatever it is doing. Every call that is in it returns at once, as failed.
    pub(super) fn kill(&self) {
        self.is_killed.store(true, Ordering::Release);
        let _ = lock(&self.process).kill();
        // A child of the process, if a module has made any, may have the streams too.
        let _ = self.control.shutdown(Shutdown::Both);
        for line in lock(&self.lines).iter().filter_map(Weak::upgrade) {
            let _ = line.shutdown(Shutdown::Both);
        }
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request<'_>) -> Result<T, RvError> {
        ask(&lock(&self.line), request)
    }
}

/// A line that is asked for one thing only, whatever the others do.
struct MemoryLine {
    line: Line,
    asked_at: Instant,
}

impl MemoryLine {
    fn open(control: &UnixStream, lines: &Mutex<Vec<Weak<UnixStream>>>) -> io::Result<Self> {
        let line = open_line(control, lines)?;
        line.0.set_read_timeout(Some(MEMORY_PATIENCE))?;
        Ok(Self { line, asked_at: clock::now() })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.kill();
        let until = clock::now() + PATIENCE;
        while self.ended().is_none() && clock::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A new line, whose other end the helper gets.
fn open_line(control: &UnixStream, lines: &Mutex<Vec<Weak<UnixStream>>>) -> io::Result<Line> {
    let (ours, of_helper) = UnixStream::pair()?;
    let passed = [of_helper.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&passed));
    sendmsg(control, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    let ours = Arc::new(ours);
    let mut lines = lock(lines);
    lines.retain(|line| line.strong_count() > 0);
    lines.push(Arc::downgrade(&ours));
    Ok(Line(ours))
}

fn ask<T: DeserializeOwned>(line: &Line, request: &Request<'_>) -> Result<T, RvError> {
    let exchange = || {
        line.send(request)?;
        decode(&line.receive()?)
    };
    exchange().map_err(|_: io::Error| HELPER_ENDED)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Module for Helper {
    fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, RvError> {
        let tokens: Vec<(u64, TokenInfo)> = self.ask::<Result<_, Code>>(&Request::Tokens)??;
        let slot = |(slot, token)| Some((Slot::try_from(slot).ok()?, token));
        Ok(tokens.into_iter().filter_map(|(id, token): (u64, _)| slot((id, token))).collect())
    }

    fn token(&self, slot: Slot) -> Result<TokenInfo, RvError> {
        Ok(self.ask::<Result<_, Code>>(&Request::Token { slot: slot.id() })??)
    }

    fn has_aes_gcm(&self, slot: Slot) -> Result<bool, RvError> {
        Ok(self.ask::<Result<_, Code>>(&Request::HasAesGcm { slot: slot.id() })??)
    }

    fn open_session(&self, slot: Slot, access: Access) -> Result<Box<dyn Session>, RvError> {
        let line = open_line(&self.control, &self.lines).map_err(|_| HELPER_ENDED)?;
        let opened = ask::<Result<(), Code>>(&line, &Request::OpenSession { slot: slot.id(), access });
        // One that runs has closed the line because it may have no further thread or file: its other sessions serve.
        let runs = || !self.is_killed.load(Ordering::Acquire) && self.ended().is_none();
        let opened = opened.map_err(|gone| if runs() { RvError::HostMemory } else { gone });
        opened??;
        Ok(Box::new(HelperSession(line)))
    }

    fn gate(&self) -> &Gate {
        &self.gate
    }
}

/// A session in a helper, with a line of its own.
struct HelperSession(Line);

impl HelperSession {
    fn ask<T: DeserializeOwned>(&self, request: &Request<'_>) -> Result<T, RvError> {
        ask(&self.0, request)
    }

    /// Asks for an encryption or decryption: the reply is still to be decoded, so that what is secret in it is not copied.
    fn ask_for(&self, call: &'static str, request: &Request<'_>) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let sent = self.0.send(request);
        sent.and_then(|()| self.0.receive()).map_err(|_| (call, HELPER_ENDED))
    }
}

impl Session for HelperSession {
    fn log_in(&self, user_type: UserType, pin: &Secret) -> Result<(), RvError> {
        Ok(self.ask::<Result<_, Code>>(&Request::LogIn { user_type, pin: pin.expose() })??)
    }

    fn is_logged_in(&self) -> bool {
        self.ask(&Request::IsLoggedIn).unwrap_or(false)
    }

    fn find_keys(&self, locator: Option<&KeyLocator>) -> Result<Vec<ObjectHandle>, RvError> {
        let request = Request::FindKeys { locator: locator.cloned() };
        let found: Vec<u64> = self.ask::<Result<_, Code>>(&request)??;
        Ok(found.into_iter().map(gcm::object).collect())
    }

    fn read_key(&self, key: ObjectHandle) -> Result<Option<KeyObject>, RvError> {
        Ok(self.ask::<Result<_, Code>>(&Request::ReadKey { key: key.handle() })??)
    }

    fn make_session_key(&self) -> Result<ObjectHandle, RvError> {
        Ok(gcm::object(self.ask::<Result<_, Code>>(&Request::MakeSessionKey)??))
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), RvError> {
        let made: Vec<u8> = self.ask::<Result<_, Code>>(&Request::Random { bytes: bytes.len() })??;
        if made.len() != bytes.len() {
            return Err(HELPER_ENDED);
        }
        bytes.copy_from_slice(&made);
        Ok(())
    }

    fn encrypt(
        &self,
        key: ObjectHandle,
        new_iv: NewIv,
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Sealed, Failure> {
        let (aad, plaintext) = (Bytes(aad), Bytes(plaintext));
        let reply =
            self.ask_for("C_Encrypt", &Request::Encrypt { key: key.handle(), new_iv, aad, plaintext })?;
        let sealed: Result<(Bytes<'_>, Bytes<'_>), FailedCall> =
            decode(&reply).map_err(|_| ("C_Encrypt", HELPER_ENDED))?;
        let (iv, ciphertext_and_tag) = sealed?;
        Ok(Sealed { iv: iv.0.to_vec(), ciphertext_and_tag: ciphertext_and_tag.0.to_vec() })
    }

    fn decrypt(&self, key: ObjectHandle, sealed: &Sealed, aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let request = Request::Decrypt {
            key: key.handle(),
            iv: Bytes(&sealed.iv),
            aad: Bytes(aad),
            ciphertext_and_tag: Bytes(&sealed.ciphertext_and_tag),
        };
        let reply = self.ask_for("C_Decrypt", &request)?;
        let plaintext: Result<Bytes<'_>, FailedCall> =
            decode(&reply).map_err(|_| ("C_Decrypt", HELPER_ENDED))?;
        Ok(Zeroizing::new(plaintext?.0.to_vec()))
    }

    fn forget(self: Box<Self>) {
        let _: Result<(), _> = self.ask(&Request::Forget);
    }
}
