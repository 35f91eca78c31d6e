//! A child that makes other children by `fork`: it is small and has one thread, so a copy of it is cheap, and nothing is
//! locked in it.
//!
//! ```text
//!  parent                                      fork server, one thread
//!    setup of a child, written into one end of a pair
//!    the other end  ──── "make one" ────────►  clone(CLONE_PARENT): the child is the parent's own
//!    pid            ◄──── its pid ──────────   │
//!                                              └─► child: closes the server's socket, reads its setup, lives
//!  the parent dies, or hangs up: end of file, and the server ends
//! ```

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::{beside::Arrived, call::Caller};
use crate::{
    id::TaskId,
    os::{fork, process::thread_count, socket},
    registry,
    wire::{
        frame::Kind,
        handshake::{self, ForkServerSetup, Report},
    },
};

/// Serves until the parent hangs up: `None`. In a child: the socket that tells it what it is for.
pub(super) fn serve(socket: &OwnedFd, setup: ForkServerSetup) -> Option<OwnedFd> {
    let ready = prepare(setup).err().unwrap_or_default();
    let report =
        Report { kind: Kind::Ready as u8, payload: ready.clone().into_bytes().into(), attachments: 0 };
    handshake::send(socket, &report, &[]).ok()?;
    if !ready.is_empty() {
        return None;
    }
    loop {
        let mut asked = [0; 1];
        let (len, descriptors) = socket::recv_short(socket, &mut asked).ok()?;
        if len == 0 {
            return None;
        }
        let answer: io::Result<u32> = match descriptors.into_iter().next() {
            None => Err(io::ErrorKind::InvalidData.into()),
            Some(own) => match fork::clone_sibling() {
                Ok(Some(pid)) => Ok(pid),
                Ok(None) => return Some(own),
                Err(error) => Err(error),
            },
        };
        let answer = match answer {
            Ok(pid) => i64::from(pid),
            Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::EINVAL)),
        };
        socket::send(socket.as_fd(), &answer.to_le_bytes(), &[]).ok()?;
    }
}

/// Runs what is to be there in every child.
fn prepare(setup: ForkServerSetup) -> Result<(), String> {
    registry::check()?;
    if registry::fingerprint() != setup.tasks {
        return Err("the fork server runs another build of this program".into());
    }
    for (function, arguments) in setup.preload {
        let arguments = Arrived { bytes: &arguments, attachments: Vec::new() };
        let task = TaskId::from_raw(1);
        // Its runtime, if it is async, ends with the caller.
        Caller::new(None).call(task, function, arguments, false, |kind, contents, _| {
            match (kind, contents) {
                (Kind::Done, _) => Ok(()),
                (_, crate::wire::buffer::Contents::Bytes(bytes)) => {
                    Err(crate::wire::reply::text(kind, bytes))
                }
                (_, crate::wire::buffer::Contents::Segment(..)) => Err("it failed".to_owned()),
            }
        })?;
    }
    match thread_count() {
        1 => Ok(()),
        threads => Err(format!(
            "after `preload` the fork server has {threads} threads; a copy of such a process has only one of them, and what \
             the others had locked stays so for ever"
        )),
    }
}
