//! The scheduler's record of whether the pool accepts tasks, and why not.

use crate::error::{BrokenCause, TaskError};

/// Whether tasks are accepted. The module's documentation has a picture of the states. There is no
/// way back from a state to an earlier one.
pub(super) struct PoolState(State);

enum State {
    Open,
    Draining,
    Killed,
    Broken(BrokenCause),
}

impl PoolState {
    pub(super) fn new() -> Self {
        PoolState(State::Open)
    }

    /// Returns whether new tasks are accepted.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        matches!(self.0, State::Open)
    }

    /// Returns whether the pool was killed or is broken. No queued task is sent any more.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        matches!(self.0, State::Killed | State::Broken(_))
    }

    /// Returns the error for tasks that are not run, if there is one.
    #[inline]
    pub(super) fn refusal(&self) -> Option<TaskError> {
        match &self.0 {
            State::Open => None,
            State::Draining | State::Killed => Some(TaskError::Shutdown),
            State::Broken(cause) => Some(TaskError::Broken(cause.clone())),
        }
    }

    /// Returns why the pool is broken, if it is.
    pub(super) fn broken(&self) -> Option<&BrokenCause> {
        match &self.0 {
            State::Broken(cause) => Some(cause),
            _ => None,
        }
    }

    /// Accepts no more tasks. Returns whether any were accepted before.
    pub(super) fn transition_to_draining(&mut self) -> bool {
        let was_open = self.is_open();
        if was_open {
            self.0 = State::Draining;
        }
        was_open
    }

    /// Ends the pool as its user wants. Returns `false`, and changes nothing, if it is over
    /// already.
    pub(super) fn transition_to_killed(&mut self) -> bool {
        let was_alive = !self.is_over();
        if was_alive {
            self.0 = State::Killed;
        }
        was_alive
    }

    /// Ends the pool because it cannot go on. Returns `false`, and changes nothing, if it is over
    /// already: the first cause is the one that is reported.
    #[must_use]
    pub(super) fn transition_to_broken(&mut self, cause: &BrokenCause) -> bool {
        let was_alive = !self.is_over();
        if was_alive {
            self.0 = State::Broken(cause.clone());
        }
        was_alive
    }
}
