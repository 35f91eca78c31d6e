//! Starts processes, on a thread of its own: a `posix_spawn` blocks for about a millisecond, which neither `submit`
//! nor the driver should.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::{Arc, mpsc},
};

use tempfile::TempDir;

use super::{Pool, driver::Notice};
use crate::{
    id::WorkerId,
    os::{
        memory::Shared,
        process::Child,
        socket::{self, MESSAGE_BYTES_MAX},
    },
    segment::Results,
    transport::{
        ipc,
        ring::{self, Segment},
    },
    wire::handshake::{self, Setup, Transport},
    worker::entry,
};

/// A process that has been started and has not said hello yet.
pub(super) struct Started {
    pub(super) child: Arc<Child>,
    /// Over which it says hello.
    pub(super) socket: OwnedFd,
    pub(super) segment: Shared<Segment>,
    /// Where the worker puts large results.
    pub(super) results: Option<Arc<Results>>,
    pub(super) nonce: u64,
    /// Over ipc-channel: where the worker's server is. Removed when this is dropped.
    pub(super) directory: Option<TempDir>,
}

/// Until nobody can ask for a worker any more.
pub(super) fn run(pool: &Pool, orders: &mpsc::Receiver<WorkerId>) {
    let args: Vec<OsString> = entry::args().collect();
    while let Ok(id) = orders.recv() {
        let started = start(pool, &args, u64::from(id.0) << 32 | u64::from(std::process::id()));
        pool.notify(Notice::Started(id, started));
    }
}

fn start(pool: &Pool, args: &[OsString], nonce: u64) -> io::Result<Started> {
    let (socket, theirs) = socket::pair()?;
    let (segment, segment_fd) = ring::create()?;
    let directory = match pool.options.transport {
        Transport::Ring => None,
        Transport::Ipc => Some(ipc::directory()?),
    };
    let path = directory.as_ref().map(|directory| directory.path().as_os_str().as_bytes().to_vec());
    let setup = handshake::to_bytes(&Setup {
        nonce,
        parent: std::process::id(),
        depth: entry::depth() + 1,
        args: args.iter().map(|arg| serde_bytes::ByteBuf::from(arg.as_bytes())).collect(),
        stack_bytes: pool.options.stack_bytes,
        transport: pool.options.transport,
        directory: path.map(Into::into),
    });
    let mut file;
    let mut fds = vec![segment_fd.as_fd(), pool.doorbell.1.as_fd()];
    // A worker without arenas works too: all bytes go through the transport.
    let results = match &pool.arguments {
        Some(_) => Some(Results::create()?),
        None => None,
    };
    if let (Some((_, arguments)), Some(results)) = (&pool.arguments, &results) {
        fds.extend([arguments.as_fd(), results.descriptor()]);
    }
    // Before the start, so that the message is there when the worker looks; it fits into an empty socket.
    if setup.len() <= MESSAGE_BYTES_MAX {
        socket::send(&socket, &setup, &fds)?;
    } else {
        // Arguments may take two megabytes: they go through a file without a name.
        let memory = rustix::fs::memfd_create("executor-setup", rustix::fs::MemfdFlags::CLOEXEC)?;
        file = std::fs::File::from(memory);
        io::Write::write_all(&mut file, &setup)?;
        fds.push(file.as_fd());
        socket::send(&socket, &handshake::VERSION.to_le_bytes(), &fds)?;
    }
    let child = Child::start_self(entry::MARKER, theirs, &pool.options.envs)?;
    Ok(Started { child: Arc::new(child), socket, segment, results, nonce, directory })
}
