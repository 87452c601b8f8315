//! What several members' failures amount to.

use crate::hsm::HsmError;

/// What members failed with.
#[derive(Default)]
pub(super) struct Failures(Vec<(usize, HsmError)>);

impl Failures {
    pub(super) fn note(&mut self, member: usize, error: HsmError) {
        self.0.push((member, error));
    }

    /// Which member failed, and with what.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(usize, HsmError)> {
        self.0.iter()
    }

    /// What is told of them all: what a later try may cure goes before what it may not, so that a key is only said to be
    /// absent, or a ciphertext to be bad, where every member says so.
    pub(super) fn verdict(self) -> HsmError {
        let is_bad = |(_, error): &(usize, HsmError)| matches!(error, HsmError::BadCiphertext { .. });
        if self.0.iter().filter(|failure| is_bad(failure)).count() > 1 {
            // Two that agree need no third.
            return HsmError::BadCiphertext { is_certain: true };
        }
        let worst = self.0.into_iter().map(|(_, error)| error).min_by_key(|error| match error {
            HsmError::DeadlinePassed | HsmError::TooLate | HsmError::KeyWithdrawn => 0,
            HsmError::Stalled => 1,
            HsmError::QueueFull | HsmError::TooManySearches => 2,
            HsmError::Device { .. } | HsmError::Worker | HsmError::Unverified | HsmError::UnsafeIv => 3,
            HsmError::Unavailable(_) | HsmError::KeyUnproven => 4,
            HsmError::KeyDiffers | HsmError::KeyOfAnotherStore => 5,
            HsmError::KeyAmbiguous { .. } => 6,
            HsmError::KeyNotPermitted { .. } => 7,
            HsmError::BadCiphertext { .. } => 8,
            HsmError::KeyNotFound => 9,
        });
        worst.unwrap_or(HsmError::Worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_absent_and_a_ciphertext_bad_only_where_all_say_so() {
        let verdict = |errors: &[HsmError]| {
            let mut failures = Failures::default();
            errors.iter().for_each(|error| failures.note(0, error.clone()));
            failures.verdict()
        };
        let gone = HsmError::Unavailable("gone".into());
        assert_eq!(verdict(&[HsmError::KeyNotFound, gone.clone()]), gone);
        assert_eq!(verdict(&[HsmError::BadCiphertext { is_certain: true }, gone.clone()]), gone);
        assert_eq!(verdict(&[HsmError::KeyNotFound, HsmError::KeyNotFound]), HsmError::KeyNotFound);
        assert_eq!(verdict(&[gone, HsmError::DeadlinePassed]), HsmError::DeadlinePassed);
        assert_eq!(verdict(&[HsmError::KeyNotFound, HsmError::KeyDiffers]), HsmError::KeyDiffers);
    }
}
