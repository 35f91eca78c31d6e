//! How children come into being: set for the whole program, or told by the parent.

use std::sync::{Mutex, PoisonError};

use super::identity;

/// How a process comes into being.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartMethod {
    /// The program is started again, from its own executable. It has nothing of its parent but what it is given. The default.
    Spawn,
    /// A small child of this process, itself started by `Spawn`, makes a copy of itself. What its
    /// [`preload`](crate::Context::preload) has set up is there in each copy, so the start can be much faster. What is said of
    /// references under [`Fork`](Self::Fork) holds for what `preload` leaves behind: all copies have it.
    ForkServer,
    /// This process makes a copy of itself. Refused where it has more than one thread, since what other threads had locked
    /// would stay locked for ever in the copy. Descriptors of this process are open in the copy, as everywhere.
    ///
    /// The copy runs its task and nothing else of the program, so of what this process has for itself it can reach statics
    /// only. In those, handles of this library are inert: guards give nothing back when they are dropped, and panic when they
    /// are read or written through; so do [`SharedBytes`](crate::SharedBytes) that are not frozen, and their
    /// [`get_mut`](crate::SharedBytes::get_mut) is `None`. What they cannot know of is a reference that was leaked.
    ///
    /// **A program that keeps a reference into shared memory in a static** (a `&'static mut` of a guard or of unsent
    /// `SharedBytes` that were leaked, or of another library's shared mapping) **must not use it in the task of such a process.**
    /// Both processes would have the reference that is said to be the only one, and no compiler and no check can tell.
    Fork,
}

impl StartMethod {
    /// Those of this system, the default first.
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

/// The start method was set before: [`set_start_method`].
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the start method was set to {0:?} before; set it once, or use `force_start_method`")]
pub struct StartMethodAlreadySet(pub StartMethod);

crate::debug::debug_is_display!(StartMethodAlreadySet);

/// How processes are started where nothing else is said: as was set, else as this process's parent does, else
/// [`StartMethod::Spawn`].
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

/// Sets how processes are started where nothing else is said, in this process and those below it.
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

/// As [`set_start_method`], also if it was set before.
pub fn force_start_method(method: StartMethod) {
    *SET.lock().unwrap_or_else(PoisonError::into_inner) = Some(method);
}

/// What a child is told of it.
pub(crate) fn number_for_child(own: Option<StartMethod>) -> u8 {
    own.unwrap_or_else(start_method).number()
}
