//! A child that makes other children by `fork`. It is small and has only one thread, so copying it
//! is cheap, and no lock is held in it during a fork.
//!
//! ```text
//!  parent                                   fork server, one thread
//!    makes a pair of sockets
//!    one end  ──── "make one" ───────────►  clone(CLONE_PARENT): the child is the parent's own
//!    pid      ◄───────────────────────────└─► child: sends its pid over that end,
//!    moves the child out of the                 leaves the server's group,
//!    server's group
//!    setup    ────────────────────────────────► reads its setup, runs its task
//!                                           (no copy: the server sends the error instead)
//!
//!  the server dies meanwhile: the parent receives the pid, or the end of that socket; so there is
//!                             no child that the parent does not know
//!  the child dies before it has sent its pid: it is in the server's group, which is killed and
//!                             reaped after that
//!  the parent dies (pidfd), or hangs up (end of file): the server ends, with what `preload` has
//!                             started; while `preload` runs, another thread watches for that, and
//!                             kills the server's group
//! ```

use std::os::fd::OwnedFd;

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, getppid, pidfd_open},
};

use super::{ancillary::Arrived, call::Caller, entry::lead_own_group, watcher};
use crate::{
    id::TaskId,
    os::{
        fork,
        process::{flush_output, remember_first_argument, settled_thread_count},
        socket,
    },
    registry,
    wire::{
        frame::Reply,
        handshake::{self, ForkServerSetup, Refusal, Report},
    },
};

/// Serves requests until the parent hangs up, and returns `None`. In a child, returns the socket
/// from which the child receives its setup.
pub(super) fn serve(parent: u32, socket: &OwnedFd, setup: ForkServerSetup) -> Option<OwnedFd> {
    // The parent is watched by this thread: the server has no other thread. The socket alone is not
    // enough, because a copy of the parent may hold the other end, too.
    let parent = Pid::from_raw(parent.cast_signed())?;
    watcher::outlive_no_stop();
    remember_first_argument();
    let pidfd = match pidfd_open(parent, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            let _ = handshake::refuse(
                socket,
                &Refusal::of("to watch its parent (pidfd_open)", &error.into()),
            );
            return None;
        }
    };
    if getppid() != Some(parent) {
        return None;
    }
    let prepared = match setup.preload.is_empty() {
        true => prepare(setup),
        // A preload may take long, and this thread is not watching meanwhile.
        false => match watcher::during(parent, &pidfd, socket, || prepare(setup)) {
            Ok(prepared) => prepared,
            Err(error) => Err(format!("to watch its parent during `preload`: {error}")),
        },
    };
    if let Err(why) = prepared.and_then(|()| settle()) {
        let _ = handshake::refuse(socket, &why.into());
        return None;
    }
    kill_point!(ServerPrepared);
    let report = Report {
        kind: Reply::Ready as u8,
        payload: Vec::new().into(),
        in_file: false,
        attachments: 0,
    };
    handshake::send(socket, &report, &[]).ok()?;
    kill_point!(ServerReady);
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        socket::retry(|| poll(&mut fds, None)).ok()?;
        if getppid() != Some(parent) {
            // Nobody else ends what `preload` has started.
            watcher::end_group();
        }
        let mut asked = [0; 1];
        let (len, descriptors) = socket::recv_short(socket, &mut asked).ok()?;
        if len == 0 {
            // The parent may be dying: the system closes its descriptors first.
            watcher::end_programs(parent);
            return None;
        }
        let own = descriptors.into_iter().next()?;
        kill_point!(ServerAsked);
        match fork::clone_sibling() {
            // The copy has its own descriptor of the socket, and sends its pid itself.
            Ok(Some(_)) => kill_point!(ServerCloned),
            Ok(None) => {
                kill_point!(CopyMade);
                // Send the pid first. If this process dies before the parent has received it, it is
                // reaped with the server's group, to which it belongs until it leaves it below.
                socket::send(&own, &i64::from(std::process::id()).to_le_bytes(), &[]).ok()?;
                kill_point!(CopyNamed);
                lead_own_group();
                kill_point!(CopyLeads);
                return Some(own);
            }
            Err(error) => {
                let answer = -i64::from(error.raw_os_error().unwrap_or(libc::EINVAL));
                // The parent may be gone.
                let _ = socket::send(&own, &answer.to_le_bytes(), &[]);
            }
        }
    }
}

/// Runs the tasks of `preload`, whose state is to exist in every child.
fn prepare(setup: ForkServerSetup) -> Result<(), String> {
    if registry::fingerprint() != setup.tasks {
        return Err("the fork server runs another build of this program".into());
    }
    for (function, name, arguments) in setup.preload {
        let mut arguments = Arrived { bytes: &arguments, attachments: Vec::new() };
        let task = TaskId::from_raw(1);
        // If the task is async, its runtime ends with this caller.
        Caller::new(None)
            .call(task, function, &mut arguments, |kind, contents, _| match (kind, contents) {
                (Reply::Done, _) => Ok(()),
                (_, crate::wire::buffer::Contents::Bytes(bytes)) => {
                    Err(crate::error::reply::text(kind, bytes))
                }
                (_, crate::wire::buffer::Contents::Segment(..)) => Err("it failed".to_owned()),
            })
            .map_err(|why| format!("`{name}` of `preload`: {why}"))?;
    }
    Ok(())
}

/// Checks that this process can be copied, and writes out what it has printed.
fn settle() -> Result<(), String> {
    match settled_thread_count(1).map_err(|error| format!("after `preload`: {error}"))? {
        // Output of `preload` without a line's end would be in the buffer of each copy.
        1 => {
            flush_output();
            Ok(())
        }
        threads => Err(format!(
            "after `preload` the fork server has {threads} threads; a copy of such a process has only one of them, and what \
             the others had locked stays so for ever"
        )),
    }
}
