//! What parent and child share.
pub mod codec;
