//! The supertrait of all sealed traits.

/// The supertrait of every public trait that only this crate implements. It cannot be named from
/// outside, so a trait that requires it cannot be implemented there. Such a trait can get new items
/// without breaking users. Its documentation says: "This trait is sealed: it cannot be implemented
/// outside this crate."
///
/// `By` contains the parameters of a trait that one type implements several times.
pub trait Sealed<By = ()> {}
