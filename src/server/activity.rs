//! What a connection is at: when a request's first byte came, whether one is being worked on, since when it idles, which
//! answers it owes.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use xks_spec::limits::KMS_TIMEOUT;

use super::Timeouts;
use crate::clock::Deadline;

/// No instant yet.
const NEVER: u64 = 0;

/// What a connection is at. Written by its I/O and its requests, read by its timer.
pub(super) struct Activity {
    accepted_at: Instant,
    /// Nanoseconds since `accepted_at` of the first byte of a request whose head is not complete; [`NEVER`] if none.
    head_began: AtomicU64,
    /// The same of the last byte read.
    last_read: AtomicU64,
    /// The same of the last answer, or of the end of the handshake.
    last_answer: AtomicU64,
    in_flight: AtomicU32,
    requests: AtomicU32,
    authenticated: AtomicBool,
    is_http2: AtomicBool,
    is_retired: AtomicBool,
    unsent: Mutex<Unsent>,
}

/// Answers on HTTP/2 that the client has not let through, in the order in which they were made.
#[derive(Default)]
struct Unsent {
    next_id: u64,
    /// When each was made, as `last_answer`.
    since: BTreeMap<u64, u64>,
}

impl Activity {
    pub(super) fn new(accepted_at: Instant) -> Self {
        Self {
            accepted_at,
            head_began: AtomicU64::new(NEVER),
            last_read: AtomicU64::new(NEVER),
            last_answer: AtomicU64::new(NEVER),
            in_flight: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            authenticated: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            unsent: Mutex::default(),
        }
    }

    fn nanos_now(&self) -> u64 {
        u64::try_from(self.accepted_at.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.accepted_at + Duration::from_nanos(nanos)
    }

    pub(super) const fn accepted_at(&self) -> Instant {
        self.accepted_at
    }

    /// The connection is to make place for a new one: each answer says so from now on.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// The handshake has ended.
    pub(super) fn established(&self, is_http2: bool) {
        self.is_http2.store(is_http2, Ordering::Relaxed);
        self.last_answer.store(self.nanos_now(), Ordering::Relaxed);
    }

    fn bytes_read(&self) {
        let now = self.nanos_now();
        self.last_read.store(now, Ordering::Relaxed);
        if self.in_flight.load(Ordering::Relaxed) == 0 {
            // Only the first byte of a head sets it.
            let _ = self.head_began.compare_exchange(NEVER, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// A request's head is complete; the guard says when its work ends.
    ///
    /// On HTTP/1.1 its first byte is the first that came after the answer before. On HTTP/2, where requests overlap,
    /// it is taken to have come with the bytes that completed the head.
    pub(super) fn begin_request(self: &Arc<Self>) -> InFlight {
        let head_began = self.head_began.swap(NEVER, Ordering::Relaxed);
        let last_read = self.last_read.load(Ordering::Relaxed);
        let is_alone = self.in_flight.fetch_add(1, Ordering::Relaxed) == 0;
        let nanos = if head_began != NEVER && is_alone && !self.is_http2() { head_began } else { last_read };
        let is_first = self.requests.fetch_add(1, Ordering::Relaxed) == 0;
        InFlight { first_byte_at: self.instant(nanos), is_first, activity: Arc::clone(self) }
    }

    /// A request of this connection was authenticated; true the first time.
    pub(super) fn authenticated(&self) -> bool {
        !self.authenticated.swap(true, Ordering::Relaxed)
    }

    /// Whether a request of this connection was authenticated.
    pub(super) fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// Whether no request is being worked on, and none has begun to arrive.
    pub(super) fn is_idle(&self) -> bool {
        let has_begun = !self.is_http2() && self.head_began.load(Ordering::Relaxed) != NEVER;
        self.in_flight.load(Ordering::Relaxed) == 0 && !has_begun
    }

    /// An answer's body that counts as unsent until it is gone. On HTTP/1.1 nothing is read while an answer is unsent.
    pub(super) fn until_sent(self: &Arc<Self>, body: Bytes) -> Bytes {
        if body.is_empty() || !self.is_http2() {
            return body;
        }
        let mut unsent = self.unsent();
        let id = unsent.next_id;
        unsent.next_id += 1;
        unsent.since.insert(id, self.nanos_now());
        Bytes::from_owner(UnsentBody { body, id, activity: Arc::clone(self) })
    }

    fn unsent(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the connection must close for what its client does not do, and why.
    pub(super) fn due(&self, timeouts: &Timeouts) -> Option<(Instant, &'static str)> {
        let oldest = self.unsent().since.first_key_value().map(|(_, nanos)| *nanos);
        let unread = oldest.map(|nanos| (self.instant(nanos) + timeouts.header, "unread_answer"));
        [unread, self.silent(timeouts)].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// When the connection has been silent for too long, and why; `None` while a request is being worked on, which has
    /// bounds of its own.
    fn silent(&self, timeouts: &Timeouts) -> Option<(Instant, &'static str)> {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let last_answer = self.instant(self.last_answer.load(Ordering::Relaxed));
        let is_first = self.requests.load(Ordering::Relaxed) == 0;
        let (idle, reason) = if is_first {
            (last_answer + timeouts.first_request, "no_first_request")
        } else {
            (last_answer + timeouts.idle, "idle")
        };
        // On HTTP/2 bytes come that belong to no request.
        match self.head_began.load(Ordering::Relaxed) {
            nanos if nanos != NEVER && !self.is_http2() => {
                let header = self.instant(nanos) + timeouts.header;
                Some(if header < idle { (header, "slow_header") } else { (idle, reason) })
            }
            _ => Some((idle, reason)),
        }
    }
}

/// A request that is being worked on.
pub(super) struct InFlight {
    /// When the request's first byte came.
    pub(super) first_byte_at: Instant,
    is_first: bool,
    activity: Arc<Activity>,
}

impl InFlight {
    /// When the answer is due. KMS's 250 ms run from when it begins to connect; a first request that comes later than
    /// that cannot be one for which KMS opened the connection, and has the full time.
    pub(super) fn deadline(&self, timeouts: &Timeouts) -> Deadline {
        // SPEC(META-TIME-001, ENC-TIME-001, DEC-TIME-001): answered within KMS's 250 ms.
        let since_accept = self.first_byte_at.saturating_duration_since(self.activity.accepted_at);
        let opened_the_connection = self.is_first && since_accept < KMS_TIMEOUT;
        let timeout = if opened_the_connection { timeouts.first_request_answer } else { timeouts.request };
        Deadline::after(self.first_byte_at, timeout)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.activity.last_answer.store(self.activity.nanos_now(), Ordering::Relaxed);
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body, which the HTTP library drops once it is sent, or its stream is reset.
struct UnsentBody {
    body: Bytes,
    id: u64,
    activity: Arc<Activity>,
}

impl AsRef<[u8]> for UnsentBody {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for UnsentBody {
    fn drop(&mut self) {
        self.activity.unsent().since.remove(&self.id);
    }
}

/// A stream that tells its connection's activity of every byte read.
pub(super) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Watched<S> {
    pub(super) const fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.bytes_read();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const TIMEOUTS: Timeouts = Timeouts {
        handshake: Duration::from_secs(1),
        first_request: Duration::from_secs(2),
        header: Duration::from_millis(500),
        body: Duration::from_secs(1),
        idle: Duration::from_secs(60),
        max_age: Duration::from_secs(900),
        request: Duration::from_millis(200),
        first_request_answer: Duration::from_millis(145),
        lame_duck: Duration::ZERO,
        drain: Duration::ZERO,
    };

    /// A connection that was accepted `ago`.
    fn activity(ago: Duration) -> Arc<Activity> {
        Arc::new(Activity::new(clock::now().checked_sub(ago).unwrap()))
    }

    #[test]
    fn a_first_request_right_after_connecting_has_less_time() {
        let fresh = activity(Duration::from_millis(40));
        fresh.bytes_read();
        let first = fresh.begin_request();
        assert_eq!(
            first.deadline(&TIMEOUTS),
            Deadline::after(first.first_byte_at, TIMEOUTS.first_request_answer)
        );
        drop(first);
        fresh.bytes_read();
        let second = fresh.begin_request();
        assert_eq!(second.deadline(&TIMEOUTS), Deadline::after(second.first_byte_at, TIMEOUTS.request));
    }

    #[test]
    fn a_connection_opened_ahead_of_time_is_not_punished() {
        let old = activity(KMS_TIMEOUT);
        old.bytes_read();
        let first = old.begin_request();
        assert_eq!(first.deadline(&TIMEOUTS), Deadline::after(first.first_byte_at, TIMEOUTS.request));
    }

    #[test]
    fn the_first_byte_counts_and_not_the_last() {
        let activity = activity(Duration::from_secs(1));
        activity.head_began.store(1_000, Ordering::Relaxed);
        activity.bytes_read();
        let request = activity.begin_request();
        assert_eq!(request.first_byte_at, activity.instant(1_000));
    }

    #[test]
    fn every_phase_is_bounded() {
        let activity = activity(Duration::from_secs(1));
        activity.established(false);
        let due_in = |activity: &Activity| {
            activity.due(&TIMEOUTS).map(|(at, reason)| (at.saturating_duration_since(clock::now()), reason))
        };
        let (left, reason) = due_in(&activity).unwrap();
        assert!(left <= TIMEOUTS.first_request && reason == "no_first_request");
        activity.bytes_read();
        let (left, reason) = due_in(&activity).unwrap();
        assert!(left <= TIMEOUTS.header && reason == "slow_header");
        let request = activity.begin_request();
        assert_eq!(due_in(&activity), None);
        drop(request);
        let (left, reason) = due_in(&activity).unwrap();
        assert!(left > TIMEOUTS.first_request && reason == "idle");
    }

    #[test]
    fn the_oldest_answer_that_nobody_reads_counts_though_others_are_worked_on() {
        let activity = activity(Duration::from_secs(1));
        activity.established(true);
        let answers = [1, 2].map(|_| activity.until_sent(Bytes::from_static(b"{}")));
        let oldest = activity.instant(activity.unsent().since[&0]);
        let _request = activity.begin_request();
        assert_eq!(activity.due(&TIMEOUTS), Some((oldest + TIMEOUTS.header, "unread_answer")));
        assert_eq!(answers[0], "{}");
        drop(answers);
        assert_eq!(activity.due(&TIMEOUTS), None);
    }
}
