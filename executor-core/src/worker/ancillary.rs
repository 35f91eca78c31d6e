//! Ancillary data: what is transferred outside of the frames. Arguments are in segments, and
//! descriptors go over the control socket.

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

/// The arguments of a call: their encoded bytes and their descriptors.
pub(super) struct Arrived<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) attachments: Vec<Attachment>,
}

/// The segments that contain the arguments which the pool sends.
pub(super) struct Arguments {
    /// Its descriptor is never closed by this code, for the same reason as the control socket.
    arena: ManuallyDrop<Arena>,
    /// A segment stays mapped after its first use, because mapping it again causes page faults.
    views: [Option<Mapping>; SEGMENTS],
}

impl Arguments {
    pub(super) fn open(descriptor: OwnedFd) -> io::Result<Self> {
        let arena = ManuallyDrop::new(Arena::open(descriptor)?);
        Ok(Arguments { arena, views: [const { None }; SEGMENTS] })
    }

    fn read(&mut self, reference: Reference) -> io::Result<&[u8]> {
        let number =
            u8::try_from(reference.number).ok().filter(|number| usize::from(*number) < SEGMENTS);
        let len = usize::try_from(reference.len).ok().filter(|len| *len <= SEGMENT_BYTES_MAX);
        let (Some(number), Some(len)) = (number, len) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let view = &mut self.views[usize::from(number)];
        if view.as_ref().is_none_or(|view| view.len() < len) {
            *view = None;
            // Map up to twice as much as needed. So when arguments grow, the segment is mapped a
            // few times only, and not each time. Addresses cost nothing, and memory is used only
            // where it was written.
            let roomy = len.next_power_of_two().clamp(1 << 20, SEGMENT_BYTES_MAX);
            *view = Some(self.arena.map(number, roomy, Access::Read)?);
        }
        let view = view.as_ref().ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: the range is within the mapping, which exists as long as `self` is borrowed.
        //
        // The parent wrote these bytes before it sent the frame. It writes there again only after
        // the task was resolved. That is after this worker's reply, or after this worker's end, or
        // never, if the pool has given this worker up before its end
        // (`Scheduled::leave_arguments`). No
        // other process can write to the arena, unless this process reopens this read-only
        // descriptor through `/proc`; a process can always do such things to its own memory.
        //
        // The mapped memory cannot be truncated, because the file's length is sealed.
        //
        // A fork of this process does not send a reply that the parent would wait for. What it may
        // read after this process's reply is described in the documentation of `fork_with`.
        Ok(unsafe { std::slice::from_raw_parts(view.at().as_ptr(), len) })
    }
}

/// Returns the encoded arguments, which are in the frame or in a segment.
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

/// The control socket, over which descriptors are sent.
pub(super) struct Control {
    /// Never closed by this code. A task may have closed it, although it does not own it, and std
    /// may abort a process that closes a descriptor twice.
    socket: &'static OwnedFd,
    /// Identifies the socket. If a task has closed it, another file may have the same descriptor
    /// number by now.
    inode: Option<(u64, u64)>,
}

impl Control {
    pub(super) fn new(socket: &'static OwnedFd) -> Self {
        Control { socket, inode: inode(socket).ok() }
    }

    fn check(&self) -> io::Result<()> {
        match inode(self.socket.as_fd()).ok() == self.inode {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the control socket was closed by a task",
            )),
        }
    }

    /// Receives the descriptors that belong to this frame. They are in the socket already, or
    /// arrive at once.
    ///
    /// If this process has no free descriptor numbers for those of a task, they are missing when
    /// the task's arguments are decoded, and the task fails. For an initializer, this is an error
    /// here, because it is not the initializer that has failed.
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
        // The message contains the id of the task, so that a mix-up is detected.
        match len == task.len() && u64::from_le_bytes(task) == header.task.as_u64() {
            true => Ok(descriptors.into_iter().map(Arc::new).collect()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sends the descriptors that belong to a reply. It must be called before the reply is sent.
    pub(super) fn send(&self, task: TaskId, attachments: &[Attachment]) -> io::Result<()> {
        self.check()?;
        let descriptors: Vec<_> = attachments.iter().map(|descriptor| descriptor.as_fd()).collect();
        socket::send(self.socket.as_fd(), &task.as_u64().to_le_bytes(), &descriptors)
    }
}
