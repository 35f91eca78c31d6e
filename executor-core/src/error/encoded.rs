//! Encodes a [`TaskError`] for a process that gets it from another one than the worker, such as the
//! client of a manager whose server has a pool.
//!
//! The form is flat, so no input makes the decoder call itself again and again.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    BrokenCause, CodecFailure, ExitStatus, Failure, LastPanic, LostDetail, MemoryLimitDetail,
    Phase, RemoteError, Side, TaskError, TimedOutDetail,
};

/// An exit status: what it is, and the code or signal.
type Status = (u8, i32);

/// A remote error: the task, the failure, the end of its process, and the attempts.
type Remote = (String, Failure, Option<Status>, u32);

/// A [`LostDetail`].
#[derive(Serialize, Deserialize)]
struct Lost {
    task: String,
    stack_overflow: bool,
    killed_by_system: bool,
    broke_protocol: Option<String>,
    last_panic: Option<(Remote, bool)>,
    no_entry: bool,
    stopped_by: Option<i32>,
    attempts: u32,
    is_poison: bool,
    cpu_time: Option<std::time::Duration>,
}

/// A [`TaskError`], as it is encoded.
#[derive(Serialize, Deserialize)]
enum Form {
    Failed(Remote),
    Panicked(Remote),
    Refused(Remote),
    WorkerLost { pid: u32, status: Status, lost: Box<Lost> },
    TimedOut { limit: Duration, phase: u8, task: String, attempts: u32 },
    MemoryLimit { limit: u64, peak: u64, task: String, pid: u32, attempts: u32, is_poison: bool },
    Cancelled,
    Encode(u8, String, String),
    Decode(u8, String, String),
    Invalid(String),
    Shutdown,
    NoEntry(Status),
    NotStarted(String),
    OtherBuild(String),
    Forked,
    Internal(String),
}

const PHASES: [Phase; 4] = [Phase::Queue, Phase::Run, Phase::Map, Phase::Next];
const SIDES: [Side; 4] =
    [Side::Arguments, Side::ArgumentsInWorker, Side::ResultInWorker, Side::Result];

fn number_of<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter().position(|other| other == one).unwrap_or_default() as u8
}

fn of_number<T: Copy>(all: &[T], number: u8) -> T {
    all.get(usize::from(number)).copied().unwrap_or(all[0])
}

fn from_status(status: ExitStatus) -> Status {
    match status {
        ExitStatus::Exited(code) => (0, code),
        ExitStatus::Signaled(signal) => (1, signal),
        ExitStatus::Unknown => (2, 0),
    }
}

fn to_status(status: Status) -> ExitStatus {
    match status {
        (0, code) => ExitStatus::Exited(code),
        (1, signal) => ExitStatus::Signaled(signal),
        _ => ExitStatus::Unknown,
    }
}

fn from_remote(error: &RemoteError) -> Remote {
    let (task, failure, ended, attempts) = error.parts();
    (task.to_owned(), failure.clone(), ended.map(from_status), attempts)
}

fn to_remote((task, failure, ended, attempts): Remote) -> RemoteError {
    let error = RemoteError::new(task, failure).after(attempts);
    match ended {
        Some(status) => error.ended_by(to_status(status)),
        None => error,
    }
}

fn from_codec(failure: &CodecFailure) -> (u8, String, String) {
    (number_of(&SIDES, &failure.side()), failure.task().to_owned(), failure.message().to_owned())
}

fn to_codec(side: u8, task: String, message: String) -> CodecFailure {
    CodecFailure::new(of_number(&SIDES, side), task, message)
}

fn from_lost(detail: &LostDetail) -> Lost {
    let last_panic = detail.last_panic.as_ref();
    Lost {
        task: detail.task.clone(),
        stack_overflow: detail.stack_overflow,
        killed_by_system: detail.killed_by_system,
        broke_protocol: detail.broke_protocol.clone(),
        last_panic: last_panic.map(|last| (from_remote(&last.panic), last.elsewhere)),
        no_entry: detail.no_entry,
        stopped_by: detail.stopped_by,
        attempts: detail.attempts,
        is_poison: detail.is_poison,
        cpu_time: detail.cpu_time,
    }
}

fn to_lost(lost: Lost) -> LostDetail {
    LostDetail {
        task: lost.task,
        stack_overflow: lost.stack_overflow,
        killed_by_system: lost.killed_by_system,
        broke_protocol: lost.broke_protocol,
        last_panic: lost
            .last_panic
            .map(|(panic, elsewhere)| LastPanic { panic: to_remote(panic), elsewhere }),
        no_entry: lost.no_entry,
        stopped_by: lost.stopped_by,
        attempts: lost.attempts,
        is_poison: lost.is_poison,
        cpu_time: lost.cpu_time,
    }
}

/// Encodes an error.
pub(crate) fn encode(error: &TaskError) -> Vec<u8> {
    let form = match error {
        TaskError::Failed(remote) => Form::Failed(from_remote(remote)),
        TaskError::Panicked(remote) => Form::Panicked(from_remote(remote)),
        TaskError::Refused(remote) => Form::Refused(from_remote(remote)),
        TaskError::WorkerLost { pid, status, detail } => Form::WorkerLost {
            pid: *pid,
            status: from_status(*status),
            lost: Box::new(from_lost(detail)),
        },
        TaskError::TimedOut { limit, phase, detail } => Form::TimedOut {
            limit: *limit,
            phase: number_of(&PHASES, phase),
            task: detail.task.clone(),
            attempts: detail.attempts,
        },
        TaskError::MemoryLimit { limit, peak, detail } => Form::MemoryLimit {
            limit: *limit,
            peak: *peak,
            task: detail.task.clone(),
            pid: detail.pid,
            attempts: detail.attempts,
            is_poison: detail.is_poison,
        },
        TaskError::Cancelled => Form::Cancelled,
        TaskError::Encode(failure) => {
            let (side, task, message) = from_codec(failure);
            Form::Encode(side, task, message)
        }
        TaskError::Decode(failure) => {
            let (side, task, message) = from_codec(failure);
            Form::Decode(side, task, message)
        }
        TaskError::Invalid(what) => Form::Invalid(what.to_string()),
        TaskError::Shutdown => Form::Shutdown,
        TaskError::Broken(BrokenCause::NoEntry { status }) => Form::NoEntry(from_status(*status)),
        TaskError::Broken(BrokenCause::Start(why)) => Form::NotStarted(why.to_string()),
        TaskError::Broken(BrokenCause::OtherBuild(what)) => Form::OtherBuild(what.to_string()),
        TaskError::Broken(BrokenCause::Forked) => Form::Forked,
        TaskError::Broken(BrokenCause::Internal(what)) => Form::Internal(what.to_string()),
        // It contains another error. As a text, it cannot be nested.
        TaskError::Broken(cause @ BrokenCause::Initializer(_)) => {
            Form::NotStarted(cause.to_string())
        }
    };
    postcard::to_stdvec(&form).expect("texts and numbers can be encoded")
}

/// Decodes an error. `None` if the bytes are none.
pub(crate) fn decode(bytes: &[u8]) -> Option<TaskError> {
    Some(match postcard::from_bytes(bytes).ok()? {
        Form::Failed(remote) => TaskError::Failed(to_remote(remote)),
        Form::Panicked(remote) => TaskError::Panicked(to_remote(remote)),
        Form::Refused(remote) => TaskError::Refused(to_remote(remote)),
        Form::WorkerLost { pid, status, lost } => TaskError::WorkerLost {
            pid,
            status: to_status(status),
            detail: Arc::new(to_lost(*lost)),
        },
        Form::TimedOut { limit, phase, task, attempts } => TaskError::TimedOut {
            limit,
            phase: of_number(&PHASES, phase),
            detail: Arc::new(TimedOutDetail { task, attempts }),
        },
        Form::MemoryLimit { limit, peak, task, pid, attempts, is_poison } => {
            let detail = MemoryLimitDetail { task, pid, attempts, is_poison };
            TaskError::MemoryLimit { limit, peak, detail: Arc::new(detail) }
        }
        Form::Cancelled => TaskError::Cancelled,
        Form::Encode(side, task, message) => TaskError::Encode(to_codec(side, task, message)),
        Form::Decode(side, task, message) => TaskError::Decode(to_codec(side, task, message)),
        Form::Invalid(what) => TaskError::invalid(what),
        Form::Shutdown => TaskError::Shutdown,
        Form::NoEntry(status) => {
            TaskError::Broken(BrokenCause::NoEntry { status: to_status(status) })
        }
        Form::NotStarted(why) => TaskError::Broken(BrokenCause::Start(why.into())),
        Form::OtherBuild(what) => TaskError::Broken(BrokenCause::OtherBuild(what.into())),
        Form::Forked => TaskError::Broken(BrokenCause::Forked),
        Form::Internal(what) => TaskError::Broken(BrokenCause::Internal(what.into())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> RemoteError {
        let failure = Failure {
            message: "no config".into(),
            type_name: "Missing".into(),
            location: Some("a.rs:1:2".into()),
            backtrace: Some("frames".into()),
            sources: vec!["cannot read it".into(), "permission denied".into()],
            during: Some("while it was dropped".into()),
            value: None,
        };
        RemoteError::new("load", failure).after(3).ended_by(ExitStatus::Signaled(6))
    }

    fn errors() -> Vec<TaskError> {
        let lost = |change: fn(&mut LostDetail)| {
            let mut detail = LostDetail { task: "load".into(), attempts: 2, ..Default::default() };
            change(&mut detail);
            let status = ExitStatus::Exited(3);
            TaskError::WorkerLost { pid: 7, status, detail: Arc::new(detail) }
        };
        let last_panic = |detail: &mut LostDetail| {
            detail.last_panic = Some(LastPanic { panic: remote(), elsewhere: true });
        };
        let of_memory = |is_poison| {
            let detail = MemoryLimitDetail { task: "load".into(), pid: 7, attempts: 3, is_poison };
            TaskError::MemoryLimit { limit: 1, peak: 2, detail: Arc::new(detail) }
        };
        let mut errors = vec![
            TaskError::Failed(remote()),
            TaskError::Panicked(remote()),
            TaskError::Refused(remote()),
            lost(|detail| detail.stack_overflow = true),
            lost(|detail| detail.killed_by_system = true),
            lost(|detail| detail.broke_protocol = Some("a wild length".into())),
            lost(|detail| detail.no_entry = true),
            lost(|detail| detail.stopped_by = Some(22)),
            lost(|detail| detail.is_poison = true),
            lost(last_panic),
            of_memory(false),
            of_memory(true),
            TaskError::Cancelled,
            TaskError::invalid("zero"),
            TaskError::Shutdown,
            TaskError::Broken(BrokenCause::NoEntry { status: ExitStatus::Unknown }),
            TaskError::Broken(BrokenCause::Start("no thread".into())),
            TaskError::Broken(BrokenCause::OtherBuild("other".into())),
            TaskError::Broken(BrokenCause::Forked),
            TaskError::Broken(BrokenCause::Internal("a fault".into())),
        ];
        for side in SIDES {
            errors.push(TaskError::Encode(CodecFailure::new(side, "load", "a file")));
            errors.push(TaskError::Decode(CodecFailure::new(side, "load", "a file")));
        }
        for phase in PHASES {
            let detail = Arc::new(TimedOutDetail { task: "load".into(), attempts: 2 });
            errors.push(TaskError::TimedOut { limit: Duration::from_millis(5), phase, detail });
        }
        errors
    }

    #[test]
    fn errors_arrive_as_they_were() {
        for error in errors() {
            let arrived = decode(&encode(&error)).expect("it can be decoded");
            assert_eq!(arrived.kind(), error.kind());
            assert_eq!(format!("{arrived:?}"), format!("{error:?}"));
            assert_eq!(arrived.attempts(), error.attempts());
        }
        let initializer = BrokenCause::Initializer(Arc::new(TaskError::Failed(remote())));
        let error = TaskError::Broken(initializer);
        let arrived = decode(&encode(&error)).unwrap();
        assert!(arrived.is_broken() && arrived.to_string().contains("no config"), "{arrived}");
    }

    #[test]
    fn bytes_that_are_no_error_are_refused() {
        for error in errors() {
            let bytes = encode(&error);
            for len in 0..bytes.len() {
                assert!(decode(&bytes[..len]).is_none(), "{error}: {len}");
            }
        }
        assert!(decode(&[0xff; 64]).is_none());
    }
}
