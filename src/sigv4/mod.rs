//! Verification of inbound AWS Signature Version 4 (section Authentication, Appendix A), over the bytes as received.
//!
//! It comes in two steps, so that nothing is read for a stranger that need not be: [`check_head`] looks at
//! the head alone; [`PendingSignature::verify`] wants the whole body and is the only way to an [`Authenticated`].

mod authorization;
mod canonical;
mod credentials;
mod timestamp;

use std::fmt;
use std::time::SystemTime;

use http::{HeaderMap, Method};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use xks_spec::limits::MAX_CLOCK_SKEW;

use authorization::Authorization;
pub use credentials::{Credential, Credentials, DuplicateAccessKeyId};
use timestamp::Timestamp;

/// The `service` of every XKS credential scope.
pub const SERVICE: &str = "kms-xks-proxy";

/// What a signature covers of a request's head.
#[derive(Clone, Copy, Debug)]
pub struct SignedHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path as it came. It holds no `%`, no `//` and no query: routing has refused those.
    pub path: &'a str,
    /// The headers as they came.
    pub headers: &'a HeaderMap,
    /// `:authority`, on HTTP/2 alone.
    pub authority: Option<&'a str>,
}

/// Who signed a request. Exists only once the signature and the hash of the actual body have been compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// The access key id that names the secret.
    pub access_key_id: Box<str>,
    /// The Region in the credential scope.
    pub region: Box<str>,
    /// The request's time less ours when its head came, in seconds.
    pub skew_secs: i64,
}

/// A request whose head is in order and whose signature is yet to be computed.
pub struct PendingSignature<'a> {
    authorization: Authorization<'a>,
    timestamp: Timestamp,
    skew_secs: i64,
    credential: &'a Credential,
    head: SignedHead<'a>,
}

impl fmt::Debug for PendingSignature<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingSignature").field("head", &self.head).finish_non_exhaustive()
    }
}

/// Checks everything about a signature that the request's head alone can tell: the header's form, the access key id,
/// the scope, the clock skew, and that the signed headers are there and include host and x-amz-date.
///
/// # Errors
/// [`AuthenticationFault`]. An unknown access key id is answered with the work of a signature on an empty body, so that its
/// answer does not come sooner than one to a wrong signature; that it comes before the body is no secret.
pub fn check_head<'a>(
    head: SignedHead<'a>,
    credentials: &'a Credentials,
    now: SystemTime,
) -> Result<PendingSignature<'a>, AuthenticationFault> {
    let authorization = Authorization::parse(only_header(head.headers, "authorization")?)?;
    let timestamp = Timestamp::parse(only_header(head.headers, "x-amz-date")?)?;
    // SPEC(AUTH-SCOPE-003): the scope's date is the date of x-amz-date.
    if authorization.date != timestamp.date() {
        return Err(AuthenticationFault::ScopeDate);
    }
    // SPEC(AUTH-SCOPE-002): the scope's service is kms-xks-proxy.
    if authorization.service != SERVICE {
        return Err(AuthenticationFault::ScopeService);
    }
    // SPEC(AUTH-SKEW-001, AUTH-SKEW-002, AUTH-SKEW-003): more than five minutes off, either way, fails.
    let skew_secs = timestamp.skew_secs(now);
    if skew_secs.unsigned_abs() > MAX_CLOCK_SKEW.as_secs() {
        return Err(AuthenticationFault::ClockSkew { skew_secs });
    }
    canonical::check_signed_headers(&head, &authorization)?;
    // SPEC(AUTH-ROT-003, AUTH-KEY-002): the access key id selects the secret; an unknown one fails.
    let Some(credential) = credentials.find(authorization.access_key_id) else {
        let credential = credentials.decoy();
        let decoy = PendingSignature { authorization, timestamp, skew_secs, credential, head };
        let _ = decoy.matches(&Sha256::digest(b"").into());
        return Err(AuthenticationFault::UnknownAccessKeyId);
    };
    if credential.region().is_some_and(|pinned| pinned != authorization.region) {
        return Err(AuthenticationFault::ScopeRegion);
    }
    Ok(PendingSignature { authorization, timestamp, skew_secs, credential, head })
}

/// The access key id that a request names, for the log: of a signature that does not hold, at most 64 characters.
#[must_use]
pub fn claimed_access_key_id(headers: &HeaderMap) -> Option<Box<str>> {
    /// Enough to recognise an id, of which KMS's are at most 30 characters.
    const SHOWN_CHARS: usize = 64;
    let authorization = Authorization::parse(only_header(headers, "authorization").ok()?).ok()?;
    Some(authorization.access_key_id.chars().take(SHOWN_CHARS).collect())
}

impl PendingSignature<'_> {
    /// Compares the signature, computed over the head and the hash of `body`, with the one given.
    ///
    /// # Errors
    /// [`AuthenticationFault::BodyHash`] where the request claims another hash than its body has,
    /// [`AuthenticationFault::Signature`] where the signature is another.
    pub fn verify(&self, body: &[u8]) -> Result<Authenticated, AuthenticationFault> {
        let body_hash: [u8; 32] = Sha256::digest(body).into();
        self.check_claimed_hash(&body_hash)?;
        // SPEC(AUTH-SIG-001, AUTH-CRED-002, ERR-AUTH-001): MUST authenticate every request by SigV4, with our own copy.
        if !self.matches(&body_hash) {
            return Err(AuthenticationFault::Signature);
        }
        self.credential.remember_signing_key(&self.authorization, &self.timestamp);
        Ok(Authenticated {
            access_key_id: self.authorization.access_key_id.into(),
            region: self.authorization.region.into(),
            skew_secs: self.skew_secs,
        })
    }

    /// `x-amz-content-sha256`, signed or not, is the hash of the body or the request is refused: an `UNSIGNED-PAYLOAD`
    /// or a chunked signature would leave the body open.
    fn check_claimed_hash(&self, body_hash: &[u8; 32]) -> Result<(), AuthenticationFault> {
        let expected = canonical::hex(body_hash);
        let is_true = |claimed: &http::HeaderValue| claimed.as_bytes() == expected.as_slice();
        let claims = self.head.headers.get_all("x-amz-content-sha256");
        if claims.iter().all(is_true) { Ok(()) } else { Err(AuthenticationFault::BodyHash) }
    }

    fn matches(&self, body_hash: &[u8; 32]) -> bool {
        let request_hash = canonical::request_hash(&self.head, &self.authorization, body_hash);
        let string_to_sign = canonical::string_to_sign(&self.timestamp, &self.authorization, &request_hash);
        let signing_key = self.credential.signing_key(&self.authorization, &self.timestamp);
        let signature = aws_sigv4::sign::v4::calculate_signature(signing_key.expose(), &string_to_sign);
        // SPEC(AUTH-MATCH-001, AUTH-KEY-003): the computed signature is the one given; compared in constant time.
        signature.as_bytes().ct_eq(self.authorization.signature.as_bytes()).into()
    }
}

/// The value of a header that must be there once.
fn only_header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, AuthenticationFault> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(AuthenticationFault::HeaderMissing(name))?;
    if values.next().is_some() {
        return Err(AuthenticationFault::HeaderTwice(name));
    }
    value.to_str().map_err(|_| AuthenticationFault::HeaderNotAscii(name))
}

/// Why a request is not authenticated, for the log alone: outside there is one answer for all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AuthenticationFault {
    /// A header that must be there is not.
    #[error("there is no {0} header")]
    HeaderMissing(&'static str),
    /// A header that must be there once is there more often.
    #[error("there is more than one {0} header")]
    HeaderTwice(&'static str),
    /// A header holds more than visible ASCII.
    #[error("the {0} header is not ASCII")]
    HeaderNotAscii(&'static str),
    /// The Authorization header is of another form.
    #[error("the authorization header is malformed: {0}")]
    Malformed(&'static str),
    /// x-amz-date is no time.
    #[error("x-amz-date is not a time of the form YYYYMMDDTHHMMSSZ")]
    Timestamp,
    /// The scope's date is another than that of x-amz-date.
    #[error("the date in the credential scope is not that of x-amz-date")]
    ScopeDate,
    /// The scope's service is another.
    #[error("the service in the credential scope is not kms-xks-proxy")]
    ScopeService,
    /// The scope's Region is not the one that the store is pinned to.
    #[error("the Region in the credential scope is not the one that the key store is pinned to")]
    ScopeRegion,
    /// The request is too old, or from the future.
    #[error("the request's time is {skew_secs} s from ours (positive: it is ahead), more than 300 s")]
    ClockSkew {
        /// The request's time less ours, in seconds.
        skew_secs: i64,
    },
    /// A header that must be signed is not.
    #[error("{0} is not among the signed headers")]
    NotSigned(&'static str),
    /// A signed header is not there.
    #[error("a header that is listed as signed is not in the request")]
    SignedHeaderMissing,
    /// HTTP/2's `:authority` and a Host header differ.
    #[error("the host header differs from :authority")]
    HostDiffers,
    /// No credential of this key store has the id.
    #[error("no credential of this key store has this access key id")]
    UnknownAccessKeyId,
    /// x-amz-content-sha256 is not the hash of the body.
    #[error("x-amz-content-sha256 is not the SHA-256 of the body")]
    BodyHash,
    /// The signature is another.
    #[error("the signature does not match: the secret differs, or the request was changed on its way")]
    Signature,
}

impl AuthenticationFault {
    /// A short word for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::HeaderMissing(_) | Self::HeaderTwice(_) | Self::HeaderNotAscii(_) => "header",
            Self::Malformed(_) | Self::Timestamp => "malformed",
            Self::ScopeDate | Self::ScopeService | Self::ScopeRegion => "scope",
            Self::ClockSkew { .. } => "clock_skew",
            Self::NotSigned(_) | Self::SignedHeaderMissing | Self::HostDiffers => "signed_headers",
            Self::UnknownAccessKeyId => "access_key_id",
            Self::BodyHash => "body_hash",
            Self::Signature => "signature",
        }
    }
}

#[cfg(test)]
mod tests;
