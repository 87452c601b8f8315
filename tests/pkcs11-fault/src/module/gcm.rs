//! The IV of an AES-GCM encryption, as vendors' modules treat it.

use super::call::Call;
use super::caller::{Arg, count, ulong};
use super::random;
use crate::fault::{Fault, GcmIv};
use cryptoki_sys::{
    CK_BYTE, CK_GCM_PARAMS, CK_MECHANISM, CK_RV, CKM_AES_GCM, CKR_MECHANISM_PARAM_INVALID, CKR_OK,
};

/// Length of the IV that the caller leaves to the module.
const WRITTEN_BACK_BYTES: usize = 12;
/// Length of the IV that the module appends.
const APPENDED_BYTES: usize = 16;
/// Length of the longest IV that a module may have to take, by the standard.
const LONGEST_IV_BYTES: usize = 256;

/// An AES-GCM operation that was begun.
pub(super) struct Gcm {
    pub(super) tag_bytes: usize,
    /// The IV that we made in place of the caller's, with the parameters that lead to it.
    own: Option<Box<OwnIv>>,
}

struct OwnIv {
    /// Some modules look at the parameters until the operation ends, so they stay where they are.
    parameters: CK_GCM_PARAMS,
    iv: Vec<CK_BYTE>,
    delivery: Delivery,
}

// SAFETY: the pointers lead to `iv`, which moves along, and to the application's memory, of which the application
// decides in which thread it is used: in that of its own next call.
unsafe impl Send for OwnIv {}

/// How the application learns the IV.
#[derive(Clone, Copy)]
enum Delivery {
    /// Not at all.
    None,
    /// In its own buffer.
    WriteBack(Arg<CK_BYTE>),
    /// After the tag.
    Append,
}

/// What is left to do with an IV when the encryption is done.
pub(super) struct Finish {
    iv: Vec<CK_BYTE>,
    delivery: Delivery,
}

impl Gcm {
    /// What the rules make of a mechanism: `None` if it is not AES-GCM.
    pub(super) fn for_encryption(call: &Call, mechanism: &CK_MECHANISM) -> Result<Option<Self>, CK_RV> {
        let Some(parameters) = gcm_parameters(mechanism) else { return Ok(None) };
        let wanted = |fault: &Fault| match fault {
            Fault::GcmIv(behaviour) => Some(*behaviour),
            _ => None,
        };
        let own =
            call.struck_with(wanted).map(|behaviour| OwnIv::new(call, behaviour, parameters)).transpose()?;
        Ok(Some(Gcm { tag_bytes: tag_bytes(&parameters), own }))
    }

    /// The same for a decryption, whose IV is always the caller's.
    pub(super) fn for_decryption(mechanism: &CK_MECHANISM) -> Option<Self> {
        Some(Gcm { tag_bytes: tag_bytes(&gcm_parameters(mechanism)?), own: None })
    }

    /// The mechanism to pass to the real module in place of the caller's.
    pub(super) fn mechanism(&mut self, asked: &CK_MECHANISM) -> CK_MECHANISM {
        let Some(own) = &mut self.own else { return *asked };
        CK_MECHANISM { pParameter: (&raw mut own.parameters).cast(), ..*asked }
    }

    pub(super) fn finish(&self) -> Option<Finish> {
        self.own.as_ref().map(|own| Finish { iv: own.iv.clone(), delivery: own.delivery })
    }
}

impl OwnIv {
    fn new(call: &Call, behaviour: GcmIv, asked: CK_GCM_PARAMS) -> Result<Box<Self>, CK_RV> {
        // SAFETY: the application says that its IV is there.
        let buffer = unsafe { Arg::new(asked.pIv) };
        let length = count(asked.ulIvLen);
        if length > LONGEST_IV_BYTES {
            return Err(CKR_MECHANISM_PARAM_INVALID);
        }
        let left_to_module = length == WRITTEN_BACK_BYTES
            && !buffer.is_null()
            && buffer.values(length).iter().all(|byte| *byte == 0);
        let absent = buffer.is_null() && length == 0;
        let (is_as_expected, bytes, delivery) = match behaviour {
            GcmIv::WrittenBack | GcmIv::Repeated => {
                (left_to_module, WRITTEN_BACK_BYTES, Delivery::WriteBack(buffer))
            }
            GcmIv::Appended | GcmIv::AppendedRepeated => (absent, APPENDED_BYTES, Delivery::Append),
            GcmIv::Zeros => (length > 0, length, Delivery::None),
        };
        if !is_as_expected {
            return Err(CKR_MECHANISM_PARAM_INVALID);
        }
        let mut iv = vec![0; bytes];
        match behaviour {
            GcmIv::WrittenBack | GcmIv::Appended => randomise(call, &mut iv)?,
            GcmIv::Repeated | GcmIv::AppendedRepeated => random::repeat(&mut iv),
            GcmIv::Zeros => {}
        }
        let (length, bits) = (ulong(bytes), ulong(8 * bytes));
        let parameters = CK_GCM_PARAMS { pIv: iv.as_mut_ptr(), ulIvLen: length, ulIvBits: bits, ..asked };
        Ok(Box::new(OwnIv { parameters, iv, delivery }))
    }
}

impl Finish {
    /// How many bytes come after the tag.
    pub(super) fn appended_bytes(&self) -> usize {
        match self.delivery {
            Delivery::Append => self.iv.len(),
            Delivery::None | Delivery::WriteBack(_) => 0,
        }
    }

    /// Hands the IV over; `appended` is the place after the tag.
    pub(super) fn deliver(&self, appended: &mut [u8]) {
        match self.delivery {
            Delivery::None => {}
            Delivery::WriteBack(buffer) => buffer.values(self.iv.len()).copy_from_slice(&self.iv),
            Delivery::Append => appended.copy_from_slice(&self.iv),
        }
    }
}

/// The parameters of an AES-GCM mechanism.
fn gcm_parameters(mechanism: &CK_MECHANISM) -> Option<CK_GCM_PARAMS> {
    let is_gcm = mechanism.mechanism == CKM_AES_GCM;
    if !is_gcm || count(mechanism.ulParameterLen) != size_of::<CK_GCM_PARAMS>() {
        return None;
    }
    // SAFETY: by the mechanism and the length, the application says that such parameters are there.
    unsafe { Arg::new(mechanism.pParameter.cast::<CK_GCM_PARAMS>()) }.read()
}

fn tag_bytes(parameters: &CK_GCM_PARAMS) -> usize {
    count(parameters.ulTagBits).div_ceil(8)
}

/// Random bytes of the token's own.
fn randomise(call: &Call, bytes: &mut [u8]) -> Result<(), CK_RV> {
    // SAFETY: bytes of ours, and their length.
    match unsafe { ask!(call.real, C_GenerateRandom(call.session, bytes.as_mut_ptr(), ulong(bytes.len()))) } {
        CKR_OK => Ok(()),
        rv => Err(rv),
    }
}
