//! A child that makes other children by `fork`: it is small and has one thread, so a copy of it is cheap, and nothing is
//! locked in it.
//!
//! ```text
//!  parent                                      fork server, one thread
//!    setup of a child, written into one end of a pair
//!    the other end  ──── "make one" ────────►  clone(CLONE_PARENT): the child is the parent's own
//!    pid            ◄──────────────────────────└─► child: says its pid over its own socket,
//!    makes it leave the server's group               leaves the server's group, reads its setup, lives
//!                                                  (no copy: the server says why, over the same socket)
//!  the server dies meanwhile: the pid, or the end of that socket, and so no child that nobody knows of
//!  the child dies before it has said its pid: it is in the server's group, which is ended and reaped then
//!  the parent dies (pidfd), or hangs up (end of file): the server ends
//! ```

use std::os::fd::OwnedFd;

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, getppid, pidfd_open},
};

use super::{beside::Arrived, call::Caller, entry::lead_own_group, watcher};
use crate::{
    id::TaskId,
    os::{
        fork,
        process::{flush_output, settled_thread_count},
        socket,
    },
    registry,
    wire::{
        frame::Reply,
        handshake::{self, ForkServerSetup, Refusal, Report},
    },
};

/// Serves until the parent hangs up: `None`. In a child: the socket that tells it what it is for.
pub(super) fn serve(parent: u32, socket: &OwnedFd, setup: ForkServerSetup) -> Option<OwnedFd> {
    // No thread for this here. The socket alone does not tell: a copy of the parent may hold the other end, too.
    let parent = Pid::from_raw(parent.cast_signed())?;
    watcher::outlive_no_stop();
    let pidfd = match pidfd_open(parent, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            let _ =
                handshake::refuse(socket, &Refusal::of("to watch its parent (pidfd_open)", &error.into()));
            return None;
        }
    };
    if getppid() != Some(parent) {
        return None;
    }
    if let Err(why) = prepare(setup) {
        let _ = handshake::refuse(socket, &why.into());
        return None;
    }
    kill_point!(ServerPrepared);
    let report =
        Report { kind: Reply::Ready as u8, payload: Vec::new().into(), in_file: false, attachments: 0 };
    handshake::send(socket, &report, &[]).ok()?;
    kill_point!(ServerReady);
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        socket::retry(|| poll(&mut fds, None)).ok()?;
        if getppid() != Some(parent) {
            return None;
        }
        let mut asked = [0; 1];
        let (len, descriptors) = socket::recv_short(socket, &mut asked).ok()?;
        if len == 0 {
            return None;
        }
        let own = descriptors.into_iter().next()?;
        kill_point!(ServerAsked);
        match fork::clone_sibling() {
            // The copy has its own descriptor of the socket, and says who it is.
            Ok(Some(_)) => kill_point!(ServerCloned),
            Ok(None) => {
                kill_point!(CopyMade);
                // First its number: one that dies unknown is reaped with the server's group, in which it is until then.
                socket::send(&own, &i64::from(std::process::id()).to_le_bytes(), &[]).ok()?;
                kill_point!(CopyNamed);
                lead_own_group();
                kill_point!(CopyLeads);
                return Some(own);
            }
            Err(error) => {
                let answer = -i64::from(error.raw_os_error().unwrap_or(libc::EINVAL));
                // Whoever asked may have gone.
                let _ = socket::send(&own, &answer.to_le_bytes(), &[]);
            }
        }
    }
}

/// Runs what is to be there in every child.
fn prepare(setup: ForkServerSetup) -> Result<(), String> {
    if registry::fingerprint() != setup.tasks {
        return Err("the fork server runs another build of this program".into());
    }
    for (function, arguments) in setup.preload {
        let arguments = Arrived { bytes: &arguments, attachments: Vec::new() };
        let task = TaskId::from_raw(1);
        // Its runtime, if it is async, ends with the caller.
        Caller::new(None).call(task, function, arguments, |kind, contents, _| match (kind, contents) {
            (Reply::Done, _) => Ok(()),
            (_, crate::wire::buffer::Contents::Bytes(bytes)) => Err(crate::error::reply::text(kind, bytes)),
            (_, crate::wire::buffer::Contents::Segment(..)) => Err("it failed".to_owned()),
        })?;
    }
    match settled_thread_count(1).map_err(|error| format!("after `preload`: {error}"))? {
        // What `preload` has printed without a line's end would be in each copy's buffer.
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
