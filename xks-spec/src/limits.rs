//! Lengths and times that the specification fixes. Lengths are in bytes before Base64 unless a name says otherwise.

use std::time::Duration;

/// Longest plaintext, and so ciphertext, that a proxy must take (sections Encrypt and Decrypt).
pub const MIN_SUPPORTED_PLAINTEXT_BYTES: usize = 4300;
/// Longest additional authenticated data that a proxy must take (sections Encrypt and Decrypt).
pub const MIN_SUPPORTED_AAD_BYTES: usize = 8192;
/// Longest additional authenticated data that the framing's two-byte length can hold.
pub const MAX_FRAMED_AAD_BYTES: usize = u16::MAX as usize;
/// Longest ciphertext metadata (section Encrypt).
pub const MAX_CIPHERTEXT_METADATA_BYTES: usize = 20;
/// Lengths that an initialization vector may have (section Encrypt).
pub const IV_BYTES: [usize; 2] = [12, 16];
/// Length of the authentication tag (section Encrypt).
pub const TAG_BYTES: usize = 16;
/// Longest external key id, in characters (section API operations).
pub const MAX_EXTERNAL_KEY_ID_CHARS: usize = 128;
/// Shortest and longest `XksProxyUriPath`, in characters (section API operations; KMS's API model for the minimum).
pub const URI_PATH_CHARS: std::ops::RangeInclusive<usize> = 10..=128;
/// Longest Amazon resource name that must be taken, in characters (section API operations).
pub const MAX_ARN_CHARS: usize = 2048;
/// An `errorMessage` is shorter than this, in characters (section Error codes).
pub const ERROR_MESSAGE_CHARS_BELOW: usize = 512;
/// Most `keyUsage` values in a GetKeyMetadata answer.
pub const MAX_KEY_USAGES: usize = 10;
/// Most entries of `ekmFleetDetails` in a GetHealthStatus answer.
pub const MAX_FLEET_DETAILS: usize = 10;
/// Lengths of an access key id, in characters (Appendix A).
pub const ACCESS_KEY_ID_CHARS: std::ops::RangeInclusive<usize> = 20..=30;
/// Lengths of a secret access key, in characters (section XKS proxy configuration in AWS KMS console).
pub const SECRET_ACCESS_KEY_CHARS: std::ops::RangeInclusive<usize> = 43..=64;
/// How far a request's time may be from the proxy's (Appendix A, task 4).
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);
/// When KMS gives up on an answer, counted from its start to connect (section GetKeyMetadata, KMS considerations).
pub const KMS_TIMEOUT: Duration = Duration::from_millis(250);
/// Longest round trip between KMS and the proxy that AWS recommends (same section).
pub const RECOMMENDED_ROUND_TRIP: Duration = Duration::from_millis(35);
/// Oldest health result that may be answered (section GetHealthStatus).
pub const MAX_HEALTH_RESULT_AGE: Duration = Duration::from_secs(60);
