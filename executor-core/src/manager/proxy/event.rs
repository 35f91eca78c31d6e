//! A flag that processes wait for.

use std::time::{Duration, Instant};

use super::{calls, creations, handle};
use crate::manager::{
    ManagerError,
    protocol::{Kind, Operation},
};

handle! {
    /// A flag that processes wait for. It corresponds to `manager.Event()`.
    ///
    /// [`Manager::event`] makes it. [`Event`](crate::Event) at the root of the crate does the same
    /// without a server.
    ///
    /// ```
    /// use executor::manager::Manager;
    /// use std::time::Duration;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let ready = manager.event()?;
    ///     assert!(!ready.wait_timeout(Duration::from_millis(1))?);
    ///     ready.set()?;
    ///     ready.wait()?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// [`Manager::event`]: crate::manager::Manager::event
    Event
}

creations! {
    /// Creates an event that is not set.
    fn event / event_async [](&self) -> Event
    { self.creation(Kind::Event) }
}

impl Event {
    calls! {
        /// Sets the flag. All that wait go on.
        fn set / set_async [](&self) -> ()
        { self.reference.request(Operation::EventSet) => |_answer| Ok(()) }

        /// Clears the flag.
        fn clear / clear_async [](&self) -> ()
        { self.reference.request(Operation::EventClear) => |_answer| Ok(()) }

        /// Returns whether the flag is set.
        fn is_set / is_set_async [](&self) -> bool
        { self.reference.request(Operation::EventIsSet) => |answer| Ok(answer.is_yes()) }

        /// Waits until the flag is set.
        fn wait / wait_async [](&self) -> ()
        { self.reference.request(Operation::EventWait) => |_answer| Ok(()) }
    }

    /// Waits until the flag is set, at most for `timeout`. Returns whether it was set.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool, ManagerError> {
        let deadline = Instant::now().checked_add(timeout);
        match self.reference.request(Operation::EventWait).call_until(deadline) {
            Err(ManagerError::TimedOut) => Ok(false),
            waited => waited.map(|_| true),
        }
    }
}
