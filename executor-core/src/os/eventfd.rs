//! An eventfd that wakes a polling thread. Wake-ups coalesce, so a wake-up never blocks.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::event::{EventfdFlags, eventfd};

use super::process::above_stdio;

/// An eventfd that a thread polls.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(EventFd(above_stdio(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)?))
    }

    /// Wakes the polling thread, now or at its next poll.
    pub(crate) fn ring(&self) {
        // EAGAIN means that the counter is already full of wake-ups. EINTR cannot happen to a
        // non-blocking write.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Consumes all wake-ups so far.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
