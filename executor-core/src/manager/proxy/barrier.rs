//! A place where a number of threads wait for each other.

use std::time::{Duration, Instant};

use super::{GRACE, calls, creations, handle};
use crate::{
    manager::{
        ManagerError,
        client::Answer,
        protocol::{Kind, Operation, Status},
    },
    sync::BarrierError,
};

handle! {
    /// A place where a number of threads, of any processes, wait for each other. It corresponds to
    /// `manager.Barrier()`.
    ///
    /// [`Manager::barrier`] makes it. [`Barrier`](crate::Barrier) at the root of the crate does the
    /// same without a server.
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let barrier = manager.barrier(2)?;
    ///     let other = barrier.clone();
    ///     let thread = std::thread::spawn(move || other.wait());
    ///     let places = [barrier.wait()??, thread.join().unwrap()??];
    ///     assert_eq!(places[0] + places[1], 1, "one is 0, the other 1");
    ///     Ok(())
    /// }
    /// ```
    ///
    /// [`Manager::barrier`]: crate::manager::Manager::barrier
    Barrier
}

creations! {
    /// Creates a barrier for this number of threads.
    ///
    /// # Errors
    /// [`ManagerError::Refused`] if the number is 0.
    fn barrier / barrier_async [](&self, parties: usize) -> Barrier
    {
        {
            if parties == 0 {
                return Err(ManagerError::Refused("a barrier is for at least one thread"));
            }
            self.creation(Kind::Barrier).number(parties as u64)
        }
    }
}

fn place(answer: &Answer) -> Result<usize, BarrierError> {
    match answer.status() {
        Status::Broken => Err(BarrierError::Broken),
        _ => Ok(answer.number() as usize),
    }
}

impl Barrier {
    calls! {
        /// Waits until all parties have come. Returns how many came before this thread: a different
        /// number for each.
        ///
        /// The inner error says that the barrier is broken: it was aborted or reset, or one that
        /// waited gave up or died.
        fn wait / wait_async [](&self) -> Result<usize, BarrierError>
        { self.reference.request(Operation::BarrierWait) => |answer| Ok(place(&answer)) }

        /// Breaks the barrier. All that wait get an error, and so do those that come until it is
        /// [reset](Self::reset).
        fn abort / abort_async [](&self) -> ()
        { self.reference.request(Operation::BarrierAbort) => |_answer| Ok(()) }

        /// Makes the barrier as new. All that wait get an error.
        fn reset / reset_async [](&self) -> ()
        { self.reference.request(Operation::BarrierReset) => |_answer| Ok(()) }

        /// Returns how many parties the barrier is for.
        fn parties / parties_async [](&self) -> usize
        {
            self.reference.request(Operation::BarrierState)
                => |answer| Ok(answer.numbers::<3>()?[0] as usize)
        }

        /// Returns how many threads wait.
        fn waiting / waiting_async [](&self) -> usize
        {
            self.reference.request(Operation::BarrierState)
                => |answer| Ok(answer.numbers::<3>()?[1] as usize)
        }

        /// Returns whether the barrier is broken.
        fn is_broken / is_broken_async [](&self) -> bool
        {
            self.reference.request(Operation::BarrierState)
                => |answer| Ok(answer.numbers::<3>()?[2] == 1)
        }
    }

    /// Waits at most for `timeout`. If the others have not come by then, the barrier is broken.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`] if the server does not answer for a second after that, for
    /// example because it was stopped. Then it is unknown whether the others have passed.
    pub fn wait_timeout(
        &self,
        timeout: Duration,
    ) -> Result<Result<usize, BarrierError>, ManagerError> {
        let deadline = Instant::now().checked_add(timeout);
        let answer = self
            .reference
            .request(Operation::BarrierWait)
            .call_then_give_up(deadline, Some(GRACE))?;
        if answer.status() == Status::GivenUp {
            return Ok(Err(BarrierError::TimedOut));
        }
        Ok(place(&answer))
    }
}
