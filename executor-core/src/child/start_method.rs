//! Start methods: how children are created. Set for the whole program, or sent by the parent.

use std::sync::{Mutex, PoisonError};

use super::identity;

/// How a process is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartMethod {
    /// The program is started again, from its own executable. The child has nothing of its parent
    /// except what it is given. This is the default.
    Spawn,
    /// A small child of this process, itself started by `Spawn`, makes a copy of itself. Everything
    /// that its [`preload`](crate::Context::preload) has set up exists in each copy, so starting
    /// can be much faster. References that `preload` leaves behind exist in all copies too, so the
    /// restrictions on references under [`Fork`](Self::Fork) apply to them.
    ForkServer,
    /// This process makes a copy of itself. It is refused if this process has more than one thread,
    /// because locks that other threads hold would stay locked forever in the copy. Descriptors of
    /// this process are open in the copy, as with any fork.
    ///
    /// The copy runs its task and nothing else of the program, so the only private memory of this
    /// process that it can reach is in statics. Handles of this library in statics are inert in the
    /// copy. Guards release nothing when they are dropped, and panic when they are read or written
    /// through. [`SharedBytes`](crate::SharedBytes) that are not frozen panic too, and their
    /// [`get_mut`](crate::SharedBytes::get_mut) is `None`. The handles cannot protect a reference
    /// that was leaked.
    ///
    /// **A program that keeps a reference into shared memory in a static must not use it in the
    /// task of such a process.** Examples are a leaked `&'static mut` of a guard or of unsent
    /// `SharedBytes`, and a reference into another library's shared mapping. Both processes would
    /// have a reference that is supposed to be exclusive, and neither the compiler nor a run-time
    /// check can detect this.
    Fork,
}

impl StartMethod {
    /// Returns the start methods of this system, the default first.
    ///
    /// ```
    /// use executor::StartMethod;
    /// assert_eq!(StartMethod::available()[0], StartMethod::Spawn);
    /// ```
    pub fn available() -> &'static [StartMethod] {
        &[StartMethod::Spawn, StartMethod::ForkServer, StartMethod::Fork]
    }

    fn number(self) -> u8 {
        match self {
            StartMethod::Spawn => 0,
            StartMethod::ForkServer => 1,
            StartMethod::Fork => 2,
        }
    }
}

static SET: Mutex<Option<StartMethod>> = Mutex::new(None);

/// Returned by [`set_start_method`] if the start method was set before.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the start method was set to {0:?} before; set it once, or use `force_start_method`")]
pub struct StartMethodAlreadySet(pub StartMethod);

crate::debug::debug_is_display!(StartMethodAlreadySet);

/// Returns the default start method: the one that was set, otherwise the one that this process's
/// parent uses, otherwise [`StartMethod::Spawn`].
pub fn start_method() -> StartMethod {
    if let Some(set) = *SET.lock().unwrap_or_else(PoisonError::into_inner) {
        return set;
    }
    let told = identity::told().and_then(|told| told.start_method);
    StartMethod::available()
        .iter()
        .copied()
        .find(|method| Some(method.number()) == told)
        .unwrap_or(StartMethod::Spawn)
}

/// Sets the default start method for this process and its descendants.
///
/// # Errors
/// If it was set before.
pub fn set_start_method(method: StartMethod) -> Result<(), StartMethodAlreadySet> {
    let mut set = SET.lock().unwrap_or_else(PoisonError::into_inner);
    match *set {
        Some(before) => Err(StartMethodAlreadySet(before)),
        None => {
            *set = Some(method);
            Ok(())
        }
    }
}

/// Sets the default start method like [`set_start_method`], even if it was set before.
pub fn force_start_method(method: StartMethod) {
    *SET.lock().unwrap_or_else(PoisonError::into_inner) = Some(method);
}

/// Returns the start method to send to a child, as a number.
pub(crate) fn number_for_child(own: Option<StartMethod>) -> u8 {
    own.unwrap_or_else(start_method).number()
}
