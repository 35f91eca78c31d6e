//! The first exchange, over the socket that is the worker's descriptor 0 at its start.
//!
//! ```text
//! parent                                   worker
//!   Setup { parent, program, role, … }    ──►  read at `init()`; descriptors ride along
//!
//!  a worker:
//!   Hello { nonce, tasks, server }        ◄──  over ipc-channel only: its server listens under `server`
//!   connects to `server`, sends its ends  ──►  accepts
//!                 from now on frames
//!  a process:
//!                                              runs its task
//!   Report { kind, payload }              ◄──  and ends
//!  whatever it is for, if it cannot be that:
//!   Refusal { why }                       ◄──  and ends
//! ```
//!
//! What the child says first is an [`Answer`]: a process that knows that it is a child, and cannot work, says why, also where it
//! could not read its setup. Else the parent could only guess from an exit code.
//!
//! The version comes first, alone in its message's first bytes: another version could not decode the rest.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::attachment::Attachment;
use crate::{
    id::{Fingerprint, FnId},
    os::{
        file,
        signals::Signals,
        socket::{self, MESSAGE_BYTES_MAX},
    },
};

/// Changes whenever a message of the wire changes.
pub(crate) const VERSION: u32 = 5;
/// Stands in the place of a version: what follows is a [`Refusal`], which all versions write alike.
const REFUSED: u32 = u32::MAX;

/// From the parent: who you are.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The parent's process id, to see whether it is still there.
    pub(crate) parent: u32,
    pub(crate) identity: Identity,
    pub(crate) signals: Signals,
    pub(crate) role: Role,
}

/// Environment and ancestry of a process of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// How deep in executors and processes: 0 in the program that the user started.
    pub(crate) depth: u32,
    /// Arguments of the program that the user started.
    pub(crate) args: Vec<serde_bytes::ByteBuf>,
    pub(crate) name: String,
    /// Numbers of its ancestors and itself, each counted within its parent: where default names come from.
    pub(crate) path: Vec<u32>,
    pub(crate) daemon: bool,
    /// Whether it belongs to a pool.
    pub(crate) worker: bool,
    /// Name and pid of who started it.
    pub(crate) parent: Option<(String, u32)>,
    /// What connections between processes of this program prove that they know.
    pub(crate) key: serde_bytes::ByteBuf,
    /// How processes are started where nothing else is said.
    pub(crate) start_method: Option<u8>,
    /// What `log_to_stderr` was told.
    pub(crate) log_level: Option<u8>,
}

impl Identity {
    /// Whether it is a worker of a pool: a daemon, whose own processes need not be.
    pub(crate) fn is_worker(&self) -> bool {
        self.worker
    }
}

/// What a child is for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// A worker of a pool.
    Worker(WorkerSetup),
    /// A process that runs one task and ends.
    Body(Box<BodySetup>),
    /// Makes other children by `fork`.
    ForkServer(ForkServerSetup),
}

/// The worker of a pool: what it needs beside its memory.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerSetup {
    /// To be sent back: proves that the answer belongs to this start.
    pub(crate) nonce: u64,
    /// Stack of the thread that runs tasks.
    pub(crate) stack_bytes: Option<u64>,
    /// Whether two threads can run at a time, as the parent has found out: it takes five files to look.
    pub(crate) several_cpus: bool,
    /// How frames are going to move.
    pub(crate) transport: Transport,
    /// Over ipc-channel: where the worker's server is to be. Nobody else may look into it, and the parent removes it.
    pub(crate) directory: Option<serde_bytes::ByteBuf>,
}

/// A process and its only task.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BodySetup {
    /// The parent's tasks: another build could not read the arguments.
    pub(crate) tasks: Fingerprint,
    pub(crate) function: FnId,
    pub(crate) arguments: serde_bytes::ByteBuf,
    /// How many descriptors follow that belong to the arguments.
    pub(crate) attachments: u32,
    /// Whether it goes on when its parent has died.
    pub(crate) outlives_parent: bool,
    /// Whether its standard input came along.
    pub(crate) stdin: bool,
    pub(crate) limits: crate::os::limits::Limits,
    /// Of a child that was forked, and does not have its parent's: environment and working directory.
    pub(crate) surroundings: Option<Surroundings>,
}

/// What a program started anew inherits by itself.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    pub(crate) environment: Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)>,
    pub(crate) directory: Option<serde_bytes::ByteBuf>,
}

/// Makes other children.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ForkServerSetup {
    pub(crate) tasks: Fingerprint,
    /// Tasks to run before the first child is made.
    pub(crate) preload: Vec<(FnId, serde_bytes::ByteBuf)>,
}

/// What a child says last: how its body ended, as in a reply's frame.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) kind: u8,
    /// Where it is in a file, nothing.
    pub(crate) payload: serde_bytes::ByteBuf,
    /// Whether a sealed file comes along, of which all is payload.
    pub(crate) in_file: bool,
    /// How many descriptors follow that belong to the result.
    pub(crate) attachments: u32,
}

/// How frames move between the pool and a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transport {
    /// Over the rings in the segment that came with the setup.
    Ring,
    /// Over ipc-channel.
    Ipc,
}

/// From the worker: here I am.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) nonce: u64,
    pub(crate) tasks: Fingerprint,
    /// Name of the worker's ipc-channel server, if frames move that way.
    pub(crate) server: Option<String>,
}

/// What a child says first: what it was asked for, or why it cannot be had.
pub(crate) type Answer<T> = Result<T, Refusal>;

/// Why a child cannot be what it was started for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// In words: what was tried, and on what.
    pub(crate) why: String,
}

impl Refusal {
    /// The system has refused `what`.
    pub(crate) fn of(what: &str, error: &io::Error) -> Self {
        Refusal { why: format!("{what}: {error}") }
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Refusal { why }
    }
}

/// Says why this process cannot be what it was started for. This needs no knowledge of the setup, and never waits: the socket may be a
/// stranger's, who has filled it.
pub(crate) fn refuse(socket: impl AsFd, refusal: &Refusal) -> io::Result<()> {
    /// A text that came from elsewhere may be long; the message has to fit.
    const WHY_BYTES_MAX: usize = 16 * 1024;
    let why = &refusal.why;
    let refusal = Refusal { why: why[..why.floor_char_boundary(WHY_BYTES_MAX)].to_owned() };
    let bytes = postcard::to_extend(&refusal, REFUSED.to_le_bytes().to_vec()).map_err(io::Error::other)?;
    socket::send_now(socket, &bytes, &[])
}

/// Writes a message of the first exchange.
pub(crate) fn to_bytes<T: Serialize>(message: &T) -> Vec<u8> {
    let out = VERSION.to_le_bytes().to_vec();
    postcard::to_extend(message, out).expect("messages of the handshake are plain data")
}

/// Sends such a message. What finds no room in one of the socket's goes through a file without a name, and only the
/// version here.
pub(crate) fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = to_bytes(message);
    if bytes.len() <= MESSAGE_BYTES_MAX {
        return socket::send(socket, &bytes, fds).map_err(socket::explained);
    }
    let file = file::anonymous("executor-setup")?;
    file::write_at(&file, &bytes, 0)?;
    let mut fds = fds.to_vec();
    fds.push(file.as_fd());
    socket::send(socket, &VERSION.to_le_bytes(), &fds).map_err(socket::explained)
}

/// Receives such a message, and the descriptors that came with it.
pub(crate) fn receive<T: for<'a> Deserialize<'a>>(socket: impl AsFd) -> io::Result<(T, Vec<OwnedFd>)> {
    let (bytes, fds) = receive_bytes(socket)?;
    Ok((from_bytes(&bytes).map_err(invalid)?, fds))
}

/// Receives what a child says first.
pub(crate) fn receive_answer<T: for<'a> Deserialize<'a>>(socket: impl AsFd) -> io::Result<Answer<T>> {
    let (bytes, _) = receive_bytes(socket)?;
    answer_from_bytes(&bytes).map_err(invalid)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn receive_bytes(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut bytes, mut fds) = socket::recv(socket)?;
    if bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, LEFT));
    }
    if bytes.len() == size_of_val(&VERSION)
        && let Some(large) = fds.pop()
    {
        bytes = read_all(large)?;
    }
    Ok((bytes, fds))
}

/// What the other side has written to a file without a name.
///
/// A file of a file system can have any length, and one whose server does not answer (FUSE, NFS) never ends.
fn read_all(file: OwnedFd) -> io::Result<Vec<u8>> {
    if rustix::fs::fcntl_get_seals(&file).is_err() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a file that is not one of memory (`memfd_create`)",
        ));
    }
    let stat = rustix::fs::fstat(&file)?;
    let len = usize::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidData)?;
    // A length alone is a claim; memory that is there has been paid for by the other side.
    if stat.st_blocks.cast_unsigned().saturating_mul(512) < len as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a file that is mostly holes"));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(io::Error::other)?;
    let mut file = std::fs::File::from(file);
    io::Seek::seek(&mut file, io::SeekFrom::Start(0))?;
    io::Read::read_to_end(&mut io::Read::take(file, len as u64), &mut bytes)?;
    Ok(bytes)
}

/// As [`receive_answer`], a report that is there: never waits, and reads nothing that is in a file. Where this process has no room for
/// its descriptor it is an error (`EMFILE`), and the report stays.
pub(crate) fn receive_report_now(socket: impl AsFd) -> io::Result<Answer<(Report, Option<OwnedFd>)>> {
    let (bytes, fds) = socket::recv_whole_now(socket)?;
    if bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, LEFT));
    }
    let answer = answer_from_bytes::<Report>(&bytes).map_err(invalid)?;
    Ok(answer.map(|report| (report, fds.into_iter().next())))
}

/// Of one message; the socket takes a few more.
const ATTACHMENTS_IN_MESSAGE: usize = 32;

/// Sends descriptors that belong to the message before.
pub(crate) fn send_attachments(socket: impl AsFd, attachments: &[Attachment]) -> io::Result<()> {
    for some in attachments.chunks(ATTACHMENTS_IN_MESSAGE) {
        let fds: Vec<_> = some.iter().map(|descriptor| descriptor.as_fd()).collect();
        socket::send(&socket, &[some.len() as u8], &fds)?;
    }
    Ok(())
}

/// Receives so many descriptors.
pub(crate) fn receive_attachments(socket: impl AsFd, count: u32) -> io::Result<Vec<Attachment>> {
    let mut attachments = Vec::new();
    while attachments.len() < count as usize {
        let mut told = [0; 1];
        let (len, fds) = socket::recv_short(&socket, &mut told)?;
        if len == 0 || told[0] == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "descriptors did not arrive"));
        }
        if fds.len() < usize::from(told[0]) {
            // There was no room for the others.
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        attachments.extend(fds.into_iter().map(Arc::new));
    }
    Ok(attachments)
}

const LEFT: &str = "the other side left during the handshake";

/// Reads a message of the first exchange.
pub(crate) fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let Some((version, rest)) = bytes.split_first_chunk() else {
        return Err(LEFT.into());
    };
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(format!("the other side speaks version {version} of the protocol, this side {VERSION}"));
    }
    decode(rest)
}

/// Reads what a child says first.
pub(crate) fn answer_from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<Answer<T>, String> {
    match bytes.strip_prefix(&REFUSED.to_le_bytes()) {
        Some(refusal) => Ok(Err(decode(refusal)?)),
        None => Ok(Ok(from_bytes(bytes)?)),
    }
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    postcard::from_bytes(bytes)
        .map_err(|error| format!("a message of the handshake does not decode: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_and_garbage_are_told_apart() {
        let hello = Hello { nonce: 7, tasks: Fingerprint { hash: 1, count: 2 }, server: Some("name".into()) };
        let mut bytes = to_bytes(&hello);
        assert_eq!(from_bytes::<Hello>(&bytes), Ok(hello));
        assert!(from_bytes::<Hello>(&bytes[..6]).unwrap_err().contains("does not decode"));
        assert!(from_bytes::<Hello>(&[]).unwrap_err().contains("left"));
        bytes[0] = 99;
        assert!(from_bytes::<Hello>(&bytes).unwrap_err().contains("version 99"));
    }

    #[test]
    fn a_long_message_is_read_from_memory_and_from_no_other_file() {
        let (ours, theirs) = socket::pair().unwrap();
        let long = Refusal::from("x".repeat(4 * MESSAGE_BYTES_MAX));
        send(&theirs, &long, &[]).unwrap();
        assert_eq!(receive::<Refusal>(&ours).unwrap().0, long);

        // One that is of no memory wherever the system keeps its files: on a tmpfs they are memory as well.
        let file = std::fs::File::open("/proc/self/maps").unwrap();
        socket::send(&theirs, &VERSION.to_le_bytes(), &[file.as_fd()]).unwrap();
        let error = receive::<Refusal>(&ours).unwrap_err().to_string();
        assert!(error.contains("memfd_create"), "{error}");
    }

    #[test]
    fn a_refusal_is_understood_by_whoever_waits_for_an_answer() {
        let (ours, theirs) = socket::pair().unwrap();
        for why in ["no".to_owned(), "ü".repeat(MESSAGE_BYTES_MAX)] {
            refuse(&theirs, &Refusal::from(why.clone())).unwrap();
            let refusal = receive_answer::<Hello>(&ours).unwrap().unwrap_err();
            assert!(why.starts_with(&refusal.why) && !refusal.why.is_empty());
            refuse(&theirs, &Refusal::of("/dev/null", &io::ErrorKind::NotFound.into())).unwrap();
            let refusal = receive_answer::<Report>(&ours).unwrap();
            let expected = Refusal::from("/dev/null: entity not found".to_owned());
            assert_eq!(refusal, Err(expected));
        }
    }
}
