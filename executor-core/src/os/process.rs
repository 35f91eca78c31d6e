//! Child processes: started without the cost of `fork`, watched and reaped through a pidfd, and
//! signalled as a group.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
    sync::{Mutex, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, waitid},
};

use super::{
    asked::Asked,
    exit_status::ExitStatus,
    group::{self, Group},
    image::{self, ByLoader},
    signals,
    socket::{self, retry},
    spawn::{self, Spawn},
    std_or_model::lock,
};

/// The program of this process. It is not the file at the link's target, which may have been
/// replaced or removed. If the program was started through the dynamic loader, this is the loader
/// ([`image::by_loader`]).
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// How to start a program.
#[derive(Debug, Default)]
pub(crate) struct Start<'a> {
    /// `None` means the program of this process, [`OWN_EXECUTABLE`].
    pub(crate) executable: Option<&'a Path>,
    /// `None`: that of this process.
    pub(crate) stdout: Option<OwnedFd>,
    /// `None`: that of this process.
    pub(crate) stderr: Option<OwnedFd>,
    /// Variables to set in the environment, or to remove from it.
    pub(crate) environment: &'a [(OsString, Option<OsString>)],
    pub(crate) directory: Option<&'a Path>,
}

/// Moves a descriptor off the numbers of standard input, output and error. These numbers are free
/// if the program has closed the streams. Anything that the program prints would go to the
/// descriptor.
pub(crate) fn above_stdio(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() > 2 {
        return Ok(descriptor);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&descriptor, 3)?)
}

/// The environment and directory that a forked child gets in place of the copied ones.
#[derive(Debug)]
pub(crate) struct Surrounded {
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) directory: Option<OsString>,
}

impl Surrounded {
    /// Applies them to this process. It fails if the process has more than `threads` threads,
    /// because no other thread may read the environment meanwhile. The expected threads are this
    /// one and, in a test binary, the main thread, which waits for this one.
    pub(crate) fn adopt(self, threads: usize) -> io::Result<()> {
        if settled_thread_count(threads)? > threads {
            return Err(io::Error::other(
                "there are other threads, which may read the environment",
            ));
        }
        // SAFETY: no thread can read the environment meanwhile: the threads were counted above, and
        // the expected ones wait for this one. The variables are not removed one by one, because an
        // environment may contain names that std refuses to remove.
        unsafe { libc::clearenv() };
        for (key, value) in self.environment {
            if key.is_empty() || key.as_bytes().contains(&b'=') {
                continue;
            }
            // SAFETY: as above.
            unsafe { std::env::set_var(key, value) };
        }

        match self.directory {
            None => Ok(()),
            Some(directory) => std::env::set_current_dir(&directory)
                .asked(&format!("directory {}", Path::new(&directory).display())),
        }
    }
}

/// Writes out what this process has printed, through std and through the C library. It may only be
/// called in a process with one thread, because another thread may hold a stream's lock for any
/// time.
pub(crate) fn flush_output() {
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // SAFETY: a null pointer means all output streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Returns the system's number of this thread.
pub(crate) fn this_thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// Whether a thread of this process waits in `pause`, where only a signal can end the wait. std
/// keeps a thread there that calls `exit` while another thread is already doing so.
///
/// Returns `None` if the system does not tell: without `/proc`, and in a program that has given up
/// its privileges and that others may not inspect.
pub(crate) fn is_paused(thread: u32) -> Option<bool> {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).ok()?;
    let mut words = call.split_ascii_whitespace();
    let number = words.next().and_then(|word| word.parse::<libc::c_long>().ok());
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    if number == Some(libc::SYS_pause) {
        return Some(true);
    }
    // On other architectures `pause` is a `ppoll` without descriptors and without a timeout.
    Some(number == Some(libc::SYS_ppoll) && words.take(3).all(|word| word == "0x0"))
}

/// Returns how much processor time a thread of this process has used.
pub(crate) fn computed_by(thread: u32) -> Option<Duration> {
    // The kernel's number for a thread's clock: the inverted thread number, followed by three bits
    // that say "of one thread" (4) and "as the scheduler counts it" (2). glibc only offers this for
    // its own thread handles.
    processor_time((!thread << 3 | 4 | 2).cast_signed())
}

/// Returns how much processor time this process has used. rustix's `clock_gettime` panics if the
/// system refuses to tell.
pub(super) fn processor_time_of_process() -> io::Result<Duration> {
    processor_time(libc::CLOCK_PROCESS_CPUTIME_ID).ok_or_else(io::Error::last_os_error)
}

fn processor_time(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a time to the given address, for any clock number.
    let asked = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (asked == 0).then(|| Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32))
}

/// Returns the number of threads of this process, including this one. Fails if the system does not
/// tell. A caller that must be alone then has to assume that it is not.
pub(crate) fn thread_count() -> io::Result<usize> {
    let threads = std::fs::read_dir("/proc/self/task").and_then(|threads| {
        let mut count = 0_usize;
        for thread in threads {
            thread?;
            count = count.saturating_add(1);
        }
        // This thread exists, so an empty list is not the list of threads.
        if count == 0 { Err(io::ErrorKind::NotFound.into()) } else { Ok(count) }
    });
    threads.asked("this process's threads cannot be counted: is `/proc` mounted?")
}

/// Returns [`thread_count`] once it has come down to `expected`, or after a short time. The system
/// still counts a thread for a moment after it has ended and was joined.
pub(crate) fn settled_thread_count(expected: usize) -> io::Result<usize> {
    /// How long to wait before refusing. With a lower value, a program on a busy machine is refused
    /// although its threads have just ended.
    const MOMENT: Duration = Duration::from_millis(100);
    let deadline = Instant::now() + MOMENT;
    loop {
        let threads = thread_count()?;
        if threads <= expected || Instant::now() >= deadline {
            return Ok(threads);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Opens those of the descriptors 0 to 2 that are closed, as std's runtime does before `main`.
/// Otherwise a file that is opened later could become standard output.
pub(crate) fn fill_stdio() {
    for number in 0..=2 {
        // SAFETY: only reads flags; the number may be anything.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            // This opens the lowest free number, which is `number`. Not close-on-exec, because
            // children must inherit it.
            //
            // SAFETY: a constant path.
            let filled = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
            if filled < 0 {
                // Without devices, open a directory that can be neither read nor written. The
                // number behaves as if closed, but is taken.
                //
                // SAFETY: a constant path.
                unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_DIRECTORY) };
            }
        }
    }
}

/// Sets the name of this thread. That of the main thread is the name of the process for `ps`, `top`
/// and `pgrep`.
pub(crate) fn set_short_name(name: &std::ffi::CStr) {
    // The system shortens the name if needed.
    let _ = rustix::thread::set_name(name);
}

/// Where the first argument of this process lies, and how long it is.
static FIRST_ARGUMENT: OnceLock<(usize, usize)> = OnceLock::new();

/// Finds out where the first argument of this process lies, for its copies.
pub(crate) fn remember_first_argument() {
    // The fields 48 and 49. The second one, in parentheses, may contain anything.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let bounds = stat.rsplit_once(')').and_then(|(_, fields)| {
        let mut fields = fields.split_ascii_whitespace().skip(45);
        let mut address = || fields.next()?.parse::<usize>().ok();
        Some((address()?, address()?))
    });
    let argument = std::env::args_os().next().unwrap_or_default();
    let has_room =
        |(start, end): &(usize, usize)| *start != 0 && end.saturating_sub(*start) > argument.len();
    if let Some((start, _)) = bounds.filter(has_room)
        // SAFETY: the kernel says that this process's arguments begin there, one behind the other,
        // each with a 0 at its end. They lie on the stack, which is not unmapped. The comparison
        // reads no further than the first one is long, as std has found it.
        && unsafe { std::slice::from_raw_parts(start as *const u8, argument.len()) }
            == argument.as_encoded_bytes()
    {
        let _ = FIRST_ARGUMENT.set((start, argument.len()));
    }
}

/// Replaces the first argument, where the kernel, `ps` and `std::env::args` find it: what fits, and
/// spaces behind it. For a process with one thread.
pub(crate) fn replace_first_argument(line: &[u8]) {
    let Some(&(start, room)) = FIRST_ARGUMENT.get() else { return };
    let mut whole = vec![b' '; room];
    let len = line.len().min(room);
    whole[..len].copy_from_slice(&line[..len]);
    // SAFETY: the memory belongs to this process and is writable: see `remember_first_argument`.
    // The 0 behind it stays. No other thread reads it, because there is none.
    unsafe { std::ptr::copy_nonoverlapping(whole.as_ptr(), start as *mut u8, room) };
}

/// Replaces descriptor 0 by an empty input.
pub(crate) fn empty_stdin() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let empty = null.or_else(|_| {
        // Some sandboxes have no devices. A pipe without a writer is at its end, too.
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map(|(read, _write)| read)
    })?;
    Ok(rustix::stdio::dup2_stdin(empty)?)
}

/// Whether this program has privileges that its starter lacks. This is so if it, or the program
/// that started it, has changed user or group on the way, or if its file gives it capabilities. The
/// kernel reports this to each program that it starts.
pub(crate) fn is_privileged() -> bool {
    // SAFETY: returns a number.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Describes an error of the system at the start of a program: it is about the program's file, or
/// about the directory in which the child is to run.
fn not_started(executable: Option<&Path>, directory: Option<&Path>, error: io::Error) -> io::Error {
    let program = executable.unwrap_or(Path::new(OWN_EXECUTABLE)).display();
    // The system reports both with the same errors.
    let refuses = |path: &&Path| {
        error.kind() == io::ErrorKind::PermissionDenied
            || !std::fs::metadata(path).is_ok_and(|it| it.is_dir())
    };
    match directory.filter(refuses) {
        Some(directory) => io::Error::new(
            error.kind(),
            format!("{program} in the directory {}: {error}", directory.display()),
        ),
        None if executable.is_none() => own_executable(error),
        None => io::Error::new(error.kind(), format!("{program}: {error}")),
    }
}

/// Describes an error of the system about this program's file.
fn own_executable(error: io::Error) -> io::Error {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let hint = if missing {
        " (a program starts itself again from there: is `/proc` mounted?)"
    } else {
        ""
    };
    io::Error::new(error.kind(), format!("{OWN_EXECUTABLE}{hint}: {error}"))
}

/// Returns why a program that this process starts from its own file would be
/// [privileged](is_privileged), or `None` if it would not be. A privileged program would not trust
/// this process, and would not act as its child.
fn would_be_privileged() -> io::Result<Option<&'static str>> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    if getuid() != geteuid() || getgid() != getegid() {
        return Ok(Some(
            "this process acts as another user or group than its own (its real and effective ids differ)",
        ));
    }
    let file = std::fs::metadata(OWN_EXECUTABLE).map_err(own_executable)?;
    let has = |bits: u32| file.mode() & bits == bits;
    // The setgid bit only has this meaning together with the group's execute bit.
    let changes = (has(libc::S_ISUID) && file.uid() != geteuid().as_raw())
        || (has(libc::S_ISGID | libc::S_IXGRP) && file.gid() != getegid().as_raw());
    let has_capabilities = !geteuid().is_root()
        && rustix::fs::getxattr(OWN_EXECUTABLE, "security.capability", &mut [0_u8; 64][..]).is_ok();
    if !changes && !has_capabilities {
        return Ok(None);
    }
    // The kernel may be configured to ignore all of this.
    let ignored = rustix::fs::statvfs(OWN_EXECUTABLE)
        .is_ok_and(|mount| mount.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID))
        || rustix::thread::no_new_privs().unwrap_or(false);
    Ok((!ignored).then_some(
        "the program's file gives privileges to whoever starts it (setuid, setgid or capabilities)",
    ))
}

/// Returns the arguments of the program to be started: its name, and the marker of a child.
fn arguments(start: &Start<'_>, name: OsString, marker: &str) -> io::Result<Vec<OsString>> {
    let mut arguments = vec![name];
    if start.executable.is_none()
        && let Some(by_loader) = image::by_loader()
    {
        // The started file is the loader then. It gets the same options as the first time.
        let ByLoader { options, program } = by_loader;
        std::fs::metadata(&program).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "{}: {error} (this program was started by way of the dynamic loader, so {OWN_EXECUTABLE} is the loader, \
                     and the program's own file is started by its path)",
                    program.display()
                ),
            )
        })?;
        arguments.extend(options);
        arguments.push(program.into());
    }
    arguments.push(marker.into());
    Ok(arguments)
}

/// Makes a copied process, a child of this one, lead its own process group. The copy may have
/// ended: until it is reaped, it can be moved to another group.
pub(crate) fn lead_own_group(child: u32) {
    // Number 0 would mean this process itself.
    if let Some(child) = Pid::from_raw(child.cast_signed()) {
        // If this is refused, the copy does it itself. If the copy was reaped by other code, there
        // is nothing to do.
        let _ = rustix::process::setpgid(Some(child), Some(child));
    }
}

/// A child process that leads its own process group.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    /// `None` if other code had reaped the child before its pidfd could be opened.
    pidfd: Option<OwnedFd>,
    /// See [`Group::is_over`].
    group_is_over: AtomicBool,
    /// How it ended, once it was reaped. Whoever signals its group holds this: the number of the
    /// group may be another's after that.
    reaped: Mutex<Option<ExitStatus>>,
}

impl Child {
    /// Starts a program. Its descriptor 0 is one end of a [pair of sockets](socket::pair). It has
    /// standard output and error, and no other descriptor. Returns the child and the other end.
    ///
    /// `name` is its first argument, which `ps` shows.
    ///
    /// `say` sends what the child finds in its socket at the start. It [must not
    /// wait](signals::as_one_user) for anything. A message that finds no room is an error, because
    /// the child does not read yet.
    pub(crate) fn start(
        start: Start<'_>,
        name: OsString,
        marker: &str,
        say: impl FnOnce(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<(Child, OwnedFd)> {
        spawn::prepare();
        let arguments = arguments(&start, name, marker)?;
        // The child only trusts a socket that was created by the user as which the child runs. A
        // `setuid` by another thread, which changes this thread as well, happens before all of this
        // or after it.
        let (pid, ours) = signals::as_one_user(|mask| {
            if start.executable.is_none()
                && let Some(why) = would_be_privileged()?
            {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!(
                        "{why}; a program with privileges is nobody's worker, so none is started"
                    ),
                ));
            }
            let (ours, theirs) = socket::pair().asked("to make a pair of sockets")?;
            socket::without_waiting(&ours, || say(&ours)).asked("to send it what it needs")?;
            let spawned = Spawn {
                program: start.executable.unwrap_or(Path::new(OWN_EXECUTABLE)),
                arguments,
                directory: start.directory,
                environment: start.environment,
                stdin: theirs,
                stdout: start.stdout,
                stderr: start.stderr,
                mask,
            }
            .spawn();
            let pid =
                spawned.map_err(|error| not_started(start.executable, start.directory, error))?;
            Ok((pid, ours))
        })?;
        let child = Child::watch(pid).inspect_err(|_| {
            // A child that cannot be watched must not go on, nor stay as a zombie. A child that may
            // not be killed (its file makes it run as another user) finds its socket closed, and is
            // not waited for.
            if group::kill_unwatched(pid) {
                let _ = retry(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
            }
        })?;
        Ok((child, ours))
    }

    /// Takes over a child that was created in another way: by `fork`, here or in the fork server.
    pub(crate) fn adopt(pid: u32) -> io::Result<Child> {
        let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidInput)?;
        Child::watch(pid).inspect_err(|_| {
            if rustix::process::kill_process(pid, Signal::KILL).is_ok() {
                let _ = retry(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
            }
        })
    }

    fn watch(pid: Pid) -> io::Result<Child> {
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Some(above_stdio(pidfd)?),
            // Other code has reaped the child already: SIGCHLD is ignored, or that code waits for
            // any child.
            Err(Errno::SRCH) => None,
            Err(error) => return Err(error).asked("to watch a process (pidfd_open)"),
        };
        Ok(Child { pid, pidfd, group_is_over: AtomicBool::new(false), reaped: Mutex::default() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// Returns the pidfd, which is readable once the child has ended. `None` means that the child
    /// has ended.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Whether the child has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let Some(pidfd) = self.pidfd() else { return true };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// Sends a signal to the child and all processes that it started, except those that left its
    /// group.
    ///
    /// Fails if neither any process of the group nor the child alone could be signalled. Then they
    /// run as another user, or this process does.
    pub(crate) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        let reaped = lock(&self.reaped);
        if reaped.is_some() {
            return Ok(());
        }
        match self.group().signal(signal) {
            Ok(()) => Ok(()),
            // The child does not lead the group (the system has refused that to a copy of this
            // process), or has ended.
            Err(_) => self.signal(signal),
        }
    }

    /// Kills what is left of the group that the child led: the processes that it had started. This
    /// also works after any code has reaped the child.
    pub(crate) fn kill_rest(&self) {
        // Usually no member is left, and the call fails. A process that runs as another user may
        // stay.
        let _ = self.group().signal(Signal::KILL);
    }

    fn group(&self) -> Group<'_> {
        Group { leader: self.pid, pidfd: self.pidfd(), is_over: &self.group_is_over }
    }

    /// Returns the signal by which the child is stopped, if it is. Stops by a debugger do not
    /// count. Other code that waits for the child still gets its status.
    pub(crate) fn stopped_by(&self) -> Option<i32> {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let pidfd = self.pidfd()?;
        retry(|| waitid(WaitId::PidFd(pidfd), options)).ok()??.stopping_signal()
    }

    /// Returns how much processor time the child has used.
    pub(crate) fn computed(&self) -> Option<Duration> {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: writes a clock's number to the given address.
        if unsafe { libc::clock_getcpuclockid(self.pid().cast_signed(), &raw mut clock) } != 0 {
            return None;
        }
        processor_time(clock)
    }

    /// Returns how much memory of the child is resident, in bytes, including what it shares with
    /// other processes. `None` if the child was reaped, or the system does not tell.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        // In a PID namespace with the `/proc` of another one, this would be another process.
        if !group::own_processes() {
            return None;
        }
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).ok()?;
        let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
        // Until the child is reaped, its number belongs to no other process.
        let reaped = self.status().is_some();
        (!reaped && pages > 0).then(|| pages * rustix::param::page_size() as u64)
    }

    /// Sends a signal to the child alone. The signal never reaches another process, even after the
    /// child was reaped.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pidfd) = self.pidfd() else { return Ok(()) };
        match rustix::process::pidfd_send_signal(pidfd, signal) {
            // The child has ended.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the exit status, once [`reap`](Self::reap) has taken it.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        *lock(&self.reaped)
    }

    /// Takes the exit status of a child that has ended. Also kills the processes that it had
    /// started, unless `may_stay` returns `true` for this status.
    ///
    /// All code that reaps a child calls this function, whatever the child was for and however it
    /// ended.
    pub(crate) fn reap(&self, may_stay: impl FnOnce(ExitStatus) -> bool) -> ExitStatus {
        let mut reaped = lock(&self.reaped);
        if let Some(status) = *reaped {
            return status;
        }
        let has_ended = self.has_ended();
        let status = self.ask(WaitIdOptions::NOWAIT);
        // Kill the rest before reaping, if the child is ours to reap. Until then its number is not
        // reused. So even a kernel that only knows groups by their number kills the right one.
        if !may_stay(status) {
            self.kill_rest();
        }
        if status != ExitStatus::Unknown {
            self.ask(WaitIdOptions::empty());
        }
        // One that could not be killed may be reaped later.
        if has_ended || status != ExitStatus::Unknown {
            *reaped = Some(status);
        }
        status
    }

    /// Returns how the child has ended. The result is unknown if other code has reaped it: SIGCHLD
    /// is ignored, or another part of the program waits for any child.
    fn ask(&self, how: WaitIdOptions) -> ExitStatus {
        let Some(pidfd) = self.pidfd() else { return ExitStatus::Unknown };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | how;
        let Ok(Some(status)) = retry(|| waitid(WaitId::PidFd(pidfd), options)) else {
            return ExitStatus::Unknown;
        };
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Exited(code),
            (None, Some(signal)) => ExitStatus::Signaled(signal),
            (None, None) => ExitStatus::Unknown,
        }
    }

    /// Waits for the child's end, for at most `timeout`. Returns whether it has ended.
    pub(crate) fn ends_within(&self, timeout: Duration) -> bool {
        self.wait(timeout);
        self.has_ended()
    }

    /// Waits for the end of a child that is about to end, kills it if that takes longer than
    /// `timeout`. It does not reap the child.
    pub(crate) fn end(&self, timeout: Duration) {
        if !self.ends_within(timeout) {
            // If this is refused, there is nothing else to try. The child is left alone, and only
            // waited for once more.
            let _ = self.signal(Signal::KILL);
            self.wait(timeout);
        }
    }

    /// Kills the child and waits for its end for at most `timeout`. It does not reap the child. It
    /// is for the case that no other code is left to do so.
    pub(crate) fn kill(&self, timeout: Duration) {
        // If this is refused, the child ends when its socket is closed, which the caller does.
        let _ = self.signal_group(Signal::KILL);
        self.wait(timeout);
    }

    fn wait(&self, timeout: Duration) {
        if let Some(pidfd) = self.pidfd() {
            let timeout = rustix::event::Timespec {
                tv_sec: timeout.as_secs() as _,
                tv_nsec: timeout.subsec_nanos() as _,
            };
            let mut fds =
                [rustix::event::PollFd::from_borrowed_fd(pidfd, rustix::event::PollFlags::IN)];
            let _ = retry(|| rustix::event::poll(&mut fds, Some(&timeout)));
        }
    }
}
