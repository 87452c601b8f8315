//! `deploy/aws`.
