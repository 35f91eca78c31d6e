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

use rustix::process::Signal;
use tempfile::TempDir;

use super::{Pool, driver::Notice, fork_server::ForkServer};
use crate::{
    child::{
        identity,
        launch::{Launch, Launched, Refused, ServerCopy, Way},
        start_method,
    },
    error::BrokenCause,
    id::WorkerId,
    os::{
        asked::Asked,
        cgroup::{ControlGroup, Leaf},
        cpu,
        memory::Shared,
        process::Child,
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
    /// The control group in which the process is.
    pub(super) leaf: Option<Leaf>,
    /// With ipc-channel, the directory of the worker's server. It is removed when this is dropped.
    pub(super) directory: Option<TempDir>,
}

/// A worker to be started, and its index.
pub(super) type Order = (WorkerId, u32);

/// The starter thread's loop. It ends when no thread can request a worker any more.
pub(super) fn run(pool: &Pool, orders: &mpsc::Receiver<Order>) {
    let mut server = ForkServer::default();
    while let Ok(order) = orders.recv() {
        if pool.options.start.fork_server.is_some() {
            // The order before may have taken minutes: a `preload` that has failed.
            pool.lock().some_event(|core, now, _| core.scheduler.on_order_taken_up(now));
        }
        // Whoever waits for the worker must be notified in any case, so catch panics.
        let started = catch(|| start(pool, order, &mut server)).unwrap_or_else(|message| {
            Err(BrokenCause::Start(format!("the pool's starter panicked: {message}").into()))
        });
        pool.notify(Notice::Started(order.0, started));
    }
}

fn start(pool: &Pool, (id, index): Order, server: &mut ForkServer) -> Result<Started, BrokenCause> {
    let nonce = u64::from(id.0) << 32 | u64::from(std::process::id());
    let copy = match &pool.options.start.fork_server {
        // Made first, because this may take long, and the memory is not needed until then.
        Some(preload) => Some(server.copy(pool, id, preload)?),
        None => None,
    };
    launch(pool, index, nonce, copy).map_err(|error| refusal(&error))
}

/// Converts a refusal of the system to the cause for a pool in which no worker works.
pub(super) fn refusal(error: &io::Error) -> BrokenCause {
    BrokenCause::Start(error.to_string().into())
}

/// Launches a worker: this copy of the fork server, or the program anew.
fn launch(pool: &Pool, index: u32, nonce: u64, copy: Option<ServerCopy>) -> io::Result<Started> {
    let program = &pool.options.start.program;
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
    let stdin = program.stdin.as_ref().map(AsFd::as_fd);
    let leaf = pool.options.control_group.as_ref().map(ControlGroup::leaf).transpose()?;
    let setup = WorkerSetup {
        nonce,
        stack_bytes: pool.options.stack_bytes,
        several_cpus: cpu::several_usable(),
        transport: pool.options.transport,
        directory: path.map(Into::into),
        restraints: pool.options.restraints.clone(),
        place: pool.options.places.of(index),
        stdin: stdin.is_some(),
        control_group: leaf.is_some(),
        crash_report: pool.options.start.crash_report,
        error_hook: pool.options.error_hook.map(|(hook, _)| hook),
    };
    let role = Role::Worker(Box::new(setup));
    let mut descriptors = Vec::from_iter(stdin);
    descriptors.extend(leaf.as_ref().map(Leaf::kill_descriptor));
    descriptors.extend([segment_fd.as_fd(), pool.doorbell.1.as_fd()]);
    // A worker without arenas works too: all bytes then go through the transport.
    let results = match &pool.arguments {
        Some(_) => Some(Results::create().asked("to make memory for results (memfd_create)")?),
        None => None,
    };
    if let (Some((_, arguments)), Some(results)) = (&pool.arguments, &results) {
        descriptors.extend([arguments.as_fd(), results.descriptor()]);
    }
    let environment = pool.options.places.environment(&program.environment, index);
    let (way, what) = match copy {
        Some(copy) => (Way::Copied(copy), "to start a copy of the fork server"),
        None => {
            let start = program.start(&environment).asked("to duplicate a standard stream")?;
            let what = match program.executable {
                Some(_) => "to start a worker",
                None => "to start /proc/self/exe",
            };
            (Way::Program(start), what)
        }
    };
    let launch = Launch { identity, role, descriptors: &descriptors, attachments: &[] };
    let give_up = |child: Arc<Child>| {
        // If the system refuses this, the child ends when its socket is closed.
        let _ = child.signal_group(Signal::KILL);
        pool.set_apart(child);
    };
    let Launched { child, socket } = launch
        .by(way)
        .map_err(|Refused { error, child, .. }| {
            child.map(Arc::new).into_iter().for_each(give_up);
            error
        })
        .asked(what)?;
    let child = Arc::new(child);
    // The worker runs nothing of its tasks until the driver has heard from it, which is later.
    if let Some(Err(error)) = leaf.as_ref().map(|leaf| leaf.adopt(child.pid())) {
        give_up(child);
        return Err(error).asked("to move a worker to its control group");
    }
    Ok(Started { child, socket, segment, results, nonce, leaf, directory })
}
