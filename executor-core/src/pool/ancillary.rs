//! Ancillary data: what the pool and a worker exchange outside of the frames. Results are in
//! segments, and descriptors go over the control socket.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    id::TaskId,
    os::{fork::NotInherited, limits::open_files, socket},
    segment::Results,
    wire::{
        attachment::{ATTACHMENTS_MAX, Attachment},
        frame::{Frame, FromWorker, Reply, flag},
        payload::{Payload, Reference},
    },
};

/// The segments and the control socket of one worker.
pub(super) struct Ancillary {
    /// The control socket. Its end tells the worker that this process has gone, so it is kept open
    /// while the worker lives, and no copy of this process may keep it.
    control: NotInherited,
    results: Option<Arc<Results>>,
    /// Descriptors that found no space in the socket yet. The worker waits for them when it comes
    /// to their frames.
    waiting: Mutex<VecDeque<(TaskId, Vec<Attachment>)>>,
}

/// The error for a frame that no worker may send.
pub(super) struct Impossible;

impl Ancillary {
    pub(super) fn new(control: OwnedFd, results: Option<Arc<Results>>) -> Self {
        Ancillary { control: NotInherited::new(control), results, waiting: Mutex::default() }
    }

    /// Closes the worker's control socket, as the end of this program would. The worker then ends
    /// itself.
    pub(super) fn hang_up(&self) {
        // Refused only if the worker has closed its end already.
        if let Some(control) = self.control.get() {
            let _ = rustix::net::shutdown(control, rustix::net::Shutdown::Both);
        }
    }

    pub(super) fn results(&self) -> Option<&Arc<Results>> {
        self.results.as_ref()
    }

    /// Sends the descriptors of a frame that goes out now, in the order of the frames. Never
    /// blocks. Returns whether any descriptors are waiting.
    pub(super) fn send(&self, task: TaskId, attachments: &[Attachment]) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back((task, attachments.to_vec()));
        self.pump(&mut waiting)
    }

    /// Sends the waiting descriptors. Returns whether any are left.
    pub(super) fn flush(&self) -> bool {
        self.pump(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn pump(&self, waiting: &mut VecDeque<(TaskId, Vec<Attachment>)>) -> bool {
        // A copy of this process has no workers.
        let Some(control) = self.control.get() else { return false };
        while let Some((task, attachments)) = waiting.front() {
            let descriptors: Vec<_> =
                attachments.iter().map(|descriptor| descriptor.as_fd()).collect();
            match socket::send_now(control, &task.as_u64().to_le_bytes(), &descriptors) {
                Err(error) if is_passing(&error) => return true,
                // The worker has gone. Its tasks are handled where its end is noticed.
                Err(_) => waiting.clear(),
                Ok(()) => {
                    waiting.pop_front();
                }
            }
        }
        false
    }

    /// Puts the payload that the frame refers to into the frame.
    pub(super) fn open(&self, frame: &mut Frame<FromWorker>) -> Result<(), Impossible> {
        let flags = frame.header.flags;
        // Only a value is ever sent in this way.
        let foreign = flags & !(flag::SEGMENT | flag::ATTACHED);
        if frame.header.reply != Reply::Done || foreign != 0 || !frame.more.is_empty() {
            return Err(Impossible);
        }
        if flags & flag::SEGMENT != 0 {
            let Reference { number, len } =
                Reference::from_bytes(&frame.payload).ok_or(Impossible)?;
            let received = self.results.as_ref().and_then(|results| results.receive(number, len));
            frame.payload = Payload::received(received.ok_or(Impossible)?);
        }
        if flags & flag::ATTACHED != 0 {
            // The descriptors were sent before the frame, so they are there.
            let mut task = [0; 8];
            let control = self.control.get().ok_or(Impossible)?;
            let message = socket::recv_short_now(control, &mut task);
            let (len, descriptors) = message.map_err(|_| Impossible)?;
            if len != task.len()
                || u64::from_le_bytes(task) != frame.header.task.as_u64()
                || descriptors.len() > ATTACHMENTS_MAX
            {
                return Err(Impossible);
            }
            // If this process has too many open files, the descriptors are closed here. The code
            // that looks for one of them reports that.
            let attachments = match leaves_some_free(&descriptors) {
                true => descriptors.into_iter().map(Arc::new).collect(),
                false => Vec::new(),
            };
            let payload = std::mem::replace(&mut frame.payload, Payload::from(&[][..]));
            frame.payload = payload.with(attachments);
        }
        Ok(())
    }
}

/// Number of descriptors that are kept free for the program. With a higher value, fewer unread
/// results with handles can be held. With a lower value, unread results can keep the program from
/// opening files.
const LEFT_FREE: u64 = 64;

/// Returns whether this process can still open files in addition to these. The system gives out the
/// lowest free numbers.
fn leaves_some_free(descriptors: &[OwnedFd]) -> bool {
    let limit = open_files();
    descriptors.iter().all(|descriptor| is_below(descriptor.as_raw_fd(), limit))
}

fn is_below(number: RawFd, limit: u64) -> bool {
    u64::from(number.cast_unsigned()) < limit - LEFT_FREE.min(limit / 8)
}

/// Returns whether sending may succeed later: the socket is full, or too many descriptors are on
/// their way in the whole system.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::ETOOMANYREFS)
    )
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::segment::Store;

    /// Returns the pool's end, the worker's store, and the worker's end of the socket.
    fn ancillary() -> (Ancillary, Arc<Store>, OwnedFd) {
        let (ours, theirs) = socket::pair().unwrap();
        let results = Results::create().unwrap();
        let store = Store::open(results.descriptor().try_clone_to_owned().unwrap()).unwrap();
        (Ancillary::new(ours, Some(results)), store, theirs)
    }

    fn frame(kind: Reply, flags: u8, payload: &[u8]) -> Frame<FromWorker> {
        let task = TaskId::from_raw(7);
        Frame::new(FromWorker { flags, task, ..FromWorker::new(kind) }, payload.into())
    }

    fn reference(number: u64, len: u64) -> [u8; 16] {
        Reference { number, len }.to_bytes()
    }

    #[test]
    fn a_result_in_a_segment_is_read_and_the_segment_given_back() {
        let (ancillary, store, _socket) = ancillary();
        for byte in 0..100 {
            let mut lease = store.take(50_000).unwrap();
            lease.write(0, &[byte; 50_000]);
            let number = u64::from(lease.number());
            lease.leave();
            let mut frame = frame(Reply::Done, flag::SEGMENT, &reference(number, 50_000));
            ancillary.open(&mut frame).ok().unwrap();
            assert!(frame.payload.is_empty(), "nobody borrows from what a worker can write");
            assert_eq!(*frame.payload.bytes().unwrap(), [byte; 50_000]);
        }
        assert_eq!(store.count().0, 1);
    }

    #[test]
    fn what_cannot_be_is_told() {
        let (ancillary, store, _socket) = ancillary();
        store.take(100_000).unwrap().leave();
        for (number, len) in [(64, 1), (u64::MAX, 1), (0, 1 << 20), (0, u64::MAX), (0, 1 << 33)] {
            let mut frame = frame(Reply::Done, flag::SEGMENT, &reference(number, len));
            assert!(ancillary.open(&mut frame).is_err(), "{number}, {len}");
        }
        assert!(ancillary.open(&mut frame(Reply::Done, flag::SEGMENT, b"short")).is_err());
        assert!(
            ancillary.open(&mut frame(Reply::Failed, flag::SEGMENT, &reference(0, 1))).is_err()
        );
        assert!(ancillary.open(&mut frame(Reply::Done, flag::TIMED, b"")).is_err());
        let mut followed = frame(Reply::Done, flag::SEGMENT, &reference(0, 1));
        followed.more.push_with(|bytes| bytes.extend_from_slice(b"headless"));
        assert!(ancillary.open(&mut followed).is_err());
        let (socket, _theirs) = socket::pair().unwrap();
        let without = Ancillary::new(socket, None);
        assert!(without.open(&mut frame(Reply::Done, flag::SEGMENT, &reference(0, 1))).is_err());
    }

    #[test]
    fn descriptors_must_be_there_and_be_those_of_the_task() {
        let (ancillary, _store, theirs) = ancillary();
        let mut missing = frame(Reply::Done, flag::ATTACHED, b"value");
        assert!(ancillary.open(&mut missing).is_err(), "no message, and nobody waits for one");
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        socket::send(&theirs, &7_u64.to_le_bytes(), &[event.as_fd(), event.as_fd()]).unwrap();
        let mut good = frame(Reply::Done, flag::ATTACHED, b"value");
        ancillary.open(&mut good).ok().unwrap();
        assert_eq!((good.payload.attachments().len(), &*good.payload), (2, &b"value"[..]));
        socket::send(&theirs, &8_u64.to_le_bytes(), &[event.as_fd()]).unwrap();
        assert!(
            ancillary.open(&mut frame(Reply::Done, flag::ATTACHED, b"")).is_err(),
            "another task's"
        );
        socket::send(&theirs, b"7", &[event.as_fd()]).unwrap();
        assert!(
            ancillary.open(&mut frame(Reply::Done, flag::ATTACHED, b"")).is_err(),
            "a short message"
        );
        drop(theirs);
        assert!(
            ancillary.open(&mut frame(Reply::Done, flag::ATTACHED, b"")).is_err(),
            "it is gone"
        );
    }

    #[test]
    fn replies_leave_the_program_some_descriptors() {
        assert!(is_below(900, 1024) && is_below(959, 1024) && !is_below(960, 1024));
        // With a small limit, some descriptors stay free too.
        assert!(is_below(13, 16) && !is_below(14, 16));
        assert!(is_below(i32::MAX, u64::MAX) && !is_below(3, 0));
    }

    #[test]
    fn what_finds_no_room_waits_in_order() {
        let (ancillary, _store, theirs) = ancillary();
        let event: Attachment =
            Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap());
        let mut sent = 0_u64;
        while !ancillary.send(TaskId::from_raw(sent), std::slice::from_ref(&event)) {
            sent += 1;
            assert!(sent < 100_000, "the socket is never full");
        }
        ancillary.send(TaskId::from_raw(sent + 1), &[Arc::clone(&event), event]);
        for expected in 0..=sent + 1 {
            let mut task = [0; 8];
            let (_, descriptors) = socket::recv_short(&theirs, &mut task).unwrap();
            assert_eq!(u64::from_le_bytes(task), expected);
            assert_eq!(descriptors.len(), if expected == sent + 1 { 2 } else { 1 });
            ancillary.flush();
        }
        assert!(!ancillary.flush());
    }
}
