//! Keeps objects alive for handles that are on their way to other processes, where the server is
//! reached over TCP and cannot watch their pipes.
//!
//! ```text
//!  serialize ─► pipe: the end travels with the message
//!  keeper: the other end, and a hold on the object ── no end is open any more ─► the hold is dropped
//! ```
//!
//! So a message that is never received keeps nothing alive, and one that is waited for keeps its
//! object until the receiver has claimed it, as long as this process lives and has its connection.
//! One thread watches all pipes. It ends with the last of them.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    thread,
};

use rustix::{
    event::epoll,
    pipe::{PipeFlags, pipe_with},
};

use super::{super::error::ManagerError, reference::Hold};
use crate::{
    os::{
        fork::{Creator, PerProcess},
        process::above_stdio,
        std_or_model::lock,
    },
    wire::attachment::Attachment,
};

/// What one handle has on its way.
#[derive(Clone)]
pub(super) struct Kept {
    /// The keeper of a fork counts anew, so there the number is one of something else.
    creator: Creator,
    number: u64,
    /// While this is open anywhere, the object lives.
    pub(super) end: Attachment,
}

#[derive(Default)]
struct Keeper {
    poll: Option<Arc<OwnedFd>>,
    pipes: HashMap<u64, (OwnedFd, Arc<Hold>)>,
    /// Counts pipes. A counter of 64 bits that goes up by one for each does not overflow.
    last: u64,
    has_thread: bool,
}

impl Kept {
    /// Whether a process has made it from which this one was forked. That one keeps the object, as
    /// long as it lives.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.creator.is_elsewhere()
    }
}

static KEEPER: PerProcess<Mutex<Keeper>> = PerProcess::new(Mutex::default);

/// Keeps a hold while an end of the pipe is open that is returned.
pub(super) fn keep(hold: Arc<Hold>) -> Result<Kept, ManagerError> {
    let refused = ManagerError::os("a pipe for a managed object");
    let (watched, end) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| refused(error.into()))?;
    let end = above_stdio(end).map_err(ManagerError::os("a pipe for a managed object"))?;
    kill_point!(ClientFarPipeMade);
    let place = KEEPER.get();
    let mut keeper = lock(place);
    keeper.last += 1;
    let number = keeper.last;
    let watched = keeper.watch(number, watched, place);
    let before = match watched {
        Ok(watched) => keeper.pipes.insert(number, (watched, hold)),
        Err(error) => {
            drop(keeper);
            return Err(ManagerError::os("to watch a pipe for a managed object")(error));
        }
    };
    drop(keeper);
    drop(before);
    kill_point!(ClientFarLeased);
    Ok(Kept { creator: Creator::here(), number, end: Arc::new(end) })
}

/// Keeps another hold of the same object from now on: the connection was made again.
pub(super) fn renew(kept: &Kept, hold: Arc<Hold>) {
    debug_assert!(!kept.is_elsewhere(), "its number means nothing here");
    let mut keeper = lock(KEEPER.get());
    let before = keeper.pipes.get_mut(&kept.number).map(|(_, old)| std::mem::replace(old, hold));
    drop(keeper);
    // It may be the last of a lost connection.
    drop(before);
}

impl Keeper {
    /// Lets the thread watch a pipe. Starts the thread if there is none.
    fn watch(
        &mut self,
        number: u64,
        pipe: OwnedFd,
        place: &'static Mutex<Keeper>,
    ) -> io::Result<OwnedFd> {
        let poll = match &self.poll {
            Some(poll) => Arc::clone(poll),
            None => {
                let made = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
                Arc::clone(self.poll.insert(made))
            }
        };
        let data = epoll::EventData::new_u64(number);
        epoll::add(&poll, &pipe, data, epoll::EventFlags::empty())?;
        if !self.has_thread {
            let watched = Arc::clone(&poll);
            let thread = thread::Builder::new().name("executor-manager".to_owned());
            if let Err(error) = thread.spawn(move || watch_all(place, &watched)) {
                let _ = epoll::delete(&poll, &pipe);
                return Err(error);
            }
            self.has_thread = true;
        }
        Ok(pipe)
    }
}

/// Drops the holds of pipes that nobody has any more, until there are none.
fn watch_all(place: &Mutex<Keeper>, poll: &OwnedFd) {
    let none =
        epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
    let mut events = [none; 64];
    loop {
        // It waits as long as somebody has an end. The end of each process closes its own.
        let count = match epoll::wait(poll, &mut events[..], None) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                // Nothing is watched any more, so all is kept until this process ends.
                tracing::error!(%error, "handles that were sent cannot be watched");
                return;
            }
        };
        let mut ended = Vec::new();
        let mut keeper = lock(place);
        for event in &events[..count] {
            if let Some((pipe, hold)) = keeper.pipes.remove(&event.data.u64()) {
                // Closing it is not enough: a child that this process has forked may have a copy.
                let _ = epoll::delete(poll, &pipe);
                ended.push(hold);
            }
        }
        let over = keeper.pipes.is_empty();
        keeper.has_thread = !over;
        drop(keeper);
        kill_point!(ClientFarLeaseEnded);
        // Each tells the server, while no lock is held.
        drop(ended);
        if over {
            return;
        }
    }
}
