//! An in-memory transport with both ends in one process, for tests. It can produce faults that no
//! real transport would produce on demand.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex},
};

use super::{
    Closed, Inbox, Link, WorkerEnd,
    board::Board,
    conformance::Pair,
    ipc::{Window, cost},
    outbox::Outbox,
};
use crate::{
    os::memory::Shared,
    wire::{
        frame::{Assembler, Frame, FromWorker, Header, Order, PART_BYTES_MAX, Reply, ToWorker},
        payload::Payload,
    },
};

/// A queue of messages that either side may close.
#[derive(Default)]
struct Wire {
    state: Mutex<(VecDeque<Vec<u8>>, bool)>,
    changed: Condvar,
}

impl Wire {
    fn send(&self, message: &[u8]) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.1 {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        state.0.push_back(message.to_vec());
        self.changed.notify_all();
        Ok(())
    }

    fn recv(&self) -> Result<Vec<u8>, Closed> {
        let state = self.state.lock().unwrap();
        let mut state =
            self.changed.wait_while(state, |state| state.0.is_empty() && !state.1).unwrap();
        state.0.pop_front().ok_or(Closed::Gone)
    }

    fn cut(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// The pool's sending end.
struct MemoryLink {
    board: Shared<Board>,
    sending: Mutex<(Outbox, Window)>,
    down: Arc<Wire>,
    up: Arc<Wire>,
}

impl MemoryLink {
    fn pump(&self, change: impl FnOnce(&mut Outbox, &mut Window)) {
        let mut sending = self.sending.lock().unwrap();
        let (outbox, window) = &mut *sending;
        change(outbox, window);
        outbox.pump(|message| window.take(message.len()) && self.down.send(message).is_ok());
    }
}

impl Link for MemoryLink {
    fn send(&self, header: ToWorker, payload: &Payload) {
        if header.order == Order::Run {
            self.board.offer(header.seq, header.items.first);
        }
        self.pump(|outbox, _| outbox.push(header, payload.clone()));
    }

    fn flush(&self) {}

    fn credit(&self, consumed: u64) {
        self.pump(|_, window| window.credit(consumed));
    }

    fn taken_in(&self) -> u64 {
        self.sending.lock().unwrap().0.sent()
    }

    fn hang_up(&self) {
        self.pump(|outbox, _| outbox.close());
        self.up.cut();
    }

    fn board(&self) -> &Board {
        &self.board
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.down.cut();
    }
}

/// The pool's receiving end.
struct MemoryInbox(Arc<Wire>, Assembler<FromWorker>);

impl Inbox for MemoryInbox {
    fn recv(&mut self, sink: &mut dyn FnMut(Frame<FromWorker>)) -> Result<(), Closed> {
        let message = self.0.recv()?;
        Ok(self.1.message(&message, sink)?)
    }
}

/// The worker's end.
struct MemoryWorker {
    board: &'static Board,
    down: Arc<Wire>,
    up: Arc<Wire>,
    assembler: Assembler<ToWorker>,
    ready: VecDeque<Frame<ToWorker>>,
    consumed: u64,
}

impl WorkerEnd for MemoryWorker {
    fn recv(&mut self) -> Result<Frame<ToWorker>, Closed> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(frame);
            }
            // Report the consumed bytes before each receive, since the pool may be waiting for
            // space.
            self.reply(FromWorker::new(Reply::Credit), &[])?;
            let message = self.down.recv()?;
            self.consumed += cost(message.len());
            let ready = &mut self.ready;
            self.assembler.message(&message, |frame| ready.push_back(frame))?;
        }
    }

    fn reply(&mut self, header: FromWorker, payload: &[u8]) -> Result<(), Closed> {
        let header = FromWorker { length: payload.len() as u64, consumed: self.consumed, ..header };
        let message = [&header.to_bytes()[..], payload].concat();
        self.up.send(&message).map_err(|_| Closed::Gone)
    }

    fn board(&self) -> &'static Board {
        self.board
    }
}

impl Drop for MemoryWorker {
    fn drop(&mut self) {
        self.down.cut();
    }
}

/// Makes both ends.
pub(crate) fn pair() -> Pair {
    let (board, fd) = super::board::create().unwrap();
    let mirror = Box::leak(Box::new(Shared::open(&fd).unwrap()));
    let (down, up) = (Arc::<Wire>::default(), Arc::<Wire>::default());
    Pair {
        link: Arc::new(MemoryLink {
            board,
            sending: Mutex::new((Outbox::new(PART_BYTES_MAX), Window::default())),
            down: Arc::clone(&down),
            up: Arc::clone(&up),
        }),
        inbox: Box::new(MemoryInbox(Arc::clone(&up), Assembler::default())),
        worker: Box::new(MemoryWorker {
            board: mirror,
            down,
            up,
            assembler: Assembler::default(),
            ready: VecDeque::new(),
            consumed: 0,
        }),
    }
}
