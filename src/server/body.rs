//! Reading a request's body within a size and a time, or getting rid of it.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::{timeout, timeout_at};

use super::activity::InFlight;
use super::places::Places;
use crate::error::Error;

/// Why there is no body to go on with.
pub(super) enum BodyEnd {
    /// An answer is possible.
    Refused(Error),
    /// The body did not come in time, for the reason given: the connection closes without an answer.
    TooSlow(&'static str),
}

/// Its own time is over.
const OUT_OF_TIME: BodyEnd = BodyEnd::TooSlow("the body did not come in time");
/// [`Places::keep_while`]
pub(super) const DISPLACED: BodyEnd =
    BodyEnd::TooSlow("the body did not come in time: others needed the place");

/// The whole body, waited for until an instant.
///
/// # Errors
/// [`BodyEnd`]; a body that says that it is too long is refused before any of it is read.
pub(super) async fn read(body: &mut Incoming, max_bytes: usize, until: Instant) -> Result<Bytes, BodyEnd> {
    let too_long = || BodyEnd::Refused(Error::BodyTooLong { max_bytes });
    let size = body.size_hint();
    if size.lower() > max_bytes as u64 {
        return Err(too_long());
    }
    let whole = async {
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| BodyEnd::Refused(Error::BodyIncomplete))?;
            // Trailers carry nothing that is used.
            let Ok(data) = frame.into_data() else { continue };
            if first.len() + rest.len() + data.len() > max_bytes {
                return Err(too_long());
            }
            // Nearly every body comes in one piece, which needs no copy.
            if first.is_empty() { first = data } else { rest.extend_from_slice(&data) }
        }
        if rest.is_empty() {
            return Ok(first);
        }
        let mut joined = BytesMut::with_capacity(first.len() + rest.len());
        joined.extend_from_slice(&first);
        joined.extend_from_slice(&rest);
        Ok(joined.freeze())
    };
    timeout_at(until.into(), whole).await.unwrap_or(Err(OUT_OF_TIME))
}

/// Most that is read of a body only to be thrown away.
const MAX_DISCARDED_BYTES: usize = 1024 * 1024;

/// Reads what is left of a body after its answer and throws it away, up to a size and a time, and as far as there are places.
///
/// A client that is still sending must not be cut off: a reset would take the answer away from it, on HTTP/2 by
/// RST_STREAM and on HTTP/1.1 by the TCP connection's.
pub(super) fn discard(mut body: Incoming, time: Duration, in_flight: InFlight, places: &Places) {
    if body.is_end_stream() {
        return;
    }
    let Some(place) = places.for_a_discard() else { return };
    tokio::spawn(async move {
        // The request is not over for its connection until its body is.
        let _held = (in_flight, place);
        let _ = timeout(time, async {
            let mut left = MAX_DISCARDED_BYTES;
            while let Some(Ok(frame)) = body.frame().await {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(bytes) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
        })
        .await;
    });
}
