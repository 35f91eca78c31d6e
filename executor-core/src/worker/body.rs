//! A child that runs one task, reports how it ended, and exits.
//!
//! ```text
//!  setup ─► surroundings, limits, watcher ─► call: decode, run, encode ─► Report ─► the exit code
//!                                              │ a panic: goes to the board, is printed
//!                                              ▼
//!                                 exit, abort, a signal: no report; the parent reads the status
//! ```

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
};

use super::{ancillary::Arrived, call::Caller, panics, watcher};
use crate::{
    id::TaskId,
    os::{fault, memory::Shared, process::Surrounded, sealed, socket},
    registry,
    transport::board::Board,
    wire::{
        buffer::Contents,
        frame::Reply,
        handshake::{self, BodySetup, Report, Surroundings},
    },
};

/// Used as the task id on the board of a process with one task.
pub(crate) const BODY: TaskId = TaskId::from_raw(1);

/// The exit code of a program whose `main` has returned an error.
const FAILED: i32 = 1;
/// The exit code of a program whose `main` has panicked.
pub(super) const PANICKED: i32 = 101;

/// Upper bound for the size of a report without its payload.
const REPORT_BYTES_BESIDE: usize = 1024;

/// Runs the body. Returns the exit code.
///
/// `threads` is the number of threads of this process, including the calling one.
pub(crate) fn run(
    parent: u32,
    setup: BodySetup,
    socket: OwnedFd,
    descriptors: Vec<OwnedFd>,
    threads: usize,
) -> i32 {
    // The socket stays open until the process ends. This process watches it, and the parent watches
    // the other end.
    let socket: &'static OwnedFd = Box::leak(Box::new(socket));
    let refuse = |text: String| {
        let _ = handshake::refuse(socket, &text.into());
        FAILED
    };
    let prepared = match prepare(parent, &setup, socket, descriptors, threads) {
        Ok(prepared) => prepared,
        Err(text) => return refuse(text),
    };
    let attachments = match handshake::receive_attachments(socket, setup.attachments) {
        Ok(attachments) => attachments,
        Err(error) => return refuse(format!("its descriptors did not arrive: {error}")),
    };
    kill_point!(BodyPrepared);
    panics::install(prepared, true);
    fault::watch_this_stack(&prepared.stack_overflow);
    let mut arguments = Arrived { bytes: &setup.arguments, attachments };
    // A call without a store never puts its result into a segment.
    let code = Caller::new(None).call(
        BODY,
        setup.function,
        &mut arguments,
        |kind, contents, attachments| {
            let Contents::Bytes(bytes) = contents else { return FAILED };
            // A large result is sent in a file, for which the limits would apply.
            if bytes.len() + REPORT_BYTES_BESIDE > socket::MESSAGE_BYTES_MAX {
                setup.limits.lift();
            }
            // The parent may be gone, if this process outlives it.
            let said = report(socket, kind, bytes, attachments).inspect_err(|error| {
                // If the system refuses the file for a large result, tell the parent. Otherwise it
                // would report this process as lost.
                let text =
                    format!("{} bytes could not be sent to the parent: {error}", bytes.len());
                let _ = report(socket, Reply::Refused, text.as_bytes(), &[]);
            });
            match kind {
                Reply::Done if said.is_ok() || setup.outlives_parent => 0,
                Reply::Panicked => PANICKED,
                _ => FAILED,
            }
        },
    );
    kill_point!(BodyExiting);
    code
}

/// Sends the report of the call to the parent.
fn report(
    socket: &OwnedFd,
    kind: Reply,
    payload: &[u8],
    attachments: &[crate::wire::attachment::Attachment],
) -> io::Result<()> {
    let attached = attachments.len() as u32;
    let report = |payload: &[u8], in_file| Report {
        kind: kind as u8,
        payload: payload.to_vec().into(),
        in_file,
        attachments: attached,
    };
    if payload.len() + REPORT_BYTES_BESIDE <= socket::MESSAGE_BYTES_MAX {
        handshake::send(socket, &report(payload, false), &[])?;
    } else {
        // The parent maps the file, and copies nothing.
        let file = sealed::sealed_file(payload)?;
        handshake::send(socket, &report(&[], true), &[file.as_fd()])?;
    }
    kill_point!(ReportSent);
    handshake::send_attachments(socket, attachments)?;
    kill_point!(Reported);
    Ok(())
}

/// Makes everything ready that must be in place before the arguments are decoded.
fn prepare(
    parent: u32,
    setup: &BodySetup,
    socket: &'static OwnedFd,
    descriptors: Vec<OwnedFd>,
    threads: usize,
) -> Result<&'static Board, String> {
    let own = registry::fingerprint();
    if own != setup.tasks {
        return Err(format!(
            "the executable that was started has {} task functions, its parent {}, and not the same ones: is it another \
             build?",
            own.count, setup.tasks.count
        ));
    }
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or("a descriptor of the setup did not arrive");
    let board = next()?;
    let board = Shared::open(board.as_fd())
        .map_err(|error| format!("its board cannot be read: {error}"))?;
    let board: &'static Shared<Board> = Box::leak(Box::new(board));
    board.note_reached();
    if setup.stdin {
        rustix::stdio::dup2_stdin(next()?)
            .map_err(|error| format!("standard input was refused: {error}"))?;
    }
    if let Some(Surroundings { environment, directory }) = &setup.surroundings {
        let (stdout, stderr) = (next()?, next()?);
        rustix::stdio::dup2_stdout(stdout)
            .map_err(|error| format!("standard output was refused: {error}"))?;
        rustix::stdio::dup2_stderr(stderr)
            .map_err(|error| format!("standard error was refused: {error}"))?;
        let text = |bytes: &serde_bytes::ByteBuf| OsString::from_vec(bytes.to_vec());
        Surrounded {
            environment: environment.iter().map(|(key, value)| (text(key), text(value))).collect(),
            directory: directory.as_ref().map(text),
        }
        .adopt(threads)
        .map_err(|error| format!("its environment or working directory was refused: {error}"))?;
    }
    if !setup.outlives_parent {
        watcher::start(parent, socket, None, None)
            .map_err(|error| format!("it cannot watch its parent: {error}"))?;
    }
    // Set the limits last, because the steps above need descriptors.
    setup.limits.adopt()?;
    debug_assert!(socket::is_one(socket.as_fd()));
    Ok(board)
}
