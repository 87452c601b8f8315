//! Nothing of its own: the manifest says which kryoptic is built, and how.
