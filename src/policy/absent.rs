//! A build without Cedar: there are no policies, and a configuration that names some is refused.

use std::sync::Arc;

use super::{Denial, PolicyFault, PolicySource, Query};

/// The policies of a store. There are none in this build.
#[derive(Debug)]
pub enum Policies {}

impl Policies {
    /// # Errors
    /// Always.
    pub fn load(_: &[PolicySource]) -> Result<Self, Vec<PolicyFault>> {
        Err(vec![PolicyFault::NotBuilt])
    }

    /// The ids of all policies, sorted.
    #[must_use]
    pub fn ids(&self) -> Vec<Arc<str>> {
        match *self {}
    }

    /// # Errors
    /// There is nothing to decide on.
    pub fn decide(&self, _: &Query<'_>) -> Result<Arc<str>, Denial> {
        match *self {}
    }
}
