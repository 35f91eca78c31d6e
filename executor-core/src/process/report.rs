//! The report of a child: how it is received, in steps that never wait.
//!
//! ```text
//!  socket ── first message ──► refused, failed …                  ──► complete
//!                          └─► value, or a file with the value ─┬─► complete
//!                                        └── its descriptors ───┘
//! ```

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Mutex,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    error::reply,
    future::cell::Outcome,
    os::{
        eventfd::EventFd, fork::PerProcess, sealed::SealedView, socket::retry, std_or_model::lock,
    },
    wire::{
        attachment::{ATTACHMENTS_MAX, Attachment},
        frame::Reply,
        handshake::{self, Report},
        payload::Payload,
    },
};

/// The report of a child. It is decoded by the thread that asks for the value. Decoding may take as
/// long as the child likes, and reports are stored under locks that all processes need.
#[derive(Clone)]
pub(super) enum Said {
    Value(Payload),
    Failure(Reply, Payload),
}

impl Said {
    fn refused(why: &str) -> Self {
        Said::Failure(Reply::Refused, why.as_bytes().into())
    }

    pub(super) fn outcome(self, task: &str) -> Outcome {
        match self {
            Said::Value(payload) => Ok(payload),
            Said::Failure(kind, payload) => Err(reply::failure(task, kind, &payload)),
        }
    }
}

/// A descriptor that is kept as a reserve. When a child's result arrives and the program has used
/// up its descriptor numbers, the reserve is closed for the moment in which the result is mapped.
/// It exists while there are child processes.
static SPARE: PerProcess<Mutex<Option<EventFd>>> = PerProcess::new(Mutex::default);

/// Opens the spare descriptor, if there is none.
pub(super) fn keep_spare() {
    let mut spare = lock(SPARE.get());
    if spare.is_none() {
        *spare = EventFd::new().ok();
    }
}

/// Closes the spare descriptor.
pub(super) fn drop_spare() {
    drop(lock(SPARE.get()).take());
}

/// What has arrived of a child's report.
#[derive(Default)]
pub(super) struct Incoming {
    /// Whether nothing more is to be read from the socket.
    heard: bool,
    /// Whether the report has arrived, but this process has no free descriptor number for the
    /// descriptor that belongs to it. The socket is not read again before the child's end. It stays
    /// readable, so the watcher would otherwise never sleep.
    starved: bool,
    report: Option<Said>,
    /// A report whose descriptors have not all arrived yet: its value, the descriptors so far, and
    /// the expected number of descriptors.
    begun: Option<(Payload, Vec<Attachment>, usize)>,
}

impl Incoming {
    /// Returns the report, if all of it has arrived.
    pub(super) fn report(&self) -> Option<&Said> {
        self.report.as_ref()
    }

    /// Returns whether the socket is to be polled. It is not once the report was read, because a
    /// child sends nothing after it.
    pub(super) fn is_awaited(&self) -> bool {
        !self.heard && !self.starved
    }

    /// Reads the available part of a child's report. It never waits, because the child may have
    /// stopped in the middle of the report. `ended` means that the child has ended, so nothing
    /// arrives later.
    pub(super) fn read(&mut self, socket: BorrowedFd<'_>, ended: bool) {
        if !self.heard {
            self.heard = !self.read_part(socket, ended);
        }
    }

    /// Does the same as [`read`](Self::read). Returns whether more is to come.
    fn read_part(&mut self, socket: BorrowedFd<'_>, ended: bool) -> bool {
        if self.starved && !ended {
            return true;
        }
        while is_readable(socket) {
            let complete = match &mut self.begun {
                None => match self.read_first(socket) {
                    Ok(complete) => complete,
                    Err(error) if error.raw_os_error() == Some(libc::EMFILE) && !ended => {
                        self.starved = true;
                        return true;
                    }
                    // The child has closed the socket, which tells no more than its end.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
                    Err(error) => self.refused(&format!(
                        "what it reported cannot be received (recvmsg): {error}"
                    )),
                },
                Some((_, attachments, count)) => match handshake::receive_attachments(socket, 1) {
                    Ok(some) => {
                        attachments.extend(some);
                        attachments.len() >= *count
                    }
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
                    Err(error) => {
                        self.begun = None;
                        self.refused(&format!(
                            "the descriptors of its result cannot be received: {error}"
                        ))
                    }
                },
            };
            if complete {
                if let Some((payload, attachments, _)) = self.begun.take() {
                    self.report = Some(Said::Value(payload.with(attachments)));
                }
                return false;
            }
        }
        true
    }

    /// Reads the first message of a report. Returns whether the report is complete.
    fn read_first(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let answer = match handshake::receive_report_now(socket) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                // Try again after closing the spare descriptor.
                drop_spare();
                let again = handshake::receive_report_now(socket);
                if again.is_err() {
                    keep_spare();
                }
                again
            }
            // The child runs another version of the library. This error is the only part of its
            // message that can be understood.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok(self.refused(&error.to_string()));
            }
            other => other,
        };
        let complete = match answer? {
            Ok((report, file)) => self.begin(report, file),
            Err(refusal) => self.refused(&refusal.why),
        };
        keep_spare();
        Ok(complete)
    }

    /// Records that there is no value, because the child never ran its task, or because its report
    /// could not be received.
    fn refused(&mut self, why: &str) -> bool {
        self.report = Some(Said::refused(why));
        true
    }

    /// Takes the first part of a report. Returns whether the report is complete.
    fn begin(&mut self, report: Report, file: Option<OwnedFd>) -> bool {
        let payload = match file.filter(|_| report.in_file) {
            None => Payload::from(report.payload.into_vec()),
            // The descriptor is closed after this. The mapping is enough.
            Some(file) => match SealedView::open(&file) {
                Ok(view) => Payload::sealed(view),
                Err(error) => {
                    return self.refused(&format!("its result cannot be mapped: {error}"));
                }
            },
        };
        match Reply::from_u8(report.kind) {
            Some(Reply::Done) if report.attachments as usize <= ATTACHMENTS_MAX => {
                let count = report.attachments as usize;
                self.begun = Some((payload, Vec::new(), count));
                count == 0
            }
            Some(
                kind @ (Reply::Failed
                | Reply::Panicked
                | Reply::DecodeError
                | Reply::EncodeError
                | Reply::Unsuited
                | Reply::Refused),
            ) => {
                self.report = Some(Said::Failure(kind, payload));
                true
            }
            // A child never sends such a report.
            _ => true,
        }
    }
}

fn is_readable(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    matches!(retry(|| poll(&mut fds, Some(&Timespec::default()))), Ok(1..))
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    impl Incoming {
        /// A report of which the first part has arrived.
        pub(in crate::process) fn begun() -> Self {
            let begun = Some((Payload::from(&[][..]), Vec::new(), 1));
            Incoming { begun, ..Incoming::default() }
        }

        /// A report that has arrived.
        pub(in crate::process) fn complete() -> Self {
            let report = Some(Said::Value(Payload::from(&[][..])));
            Incoming { report, ..Incoming::default() }
        }
    }
}
