//! What moves beside the frames: arguments in segments, and descriptors over the control socket.

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use crate::{
    id::TaskId,
    os::{
        arena::{Access, Arena, Mapping, SEGMENT_BYTES_MAX, SEGMENTS, inode},
        socket,
    },
    wire::{
        attachment::Attachment,
        frame::{Order, ToWorker, flag},
        payload::Reference,
    },
};

/// Arguments as a call reads them.
#[derive(Clone)]
pub(super) struct Arrived<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) attachments: Vec<Attachment>,
}

/// The arena of the pool's arguments.
pub(super) struct Arguments {
    /// Not closed by us, as the control socket.
    arena: ManuallyDrop<Arena>,
    /// Segments that were mapped once stay so: to map again costs faults.
    views: [Option<Mapping>; SEGMENTS],
}

impl Arguments {
    pub(super) fn open(descriptor: OwnedFd) -> io::Result<Self> {
        let arena = ManuallyDrop::new(Arena::open(descriptor)?);
        Ok(Arguments { arena, views: [const { None }; SEGMENTS] })
    }

    fn read(&mut self, reference: Reference) -> io::Result<&[u8]> {
        let number = u8::try_from(reference.number).ok().filter(|number| usize::from(*number) < SEGMENTS);
        let len = usize::try_from(reference.len).ok().filter(|len| *len <= SEGMENT_BYTES_MAX);
        let (Some(number), Some(len)) = (number, len) else { return Err(io::ErrorKind::InvalidData.into()) };
        let view = &mut self.views[usize::from(number)];
        if view.as_ref().is_none_or(|view| view.len() < len) {
            *view = None;
            // Twice what is asked for, so that arguments which grow are mapped a few times and not each time. Addresses
            // cost nothing; memory is taken where it was written only.
            let roomy = len.next_power_of_two().clamp(1 << 20, SEGMENT_BYTES_MAX);
            *view = Some(self.arena.map(number, roomy, Access::Read)?);
        }
        let view = view.as_ref().ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: within the mapping, which stays as long as `self` is borrowed. The parent wrote these bytes before it
        // sent the frame. It writes there again only after the task was resolved: which is after this worker's reply, or after its
        // end, or never again if it was given up without having ended (`Split::leave_arguments`). Nobody else can write to the
        // arena, unless he reopens this read-only descriptor by way of `/proc`, which a process can do to its own memory anyway.
        // The memory cannot end early: the file's length is sealed. A fork of this process has no reply to wait for: what it may
        // read after this one's is told in the documentation of `fork_with`.
        Ok(unsafe { std::slice::from_raw_parts(view.at().as_ptr(), len) })
    }
}

/// Where arguments are when they are not in the frame.
pub(super) fn locate<'a>(
    arguments: &'a mut Option<Arguments>,
    header: &ToWorker,
    payload: &'a [u8],
) -> io::Result<&'a [u8]> {
    if header.flags & flag::SEGMENT == 0 {
        return Ok(payload);
    }
    let reference = Reference::from_bytes(payload).ok_or(io::ErrorKind::InvalidData)?;
    arguments.as_mut().ok_or(io::ErrorKind::NotFound)?.read(reference)
}

/// The socket over which descriptors travel.
pub(super) struct Control {
    /// Not closed by us: a task that closes what it does not own may have done so, and std ends a process with words of
    /// its own that closes a descriptor twice.
    socket: &'static OwnedFd,
    /// Which socket it was: another file may have its number by now.
    inode: Option<(u64, u64)>,
}

impl Control {
    pub(super) fn new(socket: &'static OwnedFd) -> Self {
        Control { socket, inode: inode(socket).ok() }
    }

    fn check(&self) -> io::Result<()> {
        match inode(self.socket.as_fd()).ok() == self.inode {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::NotFound, "the control socket was closed by a task")),
        }
    }

    /// The descriptors that belong to this frame. They are in the socket already, or will be at once.
    ///
    /// Those of a task for which this process has no room are missing where its arguments are decoded. For an initializer that is
    /// an error here: it is not what fails.
    pub(super) fn receive(&self, header: &ToWorker) -> io::Result<Vec<Attachment>> {
        if header.flags & flag::ATTACHED == 0 {
            return Ok(Vec::new());
        }
        self.check()?;
        let mut task = [0; 8];
        let (len, descriptors) = match header.order {
            Order::Init => socket::recv_short_whole(self.socket.as_fd(), &mut task)?,
            Order::Run | Order::Stop => socket::recv_short(self.socket.as_fd(), &mut task)?,
        };
        kill_point!(AttachmentsReceived);
        match len == task.len() && u64::from_le_bytes(task) == header.task.as_u64() {
            true => Ok(descriptors.into_iter().map(Arc::new).collect()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sends what goes with a reply, before the reply.
    pub(super) fn send(&self, task: TaskId, attachments: &[Attachment]) -> io::Result<()> {
        self.check()?;
        let descriptors: Vec<_> = attachments.iter().map(|descriptor| descriptor.as_fd()).collect();
        socket::send(self.socket.as_fd(), &task.as_u64().to_le_bytes(), &descriptors)
    }
}
