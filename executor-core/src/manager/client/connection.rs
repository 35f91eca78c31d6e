//! The connection of a process to one server: its calls, and who receives the replies.
//!
//! All threads and tasks of a process share one connection to a server. At most one thread receives
//! at a time, and passes on the replies of others. It is one that waits for a reply itself. When it
//! has its own, it *leaves*: it calls another waiting thread to receive. If only futures wait, the
//! connection's reader receives, a thread that is started when it is needed first.
//!
//! A thread that wants to receive first records that it waits, then tries to take the receiving
//! end. A thread that leaves first gives up the receiving end, then looks at who waits. So one of
//! the two notices the other, and no reply stays unread.

use std::{
    borrow::Cow,
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    super::{
        error::ManagerError,
        link::{self, LinkError, LinkReceiver, LinkSender},
        protocol::{
            CallId, Fields, HEADER_BYTES, InSegment, ObjectId, Operation, Reply, Request, Status,
            names_in_reply, put_number,
        },
    },
    calls::{Calls, Message, Seat, Slot, Undo, Waiting},
    door::{self, Door},
    segments::{GRANTED, SEGMENT_FROM, Segments, Tail},
};
use crate::{
    future::wait::Signal,
    os::{
        eventfd::EventFd,
        fork::{Creator, NotInherited},
        socket, spare,
        spin::Spin,
        std_or_model::lock,
    },
    segment::Store,
    unwind::catch,
};

/// The byte that asks the other side to look at the rings.
pub(crate) const LOOK: u8 = b'!';
/// The first byte of a message with the end of a pipe: the object is kept alive while the pipe is
/// open. The object's id follows.
pub(crate) const LEASE: u8 = b'L';

/// The body of a request that is to be sent.
pub(super) struct Body<'a> {
    pub(super) fields: Cow<'a, [u8]>,
    /// The bytes of the last value, if they are in a segment.
    pub(super) tail: Option<Tail>,
    /// Whether they would be, if there were segments.
    pub(super) is_large: bool,
}

impl Body<'_> {
    /// The body of a request without fields.
    pub(super) const NONE: Body<'static> = Body::of(&[]);

    /// Returns a body of these fields.
    pub(super) const fn of(fields: &[u8]) -> Body<'_> {
        Body { fields: Cow::Borrowed(fields), tail: None, is_large: false }
    }

    fn len(&self) -> usize {
        self.fields.len() + self.tail.as_ref().map_or(0, Tail::len)
    }
}

/// A connection to a server.
pub(crate) struct Connection {
    door: Arc<Door>,
    /// Closed in forks, so that the server notices this process's end.
    socket: Arc<NotInherited>,
    /// Wakes the thread that sleeps, so that it polls for room as well. For TCP only: over a lane,
    /// the server says when there is room.
    nudge: Option<EventFd>,
    creator: Creator,
    message_bytes_max: u64,
    sending: Mutex<LinkSender>,
    /// Whether something waits in the sender's outbox.
    unsent: AtomicBool,
    receiving: Mutex<Receiving>,
    calls: Mutex<Calls>,
    /// Wakers of futures whose replies have come. They are the user's code, so they are woken while
    /// no lock is held.
    to_wake: Mutex<Vec<Waker>>,
    segments: Segments,
    reader: Arc<ReaderSignal>,
    gone: OnceLock<Arc<str>>,
}

/// What the thread that receives owns.
struct Receiving {
    link: LinkReceiver,
    message: Message,
    /// Number of replies that the server has marked.
    marked: u64,
    /// For a thread that waits.
    spin: Spin,
    /// For a thread of an async runtime.
    brief: Spin,
}

/// How a turn of receiving has ended.
enum Received {
    /// The own reply has arrived.
    Own(Message),
    /// The deadline has passed, or nothing was there and the caller does not wait.
    Nothing,
    /// The receiving end has to be given up for a moment, to wake futures. Or something was passed
    /// on, and the caller has no call of its own.
    Interrupted,
}

/// How long a turn of receiving waits.
#[derive(Clone, Copy)]
enum Patience {
    /// Until there is something, or the deadline.
    Until(Option<Instant>),
    /// A moment, if that has paid off before. For a thread of an async runtime.
    Moment,
}

impl Connection {
    pub(super) fn new(
        door: Arc<Door>,
        socket: Arc<NotInherited>,
        (sender, receiver): (LinkSender, LinkReceiver),
        message_bytes_max: u64,
    ) -> Result<Arc<Self>, ManagerError> {
        receiver.prepare_to_wait().map_err(ManagerError::os("a connection to a manager"))?;
        let spin = if receiver.is_far() { Spin::over_tcp() } else { Spin::default() };
        let segments = Segments::new(!receiver.is_far());
        let nudge = receiver.is_far().then(EventFd::new).transpose();
        let nudge = nudge.map_err(ManagerError::os("a signal for a connection to a manager"))?;
        Ok(Arc::new(Connection {
            door,
            socket,
            nudge,
            creator: Creator::here(),
            message_bytes_max,
            sending: Mutex::new(sender),
            unsent: AtomicBool::new(false),
            receiving: Mutex::new(Receiving {
                link: receiver,
                message: Vec::new(),
                marked: 0,
                // A round trip over TCP takes longer than over a lane.
                spin,
                brief: Spin::brief(),
            }),
            calls: Mutex::default(),
            to_wake: Mutex::default(),
            segments,
            reader: Arc::default(),
            gone: OnceLock::new(),
        }))
    }

    /// Returns the server's door.
    pub(crate) fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// Whether this is a copy of another process's connection, made by `fork`.
    #[inline]
    pub(super) fn is_elsewhere(&self) -> bool {
        self.creator.is_elsewhere()
    }

    /// Whether the connection has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.get().is_some()
    }

    /// Whether the connection has ended, also if that happened while no call was on its way, so
    /// that nobody has noticed it. Calls that are on their way notice it by themselves, behind the
    /// replies that came before.
    pub(super) fn has_quietly_ended(&self) -> bool {
        if self.is_gone() {
            return true;
        }
        let ended = lock(&self.calls).is_idle() && {
            let Some(socket) = self.socket.get() else { return true };
            let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
            matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
        };
        if ended {
            self.end(ENDED.to_owned());
            self.wake_all();
        }
        ended
    }

    /// Whether the server has closed the connection, noticed or not.
    pub(super) fn has_ended(&self) -> bool {
        self.is_gone() || self.socket.get().is_none_or(socket::is_at_end)
    }

    /// Returns where segments for large values are taken from, if there are any.
    #[inline]
    pub(super) fn store(&self) -> Option<Arc<Store>> {
        // In a fork, another thread may have held that lock.
        if self.is_elsewhere() { None } else { self.segments.store() }
    }

    pub(super) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Asks the server for segments, if this is the first large value. It does not wait for them.
    fn ask_for_segments(self: &Arc<Self>, is_large: bool) {
        if !is_large || self.is_elsewhere() || !self.segments.is_to_be_asked() {
            return;
        }
        let call = {
            let mut calls = lock(&self.calls);
            let call = calls.new_id();
            calls.own = Some(call);
            call
        };
        if self.send(call, Operation::Segments, ObjectId::NONE, Body::NONE).is_err() {
            lock(&self.calls).remove(call);
        }
    }

    /// The server has answered whether there are segments. If so, it has sent their descriptor
    /// before. This thread has the receiving end, so no other reads from the socket.
    fn take_segments(self: &Arc<Self>, reply: Reply) {
        self.forget_bytes();
        if self.segments.answered(reply.status == Status::Done) {
            self.tell_quietly(Operation::Segments, ObjectId::NONE, &[]);
        }
        kill_point!(ClientSegmentsGranted);
    }

    /// Reads what has come over the socket: bytes that were to wake this process, which are
    /// forgotten, and the descriptor of segments. Whoever calls it looks at the ring, and for room,
    /// again before it sleeps: a byte that was forgotten does not end the sleep.
    fn forget_bytes(&self) {
        let mut bytes = [0; 64];
        while let Some(socket) = self.socket.get()
            && let Ok((1.., descriptors)) = socket::recv_short_now(socket, &mut bytes)
        {
            self.keep_segments(bytes[0], descriptors);
        }
    }

    fn keep_segments(&self, byte: u8, mut descriptors: Vec<OwnedFd>) {
        if byte == GRANTED
            && let Some(descriptor) = descriptors.pop()
        {
            self.segments.arrived(descriptor);
        }
    }

    pub(super) fn gone_error(&self) -> ManagerError {
        ManagerError::Gone(self.gone.get().cloned().unwrap_or_else(|| "it has ended".into()))
    }

    /// Makes a call and waits for its reply.
    ///
    /// If there is none by the deadline, the call is given up, what it may still bring is given
    /// back, and the error is [`ManagerError::TimedOut`].
    pub(super) fn call(
        self: &Arc<Self>,
        undo: Undo,
        object: ObjectId,
        body: Body<'_>,
        deadline: Option<Instant>,
    ) -> Result<Message, ManagerError> {
        self.check_size(&body)?;
        self.ask_for_segments(body.is_large);
        let Some(mut receiving) = self.try_receiving() else {
            let seat = Arc::new(Seat::default());
            let call = self.enter(Waiting::Thread(Arc::clone(&seat)));
            kill_point!(ClientCallBegun);
            let sent = self.send(call, undo.operation, object, body);
            let received = sent.and_then(|_awake| self.wait_in(&seat, call, Some(undo), deadline));
            return self.finish(received, call);
        };
        // Nobody receives, so this thread does, and need not even record that it waits.
        let call = {
            let mut calls = lock(&self.calls);
            let call = calls.new_id();
            calls.unrecorded = Some(call);
            call
        };
        kill_point!(ClientCallBegun);
        let received = self.send(call, undo.operation, object, body).and_then(|awake| {
            if awake {
                receiving.spin.suggest();
            }
            let own = Some((call, undo.keeps_object()));
            self.receive(&mut receiving, own, Patience::Until(deadline))
        });
        // Only a call that is interrupted needs it, so that the others allocate nothing.
        let interrupted = matches!(received, Ok(Received::Interrupted));
        let seat = interrupted.then(|| Arc::new(Seat::default()));
        // Recorded before anybody else can receive.
        let waiting = match received {
            Ok(Received::Nothing) => {
                self.keep_object(undo);
                Some(Waiting::Nobody(undo))
            }
            _ => seat.clone().map(Waiting::Thread),
        };
        {
            let mut calls = lock(&self.calls);
            calls.unrecorded = None;
            if let Some(waiting) = waiting {
                calls.insert(call, waiting);
            }
        }
        if matches!(received, Ok(Received::Nothing)) {
            kill_point!(ClientCallAbandoned);
        }
        self.unlock(receiving);
        let received = match seat {
            Some(seat) => self.wait_in(&seat, call, Some(undo), deadline),
            None => received,
        };
        self.finish(received, call)
    }

    /// Makes a call. At the deadline, asks the server to answer at once, and waits for that, for
    /// `grace` at most. So it is known whether the call was done.
    pub(super) fn call_then_give_up(
        self: &Arc<Self>,
        undo: Undo,
        object: ObjectId,
        body: Body<'_>,
        deadline: Option<Instant>,
        grace: Option<Duration>,
    ) -> Result<Message, ManagerError> {
        self.check_size(&body)?;
        self.ask_for_segments(body.is_large);
        let seat = Arc::new(Seat::default());
        let call = self.enter(Waiting::Thread(Arc::clone(&seat)));
        let mut received = self
            .send(call, undo.operation, object, body)
            .and_then(|_awake| self.wait_in(&seat, call, None, deadline));
        if matches!(received, Ok(Received::Nothing)) {
            self.ask_to_give_up(call);
            let end = grace.and_then(|grace| Instant::now().checked_add(grace));
            received = self.wait_in(&seat, call, Some(undo), end);
        }
        self.finish(received, call)
    }

    /// Records a new call.
    fn enter(&self, waiting: Waiting) -> CallId {
        let mut calls = lock(&self.calls);
        let call = calls.new_id();
        calls.insert(call, waiting);
        call
    }

    /// Records who waits for a call from now on. Returns `false` if it does not wait any more.
    fn exchange(&self, call: CallId, waiting: Waiting) -> bool {
        let mut calls = lock(&self.calls);
        let waits = calls.remove(call).is_some();
        if waits {
            calls.insert(call, waiting);
        }
        waits
    }

    /// Keeps the object of a call that is abandoned, until its reply has come. Otherwise what the
    /// reply brings could not be given back to it. Called before the call is recorded as abandoned,
    /// since the reply gives up this reference.
    fn keep_object(self: &Arc<Self>, undo: Undo) {
        if undo.keeps_object() {
            self.tell_quietly(Operation::Claim, undo.object, &[]);
        }
    }

    /// Gives up what [`keep_object`](Self::keep_object) has kept.
    fn leave_object(self: &Arc<Self>, undo: Undo) {
        if undo.keeps_object() {
            self.tell_quietly(Operation::Release, undo.object, &ONE);
        }
    }

    /// Records that nobody waits for a call any more. Returns `false` if its reply has come, or is
    /// just being passed on.
    fn abandon(self: &Arc<Self>, call: CallId, undo: Undo) -> bool {
        self.keep_object(undo);
        let waited = {
            let mut calls = lock(&self.calls);
            let waited = calls.remove(call).is_some();
            if waited {
                calls.insert(call, Waiting::Nobody(undo));
            }
            waited
        };
        kill_point!(ClientCallAbandoned);
        if !waited {
            self.leave_object(undo);
        }
        waited
    }

    /// Ends a call that this thread has waited for.
    fn finish(
        self: &Arc<Self>,
        received: Result<Received, ManagerError>,
        call: CallId,
    ) -> Result<Message, ManagerError> {
        if received.is_err() {
            lock(&self.calls).remove(call);
        }
        self.wake_all();
        // This thread may have been called to receive, and has not.
        self.leave();
        match received? {
            Received::Own(message) => Ok(message),
            Received::Nothing | Received::Interrupted => {
                self.give_up(call);
                Err(ManagerError::TimedOut)
            }
        }
    }

    /// Gives up the receiving end, and wakes those whose replies have come.
    fn unlock(&self, receiving: MutexGuard<'_, Receiving>) {
        drop(receiving);
        self.wake_all();
    }

    /// Wakes the futures whose replies have come. No lock may be held.
    fn wake_all(&self) {
        let wakers = std::mem::take(&mut *lock(&self.to_wake));
        for waker in wakers {
            // A panic of the user's waker must not end the thread that has received.
            let _ = catch(|| waker.wake());
        }
    }

    /// Waits on a seat until the reply is there, and receives when nobody else does. At the
    /// deadline, the call is abandoned if there is an `undo`, and otherwise goes on.
    fn wait_in(
        self: &Arc<Self>,
        seat: &Seat,
        call: CallId,
        undo: Option<Undo>,
        deadline: Option<Instant>,
    ) -> Result<Received, ManagerError> {
        loop {
            if let Some(mut receiving) = self.try_receiving() {
                if let Some(message) = seat.take() {
                    self.unlock(receiving);
                    return Ok(Received::Own(message));
                }
                let own = Some((call, undo.is_none_or(Undo::keeps_object)));
                let received = self.receive(&mut receiving, own, Patience::Until(deadline));
                let interrupted = matches!(received, Ok(Received::Interrupted));
                match (&received, undo) {
                    (Ok(Received::Interrupted), _) | (Ok(Received::Nothing), None) => {}
                    (Ok(Received::Nothing), Some(undo)) => drop(self.abandon(call, undo)),
                    _ => drop(lock(&self.calls).remove(call)),
                }
                self.unlock(receiving);
                if interrupted {
                    continue;
                }
                return received;
            }
            seat.wait(deadline);
            kill_point!(ClientSeatLeft);
            if let Some(message) = seat.take() {
                return Ok(Received::Own(message));
            }
            if self.is_gone() {
                return Err(self.gone_error());
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // The reply may have come in between.
                if undo.is_none_or(|undo| self.abandon(call, undo)) {
                    return Ok(Received::Nothing);
                }
                // It is being put onto the seat at this moment, or the connection has ended.
                seat.wait(None);
            }
        }
    }

    /// Begins a call whose reply a future awaits.
    pub(super) fn begin(
        self: &Arc<Self>,
        undo: Undo,
        object: ObjectId,
        body: Body<'_>,
    ) -> Result<PendingCall, ManagerError> {
        self.check_size(&body)?;
        self.ask_for_segments(body.is_large);
        let slot = Arc::new(Slot::default());
        let call = self.enter(Waiting::Task(Arc::clone(&slot)));
        let mut pending =
            PendingCall { connection: Arc::clone(self), call, slot, undo, over: false };
        if let Err(error) = self.send(call, undo.operation, object, body) {
            pending.over = true;
            lock(&self.calls).remove(call);
            self.wake_all();
            return Err(error);
        }
        Ok(pending)
    }

    /// Sends a request that gets no reply. No lock may be held.
    pub(super) fn tell(self: &Arc<Self>, operation: Operation, object: ObjectId, body: &[u8]) {
        self.tell_quietly(operation, object, body);
        self.wake_all();
    }

    /// Sends a request that gets no reply, while the receiving end or the table is held.
    fn tell_quietly(self: &Arc<Self>, operation: Operation, object: ObjectId, body: &[u8]) {
        // If the server is gone, there is nobody to tell.
        if self.send(CallId::NONE, operation, object, Body::of(body)).is_ok()
            && self.unsent.load(Ordering::Relaxed)
        {
            // Somebody has to send the rest when there is room. Without a thread for it, the next
            // call does.
            let _ = self.reader.wake(self);
        }
    }

    /// Keeps an object alive while the other end of this pipe is open anywhere.
    pub(super) fn lease(
        &self,
        object: ObjectId,
        end: &OwnedFd,
        deadline: Option<Instant>,
    ) -> Result<(), ManagerError> {
        let mut message = [0; 9];
        message[0] = LEASE;
        message[1..].copy_from_slice(&object.0.to_le_bytes());
        let socket = self.socket.get().ok_or_else(forked)?;
        door::send(&socket, &message, &[end.as_fd()], deadline)
    }

    fn check_size(&self, body: &Body<'_>) -> Result<(), ManagerError> {
        if body.len() as u64 > self.message_bytes_max {
            let text = format!(
                "a call of {} bytes; `message_bytes_max` is {}",
                body.len(),
                self.message_bytes_max
            );
            return Err(ManagerError::Limit(text.into()));
        }
        Ok(())
    }

    /// Sends a request. Returns whether the server is known to be awake without being woken for it.
    fn send(
        &self,
        call: CallId,
        operation: Operation,
        object: ObjectId,
        body: Body<'_>,
    ) -> Result<bool, ManagerError> {
        if self.is_gone() {
            return Err(self.gone_error());
        }
        if self.is_elsewhere() {
            return Err(forked());
        }
        let Body { mut fields, tail, .. } = body;
        let more = if tail.is_some() { InSegment::BYTES } else { 0 };
        let len = (fields.len() + more) as u64;
        let mut header = Request { call, operation, object, len }.to_bytes();
        if let Some(tail) = &tail {
            tail.put(&mut header, fields.to_mut());
            kill_point!(ClientSegmentFilled);
        }
        let (sent, wake) = {
            let mut sender = lock(&self.sending);
            let sent = sender.send(&header, fields);
            kill_point!(ClientRequestSent);
            if sent.is_ok() {
                tail.into_iter().for_each(Tail::leave);
            }
            // Over TCP, this is what writes.
            let wake = sender.must_wake();
            self.note_unsent(&sender);
            if !sender.is_flushed() {
                kill_point!(ClientRequestWaits);
            }
            (sent, wake)
        };
        if wake {
            self.wake_server();
        }
        let awake = !wake && self.nudge.is_none();
        sent.map(|()| awake).map_err(|error| self.end(lost(&error)))
    }

    /// Records whether something waits to be sent.
    fn note_unsent(&self, sender: &LinkSender) {
        let unsent = !sender.is_flushed();
        self.unsent.store(unsent, Ordering::Relaxed);
        if unsent && let Some(nudge) = &self.nudge {
            nudge.ring();
        }
    }

    /// Sends what found no room before.
    fn send_rest(&self) -> Result<(), ManagerError> {
        if !self.unsent.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (sent, wake) = {
            let mut sender = lock(&self.sending);
            let sent = sender.flush();
            // The thread that calls this polls for room by itself.
            self.unsent.store(!sender.is_flushed(), Ordering::Relaxed);
            kill_point!(ClientRestSent);
            (sent, sender.must_wake())
        };
        if wake {
            self.wake_server();
        }
        sent.map(drop).map_err(|error| self.end(lost(&error)))
    }

    fn wake_server(&self) {
        if let Some(socket) = self.socket.get() {
            // A full socket has bytes that the server has yet to look at. A closed one is noticed
            // by the thread that receives.
            let _ = socket::send_now(socket, &[LOOK], &[]);
            kill_point!(ClientServerWoken);
        }
    }

    fn try_receiving(&self) -> Option<MutexGuard<'_, Receiving>> {
        match self.receiving.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Receives, and passes on the replies of others, until the reply to `own` is there or the
    /// patience is at its end. Without `own`, until anything was passed on. With `own` comes
    /// whether its reply may give this process something.
    fn receive(
        self: &Arc<Self>,
        receiving: &mut Receiving,
        own: Option<(CallId, bool)>,
        patience: Patience,
    ) -> Result<Received, ManagerError> {
        let (mut hung_up, mut woken) = (false, false);
        let is_far = receiving.link.is_far();
        if is_far && matches!(patience, Patience::Moment) {
            // Nobody has polled the socket, so it may have something.
            receiving.link.awake();
        }
        loop {
            if self.is_gone() {
                return Err(self.gone_error());
            }
            if self.is_elsewhere() {
                return Err(forked());
            }
            let mut interrupts = false;
            loop {
                let Receiving { link, message, marked, .. } = receiving;
                match link.receive(message) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => return Err(self.end(lost(&error))),
                }
                let reply = message.first_chunk().and_then(Reply::from_bytes);
                let Some(reply) = reply else {
                    return Err(self.end("a reply that nobody understands".to_owned()));
                };
                if InSegment::is_in(message)
                    && let Err(why) = self.segments.complete(message)
                {
                    return Err(self.end(why.to_owned()));
                }
                let message = std::mem::take(message);
                self.ask_for_segments(message.len() > SEGMENT_FROM);
                if is_far && Reply::is_marked(&message) {
                    kill_point!(ClientMarkedTaken);
                    *marked += 1;
                    // Before anybody sees what the reply brings: who dies with it has had it.
                    self.send(
                        CallId::NONE,
                        Operation::Received,
                        ObjectId::NONE,
                        Body::of(&marked.to_le_bytes()),
                    )?;
                    kill_point!(ClientMarkedTold);
                }
                let is_own = own.is_some_and(|(call, _)| call == reply.call);
                // Whoever is cut off has not got what the server gives to others after that. The
                // question costs a fence, and most replies give nothing.
                let gives = !is_own || own.is_some_and(|(_, gives)| gives);
                if gives && link.is_revoked() {
                    return Err(self.end("it has cut off this process".to_owned()));
                }
                if is_own {
                    kill_point!(ClientReplyTaken);
                    if link.must_wake() {
                        self.wake_server();
                    }
                    return Ok(Received::Own(message));
                }
                interrupts |= self.deliver(reply, message) || own.is_none();
            }
            if receiving.link.must_wake() {
                self.wake_server();
            }
            self.send_rest()?;
            if interrupts || own.is_none() && !self.reader_is_needed() {
                return Ok(Received::Interrupted);
            }
            if hung_up {
                return Err(self.end(ENDED.to_owned()));
            }
            let Receiving { link, spin, brief, .. } = receiving;
            let spin = if matches!(patience, Patience::Moment) { brief } else { spin };
            // A long request is sent in parts, while the server makes room.
            let unsent = self.unsent.load(Ordering::Relaxed);
            let (cpu, in_message) = (link.sender_cpu(), unsent || link.is_in_message());
            // Each look at a TCP socket is a system call, and the last one was just now.
            let mut looks = !is_far;
            let ready = || {
                let looked = std::mem::replace(&mut looks, true);
                looked && link.look() || unsent && link.room_was_made()
            };
            let came = match in_message {
                // The poll below also looks for room.
                true if is_far => false,
                true => spin.wait_in_message(cpu, ready),
                false => spin.wait(cpu, ready),
            };
            if came {
                continue;
            }
            let Patience::Until(deadline) = patience else { return Ok(Received::Nothing) };
            if std::mem::take(&mut woken) && !is_far {
                // It was woken, and there was nothing. A byte may have been for room that there is
                // by now.
                self.forget_bytes();
                continue;
            }
            if !link.announce_sleep() {
                continue;
            }
            kill_point!(ClientSleeps);
            if self.may_wait_in_socket(deadline) && link.wait() {
                kill_point!(ClientAwake);
                continue;
            }
            let slept = match &self.nudge {
                None => self.sleep(deadline),
                Some(nudge) => self.sleep_far(nudge, deadline),
            };
            link.awake();
            kill_point!(ClientAwake);
            match slept {
                Ok(Slept::Woken) => woken = true,
                Ok(Slept::Late) => return Ok(Received::Nothing),
                // What the server sent before its end is in the ring, or in the socket.
                Ok(Slept::HungUp) => hung_up = true,
                Err(error) => return Err(self.end(format!("its socket failed: {error}"))),
            }
        }
    }

    /// Sleeps until the server sends a byte, or closes the socket.
    fn sleep(&self, deadline: Option<Instant>) -> io::Result<Slept> {
        let Some(socket) = self.socket.get() else { return Ok(Slept::HungUp) };
        let mut bytes = [0; 64];
        loop {
            let received = match time_left(deadline) {
                // One system call in place of two.
                Left::Endless => socket::recv_short(socket, &mut bytes),
                Left::Time(left) => {
                    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
                    match poll(&mut fds, Some(&left)) {
                        Err(rustix::io::Errno::INTR) | Ok(0) => continue,
                        Err(error) => return Err(error.into()),
                        Ok(_) => socket::recv_short_now(socket, &mut bytes),
                    }
                }
                Left::Nothing => return Ok(Slept::Late),
            };
            // If there is another message, the next sleep ends at once. Then all are forgotten.
            return match received {
                Ok((0, _)) => Ok(Slept::HungUp),
                Ok((_, descriptors)) => {
                    self.keep_segments(bytes[0], descriptors);
                    Ok(Slept::Woken)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Slept::Woken),
                Err(error) => Err(error),
            };
        }
    }

    /// Whether the thread that receives may wait for a moment in the socket itself.
    fn may_wait_in_socket(&self, deadline: Option<Instant>) -> bool {
        self.nudge.is_some()
            && !self.unsent.load(Ordering::Relaxed)
            && deadline.is_none_or(|deadline| {
                deadline.saturating_duration_since(Instant::now()) > link::WAIT_TIMEOUT
            })
    }

    /// Sleeps until there is something to read, or room for what is unsent. The end of the
    /// connection is found when it is read.
    fn sleep_far(&self, nudge: &EventFd, deadline: Option<Instant>) -> io::Result<Slept> {
        let Some(socket) = self.socket.get() else { return Ok(Slept::HungUp) };
        loop {
            let timeout = match time_left(deadline) {
                Left::Endless => None,
                Left::Time(left) => Some(left),
                Left::Nothing => return Ok(Slept::Late),
            };
            // A thread that leaves something unsent from here on rings.
            let flags = match self.unsent.load(Ordering::Relaxed) {
                true => PollFlags::IN | PollFlags::OUT,
                false => PollFlags::IN,
            };
            let mut fds =
                [PollFd::from_borrowed_fd(socket, flags), PollFd::new(nudge, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) | Ok(0) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
            if !fds[1].revents().is_empty() {
                nudge.clear();
            }
            if !fds[0].revents().is_empty() {
                return Ok(Slept::Woken);
            }
        }
    }

    /// Passes a reply on to whoever waits for it. Returns whether a future has to be woken.
    fn deliver(self: &Arc<Self>, reply: Reply, message: Message) -> bool {
        let waiting = lock(&self.calls).remove(reply.call);
        match waiting {
            Some(Waiting::Thread(seat)) => {
                seat.put(message);
                kill_point!(ClientReplyPassedOn);
            }
            Some(Waiting::Task(slot)) => match slot.put(message) {
                Ok(waker) => {
                    let wakes = waker.is_some();
                    lock(&self.to_wake).extend(waker);
                    kill_point!(ClientReplyPassedOn);
                    return wakes;
                }
                Err((message, undo)) => self.give_back_late(undo, reply, &message),
            },
            Some(Waiting::Nobody(undo)) => self.give_back_late(undo, reply, &message),
            Some(Waiting::Connection) => self.take_segments(reply),
            // The server answers each call once, so this is none of ours.
            None => tracing::error!(call = reply.call.0, "a manager has answered a call twice"),
        }
        false
    }

    /// Gives back what the reply to an abandoned call has brought, and the object that was kept for
    /// that.
    fn give_back_late(self: &Arc<Self>, undo: Undo, reply: Reply, message: &[u8]) {
        kill_point!(ClientLateReply);
        self.give_back(undo, reply, message);
        self.leave_object(undo);
        kill_point!(ClientGaveBack);
    }

    /// Gives back what the reply to an abandoned call has brought.
    pub(super) fn give_back(self: &Arc<Self>, undo: Undo, reply: Reply, message: &[u8]) {
        let body = message.get(HEADER_BYTES..).unwrap_or_default();
        let done = reply.status == Status::Done;
        let takes_anyway =
            undo.operation == Operation::ConditionWait && reply.status == Status::GivenUp;
        if !done && !takes_anyway {
            return;
        }
        match undo.operation {
            Operation::QueueGet => self.tell_quietly(Operation::QueuePutBack, undo.object, body),
            Operation::LockAcquire | Operation::ConditionWait => {
                let mut body = undo.owner.to_le_bytes().to_vec();
                // If the owner before has died, the next one is told, as this one has not seen it.
                put_number(&mut body, reply.number);
                self.tell_quietly(Operation::LockReleaseOwn, undo.object, &body);
            }
            Operation::SemaphoreAcquire => {
                self.tell_quietly(Operation::SemaphoreRelease, undo.object, &ONE);
            }
            Operation::Create => {
                self.tell_quietly(Operation::Release, ObjectId(reply.number), &ONE);
            }
            Operation::Claim => self.tell_quietly(Operation::Release, undo.object, &ONE),
            _ => {}
        }
        for name in names_in_reply(undo.operation, Fields::new(body)) {
            self.tell_quietly(Operation::Release, name, &ONE);
        }
    }

    /// Asks the server to answer a call at once. Somebody receives the answer.
    fn give_up(self: &Arc<Self>, call: CallId) {
        self.ask_to_give_up(call);
        self.leave_to_reader();
    }

    fn ask_to_give_up(self: &Arc<Self>, call: CallId) {
        let mut body = Vec::new();
        put_number(&mut body, u64::from(call.0));
        self.tell(Operation::GiveUp, ObjectId::NONE, &body);
        kill_point!(ClientCallGivenUp);
    }

    /// Lets somebody else receive who waits. Called after the receiving end was given up.
    fn leave(self: &Arc<Self>) {
        let thread = lock(&self.calls).any_thread();
        match thread {
            Some(seat) => seat.call(),
            None => self.leave_to_reader(),
        }
    }

    /// Lets the reader receive if no thread waits.
    fn leave_to_reader(self: &Arc<Self>) {
        if self.reader_is_needed()
            && let Err(error) = self.reader.wake(self)
        {
            // Nobody would receive the replies of futures.
            self.end(format!("this process got no thread that receives its replies: {error}"));
            self.wake_all();
        }
    }

    /// Whether nobody but the reader can serve what waits.
    fn reader_is_needed(&self) -> bool {
        let unsent = self.unsent.load(Ordering::Relaxed);
        !self.is_gone() && (unsent || lock(&self.calls).need_reader())
    }

    /// The reader's turn: receives as long as only futures wait.
    fn read(self: &Arc<Self>) {
        loop {
            let mut receiving = lock(&self.receiving);
            let needed = self.reader_is_needed();
            let received =
                needed.then(|| self.receive(&mut receiving, None, Patience::Until(None)));
            self.unlock(receiving);
            if !matches!(received, Some(Ok(_))) {
                // A thread that came meanwhile has found the receiving end taken.
                return self.leave();
            }
        }
    }

    /// Ends the connection: this process wants nothing of the server any more.
    pub(super) fn close(&self) {
        self.end("this process has closed the connection".to_owned());
        self.wake_all();
    }

    /// Ends the connection. All that wait get an error. Returns the error. The caller calls
    /// [`wake_all`](Self::wake_all) when it holds no lock.
    fn end(&self, why: String) -> ManagerError {
        let _ = self.gone.set(why.into());
        if let Some(socket) = self.socket.get() {
            // The server ends what this process had, and a thread that sleeps wakes up.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        self.segments.end();
        let waiting = lock(&self.calls).take_all();
        for waiting in waiting {
            match waiting {
                Waiting::Thread(seat) => seat.call(),
                Waiting::Task(slot) => lock(&self.to_wake).extend(slot.end()),
                Waiting::Connection | Waiting::Nobody(_) => {}
            }
        }
        self.gone_error()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // In a fork, another thread of the parent may have held that lock for ever.
        if !self.creator.is_elsewhere() {
            self.reader.end();
        }
        // This process may send and receive nothing large any more.
        spare::clear();
    }
}

/// How long a sleep may take.
enum Left {
    Endless,
    Time(Timespec),
    Nothing,
}

fn time_left(deadline: Option<Instant>) -> Left {
    let Some(deadline) = deadline else { return Left::Endless };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Left::Nothing;
    }
    // A time that is too long for the system is waited for again.
    let longest = Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 };
    Left::Time(Timespec::try_from(left).unwrap_or(longest))
}

const ENDED: &str = "it was shut down, or its process has ended";

/// Returns why a connection is gone whose link has failed.
fn lost(error: &LinkError) -> String {
    match error {
        LinkError::Closed => ENDED.to_owned(),
        error => error.to_string(),
    }
}

/// How a sleep has ended.
enum Slept {
    Woken,
    Late,
    HungUp,
}

/// How the reader of a connection is woken and ended.
#[derive(Default)]
struct ReaderSignal {
    state: Mutex<ReaderState>,
    changed: Condvar,
}

#[derive(Default)]
struct ReaderState {
    runs: bool,
    wanted: bool,
    ended: bool,
}

impl ReaderSignal {
    /// Wakes the reader. Starts it if it does not run.
    fn wake(self: &Arc<Self>, connection: &Arc<Connection>) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.wanted = true;
        if !state.runs {
            let (signal, connection) = (Arc::clone(self), Arc::downgrade(connection));
            std::thread::Builder::new()
                .name("executor-manager".to_owned())
                .spawn(move || signal.run(&connection))?;
            state.runs = true;
        }
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_one();
    }

    /// The reader. It owns the connection only while it receives.
    fn run(&self, connection: &Weak<Connection>) {
        loop {
            let mut state = lock(&self.state);
            while !state.wanted && !state.ended {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.ended {
                return;
            }
            state.wanted = false;
            drop(state);
            if let Some(connection) = connection.upgrade() {
                connection.read();
            }
        }
    }
}

/// A call that a future awaits. If it is dropped early, what the call may still bring is given
/// back.
pub(crate) struct PendingCall {
    connection: Arc<Connection>,
    call: CallId,
    slot: Arc<Slot>,
    undo: Undo,
    over: bool,
}

impl PendingCall {
    /// The connection that the call goes over.
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Waits for the reply in this thread, which receives if nobody else does. `None` if it has not
    /// come by the deadline: the call goes on.
    pub(super) fn wait(
        &mut self,
        deadline: Option<Instant>,
    ) -> Option<Result<Message, ManagerError>> {
        assert!(!self.over, "waited for after it had completed");
        if self.connection.is_elsewhere() {
            self.over = true;
            return Some(Err(forked()));
        }
        let (connection, call) = (Arc::clone(&self.connection), self.call);
        let seat = Arc::new(Seat::default());
        if !connection.exchange(call, Waiting::Thread(Arc::clone(&seat))) {
            // The reply has come, or is just being passed on. Or the connection has ended.
            return self.wait_for_slot();
        }
        let received = connection.wait_in(&seat, call, None, deadline);
        let message = match received {
            Ok(Received::Own(message)) => Some(Ok(message)),
            Err(error) => {
                lock(&connection.calls).remove(call);
                Some(Err(error))
            }
            Ok(Received::Nothing | Received::Interrupted) => {
                if connection.exchange(call, Waiting::Task(Arc::clone(&self.slot))) {
                    None
                } else {
                    // It is being put onto the seat at this moment, or the connection has ended.
                    seat.wait(None);
                    Some(seat.take().ok_or_else(|| connection.gone_error()))
                }
            }
        };
        connection.wake_all();
        // This thread may have been called to receive, and does not any more.
        connection.leave();
        self.over = message.is_some();
        message
    }

    /// Waits for a reply that is in the slot, or will be in a moment.
    fn wait_for_slot(&mut self) -> Option<Result<Message, ManagerError>> {
        let signal = Arc::new(Signal::default());
        let waker = Waker::from(Arc::clone(&signal));
        loop {
            signal.clear();
            let (old, waits) = self.slot.wait(waker.clone());
            // The user's code, so no lock may be held.
            drop(old);
            if !waits {
                break;
            }
            // Another thread has taken the reply out of the table, and waits for nothing before it
            // puts it into the slot.
            signal.wait(None);
        }
        self.over = true;
        Some(match self.slot.take() {
            (Some(message), _) => Ok(message),
            (None, _) => Err(self.connection.gone_error()),
        })
    }
}

impl Future for PendingCall {
    type Output = Result<Message, ManagerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        assert!(!this.over, "polled after it had completed");
        if this.connection.is_elsewhere() {
            this.over = true;
            return Poll::Ready(Err(forked()));
        }
        // The reply may be there in a moment: then no other thread has to be woken.
        if let Some(mut receiving) = this.connection.try_receiving() {
            let own = match this.slot.take() {
                (Some(message), _) => Ok(Received::Own(message)),
                _ => {
                    let own = Some((this.call, this.undo.keeps_object()));
                    this.connection.receive(&mut receiving, own, Patience::Moment)
                }
            };
            if matches!(own, Ok(Received::Own(_))) {
                lock(&this.connection.calls).remove(this.call);
            }
            this.connection.unlock(receiving);
            this.connection.leave();
            if let Ok(Received::Own(message)) = own {
                this.over = true;
                return Poll::Ready(Ok(message));
            }
        }
        let (old, waits) = this.slot.wait(context.waker().clone());
        // The user's code, so no lock may be held.
        drop(old);
        if waits {
            return Poll::Pending;
        }
        this.over = true;
        match this.slot.take() {
            (Some(message), _) => Poll::Ready(Ok(message)),
            (None, _) => Poll::Ready(Err(this.connection.gone_error())),
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if self.over || self.connection.is_elsewhere() {
            return;
        }
        if self.connection.abandon(self.call, self.undo) {
            self.connection.give_up(self.call);
        } else {
            // The reply has come, and nobody has seen it. Or another thread is just passing it on,
            // and gives back what it brings, and the object that is kept here.
            self.connection.keep_object(self.undo);
            if let Some(message) = self.slot.abandon(self.undo) {
                if let Some(reply) = message.first_chunk().and_then(Reply::from_bytes) {
                    self.connection.give_back(self.undo, reply, &message);
                }
                self.connection.leave_object(self.undo);
            }
            self.connection.wake_all();
        }
    }
}

/// The error of a call that a forked process makes through the connection of its parent.
pub(super) fn forked() -> ManagerError {
    ManagerError::Gone("this process is a fork of the one that began the call".into())
}

/// The body of a request that gives back one reference or permit.
const ONE: [u8; 8] = 1_u64.to_le_bytes();
