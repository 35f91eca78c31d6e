//! The handshake: the first exchange, over the socket that is the child's descriptor 0 at its
//! start.
//!
//! ```text
//! parent                                   child
//!   Setup { parent, identity, role, … }   ──►  read at `init()`; descriptors come with it
//!
//!  a worker:
//!   Hello { nonce, tasks, server }        ◄──  over ipc-channel only: it listens at `server`
//!   connects to `server`, sends its ends  ──►  accepts
//!                 from now on frames
//!  a process:
//!                                              runs its task
//!   Report { kind, payload }              ◄──  and ends
//!  a child that cannot do what it was started for:
//!   Refusal { why }                       ◄──  and ends
//! ```
//!
//! The first message of the child is an [`Answer`]. A process that knows that it is a child, but
//! cannot work, says why, even if it could not read its setup. Otherwise the parent could only
//! guess from the exit code.
//!
//! The version comes first, in the first bytes of each message, because another version could not
//! decode the rest.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{attachment::Attachment, codec::Codec};
use crate::{
    id::{Fingerprint, FnId},
    os::{
        file,
        signals::Signals,
        socket::{self, MESSAGE_BYTES_MAX},
    },
};

/// Version of the protocol. It changes whenever a message of the wire changes.
pub(crate) const VERSION: u32 = 7;
/// A value in the place of the version: a [`Refusal`] follows. All versions encode it in the same
/// way.
const REFUSED: u32 = u32::MAX;

/// First message, from the parent: what the child is and what it is for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The parent's process id, so that the child can see whether the parent still exists.
    pub(crate) parent: u32,
    pub(crate) identity: Identity,
    pub(crate) signals: Signals,
    pub(crate) role: Role,
}

/// Environment and ancestry of a process that this library started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Nesting depth of executors and processes. It is 0 in the program that the user started.
    pub(crate) depth: u32,
    /// Arguments of the program that the user started.
    pub(crate) args: Vec<serde_bytes::ByteBuf>,
    pub(crate) name: String,
    /// Numbers of its ancestors and itself, each counted within its parent. Default names consist
    /// of them.
    pub(crate) path: Vec<u32>,
    pub(crate) daemon: bool,
    /// Whether the process belongs to a pool.
    pub(crate) worker: bool,
    /// Name and process id of the process that started it.
    pub(crate) parent: Option<(String, u32)>,
    /// The key that connections between processes of this program prove to know.
    pub(crate) key: serde_bytes::ByteBuf,
    /// The start method for processes, if nothing else is set.
    pub(crate) start_method: Option<u8>,
    /// The level that was passed to `log_to_stderr`.
    pub(crate) log_level: Option<u8>,
}

impl Identity {
    /// Returns whether this is a worker of a pool. A worker is a daemon, but processes that it
    /// starts need not be.
    pub(crate) fn is_worker(&self) -> bool {
        self.worker
    }
}

/// The purpose of a child.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// A worker of a pool.
    Worker(Box<WorkerSetup>),
    /// A process that runs one task and ends.
    Body(Box<BodySetup>),
    /// Makes other children by `fork`.
    ForkServer(ForkServerSetup),
}

/// What the worker of a pool needs besides its memory.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerSetup {
    /// A number that the worker sends back. It proves that the answer belongs to this start.
    pub(crate) nonce: u64,
    /// Stack size of the thread that runs tasks.
    pub(crate) stack_bytes: Option<u64>,
    /// Whether two threads can run at the same time. The parent found this out; it takes reading
    /// five files.
    pub(crate) several_cpus: bool,
    /// How frames move between pool and worker.
    pub(crate) transport: Transport,
    /// Over ipc-channel: the directory for the worker's server. No other user may look into it, and
    /// the parent removes it.
    pub(crate) directory: Option<serde_bytes::ByteBuf>,
    pub(crate) restraints: Restraints,
    pub(crate) place: WorkerPlace,
    /// Whether its standard input is the first descriptor.
    pub(crate) stdin: bool,
    /// Whether the next descriptor is the one by which everything in its control group is killed.
    pub(crate) control_group: bool,
    /// Whether it writes a report to its stderr if it crashes.
    pub(crate) crash_report: bool,
    /// What the worker calls when a task has failed.
    pub(crate) error_hook: Option<ErrorHook>,
}

/// A function that a worker calls when a task has failed, with a
/// [`TaskFailure`](crate::TaskFailure).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorHook {
    pub(crate) function: FnId,
    /// The format of its arguments.
    pub(crate) codec: Codec,
}

/// What the worker of a pool may not exceed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Restraints {
    /// Private memory in bytes. With more, the worker ends itself.
    pub(crate) memory: Option<u64>,
    /// How much private memory, in bytes, the worker may have more than when it was ready. With
    /// more, it is replaced after the task.
    pub(crate) growth: Option<u64>,
    pub(crate) limits: crate::os::limits::Limits,
}

/// Which of the pool's workers it is, and what belongs to that one.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerPlace {
    /// A number below the number of workers. No other worker of the pool has it.
    pub(crate) index: u32,
    /// The pool's name.
    pub(crate) pool: Option<String>,
    pub(crate) slot: Option<String>,
    /// The CPUs on which it may run.
    pub(crate) cpus: Option<Vec<usize>>,
    pub(crate) nice: Option<i32>,
}

/// What a process with one task needs.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BodySetup {
    /// Fingerprint of the parent's tasks. Another build could not read the arguments.
    pub(crate) tasks: Fingerprint,
    pub(crate) function: FnId,
    pub(crate) arguments: serde_bytes::ByteBuf,
    /// How many descriptors follow that belong to the arguments.
    pub(crate) attachments: u32,
    /// Whether the process continues when its parent dies.
    pub(crate) outlives_parent: bool,
    /// Whether its standard input came with the message.
    pub(crate) stdin: bool,
    pub(crate) limits: crate::os::limits::Limits,
    /// Environment and working directory, for a forked child, which does not get its parent's.
    pub(crate) surroundings: Option<Surroundings>,
}

/// Environment and working directory. A program that is started anew inherits them by itself.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    pub(crate) environment: Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)>,
    pub(crate) directory: Option<serde_bytes::ByteBuf>,
}

/// What a fork server needs. It makes other children by `fork`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ForkServerSetup {
    /// The name of the pool that it is for.
    pub(crate) pool: Option<String>,
    pub(crate) tasks: Fingerprint,
    /// Tasks to run before the first child is made: function, name and arguments.
    pub(crate) preload: Vec<(FnId, String, serde_bytes::ByteBuf)>,
}

/// The last message of a child: how its body ended, as in the frame of a reply.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) kind: u8,
    /// The payload. It is empty if the payload is in a file.
    pub(crate) payload: serde_bytes::ByteBuf,
    /// Whether a sealed file comes with the message. The whole file is the payload.
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

/// First message of a worker that is able to work.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) nonce: u64,
    pub(crate) tasks: Fingerprint,
    /// Name of the worker's ipc-channel server, if frames move that way.
    pub(crate) server: Option<String>,
}

/// The first message of a child: what it was asked for, or the reason why it cannot provide it.
pub(crate) type Answer<T> = Result<T, Refusal>;

/// The reason why a child cannot do what it was started for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// The reason as a text: what was tried, and on what.
    pub(crate) why: String,
}

impl Refusal {
    /// Returns the refusal of a child to which the system refused `what`.
    pub(crate) fn of(what: &str, error: &io::Error) -> Self {
        Refusal { why: format!("{what}: {error}") }
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Refusal { why }
    }
}

/// Sends the reason why this process cannot do what it was started for. It needs no knowledge of
/// the setup. It never waits, because the socket may belong to a stranger who has filled it.
pub(crate) fn refuse(socket: impl AsFd, refusal: &Refusal) -> io::Result<()> {
    /// Maximum length of the text. A text from elsewhere may be long, and the message has to fit.
    const WHY_BYTES_MAX: usize = 16 * 1024;
    let why = &refusal.why;
    let refusal = Refusal { why: why[..why.floor_char_boundary(WHY_BYTES_MAX)].to_owned() };
    let bytes =
        postcard::to_extend(&refusal, REFUSED.to_le_bytes().to_vec()).map_err(io::Error::other)?;
    socket::send_now(socket, &bytes, &[])
}

/// Encodes a message of the handshake.
pub(crate) fn to_bytes<T: Serialize>(message: &T) -> Vec<u8> {
    let out = VERSION.to_le_bytes().to_vec();
    postcard::to_extend(message, out).expect("messages of the handshake are plain data")
}

/// Sends a message of the handshake. A message that is too large for the socket is sent in a file
/// without a name; then only the version is sent through the socket.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
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

/// Receives a message of the handshake, and the descriptors that came with it.
pub(crate) fn receive<T: for<'a> Deserialize<'a>>(
    socket: impl AsFd,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let (bytes, fds) = receive_bytes(socket)?;
    Ok((from_bytes(&bytes).map_err(invalid)?, fds))
}

/// Receives the first message of a child.
pub(crate) fn receive_answer<T: for<'a> Deserialize<'a>>(
    socket: impl AsFd,
) -> io::Result<Answer<T>> {
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
    // A message that consists of the version only has its contents in a file, the last descriptor.
    if bytes.len() == size_of_val(&VERSION)
        && let Some(large) = fds.pop()
    {
        bytes = read_all(large)?;
    }
    Ok((bytes, fds))
}

/// Reads a file without a name that the other side has written.
///
/// The file has to be in memory (a memfd). A file of a file system can have any length, and reading
/// one whose server does not answer (FUSE, NFS) never ends.
fn read_all(file: OwnedFd) -> io::Result<Vec<u8>> {
    if rustix::fs::fcntl_get_seals(&file).is_err() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a file that is not one of memory (`memfd_create`)",
        ));
    }
    let stat = rustix::fs::fstat(&file)?;
    let len = usize::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidData)?;
    // The length alone is only a claim. Memory that is really there was paid for by the other side.
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

/// Receives a report that has already arrived, as [`receive_answer`] does. It never waits, and does
/// not read a payload that is in a file. If this process has no free descriptor for the file, it
/// returns an error (`EMFILE`), and the report stays in the socket.
pub(crate) fn receive_report_now(
    socket: impl AsFd,
) -> io::Result<Answer<(Report, Option<OwnedFd>)>> {
    let (bytes, fds) = socket::recv_whole_now(socket)?;
    if bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, LEFT));
    }
    let answer = answer_from_bytes::<Report>(&bytes).map_err(invalid)?;
    Ok(answer.map(|report| (report, fds.into_iter().next())))
}

/// Number of descriptors in one message. The socket takes a few more.
const ATTACHMENTS_IN_MESSAGE: usize = 32;

/// Sends the descriptors that belong to the previous message.
pub(crate) fn send_attachments(socket: impl AsFd, attachments: &[Attachment]) -> io::Result<()> {
    for some in attachments.chunks(ATTACHMENTS_IN_MESSAGE) {
        let fds: Vec<_> = some.iter().map(|descriptor| descriptor.as_fd()).collect();
        socket::send(&socket, &[some.len() as u8], &fds)?;
    }
    Ok(())
}

/// Receives `count` descriptors.
pub(crate) fn receive_attachments(socket: impl AsFd, count: u32) -> io::Result<Vec<Attachment>> {
    let mut attachments = Vec::new();
    while attachments.len() < count as usize {
        let mut told = [0; 1];
        let (len, fds) = socket::recv_short(&socket, &mut told)?;
        if len == 0 || told[0] == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "descriptors did not arrive"));
        }
        if fds.len() < usize::from(told[0]) {
            // The process had no free descriptors for the others.
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        attachments.extend(fds.into_iter().map(Arc::new));
    }
    Ok(attachments)
}

const LEFT: &str = "the other side left during the handshake";

/// Decodes a message of the handshake.
pub(crate) fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let Some((version, rest)) = bytes.split_first_chunk() else {
        return Err(LEFT.into());
    };
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(format!(
            "the other side speaks version {version} of the protocol, this side {VERSION}"
        ));
    }
    decode(rest)
}

/// Decodes the first message of a child.
pub(crate) fn answer_from_bytes<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
) -> Result<Answer<T>, String> {
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
        let hello = Hello {
            nonce: 7,
            tasks: Fingerprint { hash: 1, count: 2 },
            server: Some("name".into()),
        };
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

        // A file that is not in memory on any system. A file on a tmpfs would be in memory as well.
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
