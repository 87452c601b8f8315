//! The helper's own side: what `xks-proxy hsm-helper` does.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::thread::Builder;

use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;
use cryptoki::slot::Slot;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::wire::{Bytes, Code, FailedCall, Line, Request, decode};
use crate::hsm::module::{ModuleFault, Modules, OwnModule};
use crate::hsm::session::{Module, Session};
use crate::hsm::{Sealed, gcm};
use crate::metrics::resident_bytes;
use crate::secret::Secret;

/// The module of this process, once it has been loaded.
type Loaded = Arc<OnceLock<Arc<OwnModule>>>;

/// Serves the proxy that has started this process until that is gone. Threads may still be inside the module then: its
/// destructors must not run beside them.
///
/// # Errors
/// Where standard input is no stream from a proxy.
pub fn serve_as_helper() -> io::Result<()> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // A module that reads from standard input would take what is meant for us.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    // A service manager signals every process of the service. The proxy drains first, and ends this one itself.
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let loaded = Loaded::default();
    while let Some(passed) = receive_line(&control)? {
        let loaded = Arc::clone(&loaded);
        // Where this process may have no further file or thread, the line closes, and the others go on.
        let Some(stream) = passed else { continue };
        let _ =
            Builder::new().name("hsm".to_owned()).spawn(move || serve_line(&Line(Arc::new(stream)), &loaded));
    }
    Ok(())
}

/// The next line that the proxy opens, `Some(None)` where this process was not allowed another file, `None` once the proxy
/// has gone.
fn receive_line(control: &UnixStream) -> io::Result<Option<Option<UnixStream>>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    loop {
        match recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(received) if received.bytes == 0 => return Ok(None),
            Ok(_) => break,
        }
    }
    let passed = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut passed) => passed.next(),
        _ => None,
    });
    Ok(Some(passed.map(|passed: OwnedFd| UnixStream::from(passed))))
}

/// Answers what is asked on one line until it closes; a session that it is about closes with it.
fn serve_line(line: &Line, loaded: &Loaded) {
    let mut session = None;
    while let Ok(message) = line.receive() {
        let answered = decode(&message).and_then(|request| answer(line, request, loaded, &mut session));
        if answered.is_err() {
            break;
        }
    }
}

fn answer(
    line: &Line,
    request: Request<'_>,
    loaded: &Loaded,
    session: &mut Option<Box<dyn Session>>,
) -> io::Result<()> {
    match request {
        Request::Load { module } => return line.send(&load(module, loaded)),
        Request::Memory => return line.send(&resident_bytes()),
        Request::Forget => {
            if let Some(session) = session.take() {
                session.forget();
            }
            return line.send(&());
        }
        _ => {}
    }
    let module = loaded.get().ok_or(io::ErrorKind::InvalidInput)?;
    match request {
        Request::Tokens => {
            let tokens = module.tokens().map_err(Code::from);
            let by_id = tokens
                .map(|tokens| tokens.into_iter().map(|(slot, token)| (slot.id(), token)).collect::<Vec<_>>());
            return line.send(&by_id);
        }
        Request::Token { slot } => return line.send(&module.token(slot_of(slot)?).map_err(Code::from)),
        Request::HasAesGcm { slot } => {
            return line.send(&module.has_aes_gcm(slot_of(slot)?).map_err(Code::from));
        }
        Request::OpenSession { slot, access } => {
            let opened = module.open_session(slot_of(slot)?, access);
            return line.send(&opened.map(|opened| *session = Some(opened)).map_err(Code::from));
        }
        _ => {}
    }
    answer_for_session(line, request, &**session.as_ref().ok_or(io::ErrorKind::InvalidInput)?)
}

fn load(module: &str, loaded: &Loaded) -> Result<(), ModuleFault> {
    let module = Modules::default().load(Path::new(module))?;
    let _ = loaded.set(module);
    Ok(())
}

fn slot_of(id: u64) -> io::Result<Slot> {
    Slot::try_from(id).map_err(io::Error::other)
}

fn answer_for_session(line: &Line, request: Request<'_>, session: &dyn Session) -> io::Result<()> {
    match request {
        Request::LogIn { user_type, pin } => {
            line.send(&session.log_in(user_type, &Secret::copy_of(pin)).map_err(Code::from))
        }
        Request::IsLoggedIn => line.send(&session.is_logged_in()),
        Request::FindKeys { locator } => {
            let found = session.find_keys(locator.as_ref()).map_err(Code::from);
            line.send(&found.map(|keys| keys.iter().map(ObjectHandle::handle).collect::<Vec<_>>()))
        }
        Request::ReadKey { key } => line.send(&session.read_key(gcm::object(key)).map_err(Code::from)),
        Request::MakeSessionKey => {
            line.send(&session.make_session_key().map(|key| key.handle()).map_err(Code::from))
        }
        Request::Random { bytes } => {
            let mut random = vec![0; bytes];
            line.send(&session.random(&mut random).map(|()| Bytes(&random)).map_err(Code::from))
        }
        Request::Encrypt { key, new_iv, aad, plaintext } => {
            let sealed = session.encrypt(gcm::object(key), new_iv, aad.0, plaintext.0);
            let sealed = sealed.as_ref().map_err(|failure| FailedCall::from(*failure));
            line.send(&sealed.map(|sealed| (Bytes(&sealed.iv), Bytes(&sealed.ciphertext_and_tag))))
        }
        Request::Decrypt { key, iv, aad, ciphertext_and_tag } => {
            let sealed = Sealed { iv: iv.0.to_vec(), ciphertext_and_tag: ciphertext_and_tag.0.to_vec() };
            let plaintext = session.decrypt(gcm::object(key), &sealed, aad.0);
            let plaintext = plaintext.as_ref().map_err(|failure| FailedCall::from(*failure));
            line.send(&plaintext.map(|plaintext| Bytes(plaintext)))
        }
        _ => line.send(&Err::<(), _>(Code::from(RvError::FunctionNotSupported))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::mem::MaybeUninit;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[test]
    fn a_line_that_was_refused_is_told_from_the_end_of_the_proxy() {
        let (mut proxy, helper) = UnixStream::pair().unwrap();
        let (_ours, of_helper) = UnixStream::pair().unwrap();
        let passed = [of_helper.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&passed));
        // As a byte comes whose file the kernel would not hand over.
        proxy.write_all(&[0]).unwrap();
        assert!(matches!(receive_line(&helper), Ok(Some(None))));
        sendmsg(&proxy, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        assert!(matches!(receive_line(&helper), Ok(Some(Some(_)))));
        drop(proxy);
        assert!(matches!(receive_line(&helper), Ok(None)));
    }
}
