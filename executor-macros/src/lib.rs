//! The attributes of the `executor` crate.
