//! Starts worker processes, on a thread of its own. A `posix_spawn` blocks for about a millisecond,
//! which neither `submit` nor the driver should.

use std::{
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
    child::{
        identity,
        launch::{Launch, Launched, Way},
        start_method,
    },
    id::WorkerId,
    os::{
        asked::Asked,
        cpu,
        memory::Shared,
        process::{Child, Start},
    },
    segment::Results,
    transport::{
        ipc,
        ring::{self, Segment},
    },
    unwind::catch,
    wire::handshake::{Identity, Role, Transport, WorkerSetup},
};

/// A process that has been started and has not said hello yet.
pub(super) struct Started {
    pub(super) child: Arc<Child>,
    /// The socket over which the process says hello.
    pub(super) socket: OwnedFd,
    pub(super) segment: Shared<Segment>,
    /// The memory for the worker's large results.
    pub(super) results: Option<Arc<Results>>,
    pub(super) nonce: u64,
    /// With ipc-channel, the directory of the worker's server. It is removed when this is dropped.
    pub(super) directory: Option<TempDir>,
}

/// A worker to be started, and its index.
pub(super) type Order = (WorkerId, u32);

/// The starter thread's loop. It ends when no thread can request a worker any more.
pub(super) fn run(pool: &Pool, orders: &mpsc::Receiver<Order>) {
    while let Ok((id, index)) = orders.recv() {
        // Whoever waits for the worker must be notified in any case, so catch panics.
        let start = || start(pool, index, u64::from(id.0) << 32 | u64::from(std::process::id()));
        let started = catch(start).unwrap_or_else(|message| {
            Err(io::Error::other(format!("the pool's starter panicked: {message}")))
        });
        pool.notify(Notice::Started(id, started));
    }
}

fn start(pool: &Pool, index: u32, nonce: u64) -> io::Result<Started> {
    let (segment, segment_fd) = ring::create().asked("to make shared memory (memfd_create)")?;
    let directory = match pool.options.transport {
        Transport::Ring => None,
        Transport::Ipc => Some(ipc::directory().asked("to make a directory for its socket")?),
    };
    let path = directory.as_ref().map(|directory| directory.path().as_os_str().as_bytes().to_vec());
    let identity = Identity {
        name: format!("PoolWorker-{}", nonce >> 32),
        daemon: true,
        worker: true,
        start_method: Some(start_method::number_for_child(None)),
        ..identity::for_child()?
    };
    let role = Role::Worker(WorkerSetup {
        nonce,
        stack_bytes: pool.options.stack_bytes,
        several_cpus: cpu::several_usable(),
        transport: pool.options.transport,
        directory: path.map(Into::into),
        restraints: pool.options.restraints.clone(),
        place: pool.options.places.of(index),
    });
    let mut descriptors = vec![segment_fd.as_fd(), pool.doorbell.1.as_fd()];
    // A worker without arenas works too: all bytes then go through the transport.
    let results = match &pool.arguments {
        Some(_) => Some(Results::create().asked("to make memory for results (memfd_create)")?),
        None => None,
    };
    if let (Some((_, arguments)), Some(results)) = (&pool.arguments, &results) {
        descriptors.extend([arguments.as_fd(), results.descriptor()]);
    }
    let environment = pool.options.places.environment(&pool.options.envs, index);
    let program = Way::Program(Start { environment: &environment, ..Start::default() });
    let Launched { child, socket } =
        Launch { identity, role, descriptors: &descriptors, attachments: &[] }
            .by(program)
            .map_err(|refused| refused.error)
            .asked("to start /proc/self/exe")?;
    Ok(Started { child: Arc::new(child), socket, segment, results, nonce, directory })
}
