//! Children: started without `fork`'s costs, watched and reaped by pidfd, signalled as a group.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
    sync::{Mutex, atomic::AtomicBool},
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
    sync::lock,
};

/// The program of this process: not what this points at, which may have been replaced or removed. The dynamic loader, where a program
/// was started by way of it ([`image::by_loader`]).
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// How a program is started. By default as this process was, in the same surroundings.
#[derive(Debug, Default)]
pub(crate) struct Start<'a> {
    /// `None`: the program of this process, as [`OWN_EXECUTABLE`].
    pub(crate) executable: Option<&'a Path>,
    /// `None`: that of this process.
    pub(crate) stdout: Option<OwnedFd>,
    /// `None`: that of this process.
    pub(crate) stderr: Option<OwnedFd>,
    /// Added to the environment, or taken out of it.
    pub(crate) environment: &'a [(OsString, Option<OsString>)],
    pub(crate) directory: Option<&'a Path>,
}

/// Keeps a descriptor off the numbers of standard input, output and error, which are free where a program has closed
/// them: what the program prints would go there.
pub(crate) fn above_stdio(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() > 2 {
        return Ok(descriptor);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&descriptor, 3)?)
}

/// What a forked child is to have in place of what it was copied with.
#[derive(Debug)]
pub(crate) struct Surrounded {
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) directory: Option<OsString>,
}

impl Surrounded {
    /// Only in a process where no thread can read the environment meanwhile: one thread, and in a test binary its main thread,
    /// which waits for it. An error elsewhere.
    pub(crate) fn adopt(self, threads: usize) -> io::Result<()> {
        if settled_thread_count(threads)? > threads {
            return Err(io::Error::other("there are other threads, which may read the environment"));
        }
        // SAFETY: no other thread is there that could read the environment meanwhile: counted above, and those that are
        // expected wait for this one. Not one by one: an environment may contain names that std refuses to take out.
        unsafe { libc::clearenv() };
        for (key, value) in self.environment {
            if key.is_empty() || key.as_bytes().contains(&b'=') {
                continue;
            }
            // SAFETY: as above.
            unsafe { std::env::set_var(key, value) };
        }

        self.directory.map_or(Ok(()), std::env::set_current_dir)
    }
}

/// Writes out what this process has printed, by std and by the C library. In a process with one thread only: another one may
/// hold a stream's lock for as long as it likes.
pub(crate) fn flush_output() {
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // SAFETY: a null pointer stands for all output streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// The system's number of this thread.
pub(crate) fn this_thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// Whether a thread of this process waits in `pause`, for nothing but a signal. That is where std holds a thread that calls
/// `exit` while another one is at it. `None` where the system does not say: without `/proc`, and in a program that others may
/// not look into and that has given up its privileges.
pub(crate) fn is_paused(thread: u32) -> Option<bool> {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).ok()?;
    let mut words = call.split_ascii_whitespace();
    let number = words.next().and_then(|word| word.parse::<libc::c_long>().ok());
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    if number == Some(libc::SYS_pause) {
        return Some(true);
    }
    // Elsewhere `pause` is a `ppoll` of nothing, without a limit.
    Some(number == Some(libc::SYS_ppoll) && words.take(3).all(|word| word == "0x0"))
}

/// How much processor time a thread of this process has used.
pub(crate) fn computed_by(thread: u32) -> Option<Duration> {
    // As the kernel numbers the clocks of threads: the number of the thread, of which all bits are turned, and three bits that
    // say "of one thread" (4) and "as the scheduler counts it" (2). glibc has it for its own handles of threads only.
    processor_time((!thread << 3 | 4 | 2).cast_signed())
}

fn processor_time(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a time to where the pointer points, of whatever clock.
    let asked = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (asked == 0).then(|| Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32))
}

/// All threads of this process, this one included; an error if the system does not say. Whoever needs to be alone is not, as far
/// as is known.
pub(crate) fn thread_count() -> io::Result<usize> {
    let threads = std::fs::read_dir("/proc/self/task").and_then(|threads| {
        let mut count = 0_usize;
        for thread in threads {
            thread?;
            count = count.saturating_add(1);
        }
        // This one is there, so nothing at all is no list of threads.
        if count == 0 { Err(io::ErrorKind::NotFound.into()) } else { Ok(count) }
    });
    threads.asked("this process's threads cannot be counted: is `/proc` mounted?")
}

/// As [`thread_count`], when it has come down to `expected`, or does not: the system counts a thread that has ended, and was
/// joined, for a moment more.
pub(crate) fn settled_thread_count(expected: usize) -> io::Result<usize> {
    /// How long a refusal takes. Shorter would refuse a busy machine's programs whose threads have just ended.
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

/// Sees to it that descriptors 0 to 2 are open, as std's runtime does before `main`: what is opened later must not become
/// somebody's standard output.
pub(crate) fn fill_stdio() {
    for number in 0..=2 {
        // SAFETY: asks for flags, of a number that may be anything.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            // The lowest free number, which is this one. Not close-on-exec: it is to be inherited.
            // SAFETY: a constant path.
            let filled = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
            if filled < 0 {
                // Without devices, something that can be neither read nor written: as if it were closed, but taken.
                // SAFETY: a constant path.
                unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_DIRECTORY) };
            }
        }
    }
}

/// Gives this process the name that it would have, had it not been started from [`OWN_EXECUTABLE`]: for `ps`, `top`, `pgrep`.
pub(crate) fn take_programs_name() {
    let Some(own) = std::env::args_os().next() else { return };
    if let Some(name) = Path::new(&own).file_name()
        && let Ok(name) = std::ffi::CString::new(name.as_bytes())
    {
        // The system takes as much of it as there is room for, as of any program's.
        let _ = rustix::thread::set_name(&name);
    }
}

/// Puts an empty input in the place of descriptor 0.
pub(crate) fn empty_stdin() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let empty = null.or_else(|_| {
        // Some sandboxes have no devices. A pipe that nobody writes is at its end, too.
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map(|(read, _write)| read)
    })?;
    Ok(rustix::stdio::dup2_stdin(empty)?)
}

/// Whether this program may do what its starter may not: it, or whoever started it, has changed user or group on the way, or it
/// has got capabilities from its file. The kernel says so to each program that it starts.
pub(crate) fn is_privileged() -> bool {
    // SAFETY: asks for a number.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// An error of the system about this program's file.
fn own_executable(error: io::Error) -> io::Error {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let hint = if missing { " (a program starts itself again from there: is `/proc` mounted?)" } else { "" };
    io::Error::new(error.kind(), format!("{OWN_EXECUTABLE}{hint}: {error}"))
}

/// Why a program that this process starts from its own file would be [privileged](is_privileged), if it would be: it would take
/// us for a stranger, and not be a child.
fn would_be_privileged() -> io::Result<Option<&'static str>> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    if getuid() != geteuid() || getgid() != getegid() {
        return Ok(Some(
            "this process acts as another user or group than its own (its real and effective ids differ)",
        ));
    }
    let file = std::fs::metadata(OWN_EXECUTABLE).map_err(own_executable)?;
    let has = |bits: u32| file.mode() & bits == bits;
    let changes = (has(libc::S_ISUID) && file.uid() != geteuid().as_raw())
        || (has(libc::S_ISGID | libc::S_IXGRP) && file.gid() != getegid().as_raw());
    let has_capabilities = !geteuid().is_root()
        && rustix::fs::getxattr(OWN_EXECUTABLE, "security.capability", &mut [0_u8; 64][..]).is_ok();
    if !changes && !has_capabilities {
        return Ok(None);
    }
    // The kernel may have been told to look at none of this.
    let ignored = rustix::fs::statvfs(OWN_EXECUTABLE)
        .is_ok_and(|mount| mount.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID))
        || rustix::thread::no_new_privs().unwrap_or(false);
    Ok((!ignored).then_some(
        "the program's file gives privileges to whoever starts it (setuid, setgid or capabilities)",
    ))
}

/// Those of a program that is started: its name, and that it is a child.
fn arguments(start: &Start<'_>, marker: &str) -> io::Result<Vec<OsString>> {
    let name = std::env::args_os().next().unwrap_or_else(|| OsString::from("executor-worker"));
    let mut arguments = vec![name];
    if start.executable.is_none()
        && let Some(by_loader) = image::by_loader()
    {
        // That is the loader then, which is told what it was told the first time.
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

/// Makes a copy of a process, a child of this one, lead a process group of its own. It may have ended: until it is reaped it can be
/// moved from one group to another.
pub(crate) fn lead_own_group(child: u32) {
    // No number is this process itself.
    if let Some(child) = Pid::from_raw(child.cast_signed()) {
        // Where that is refused the copy does it itself; where it was reaped by others there is nothing to be done.
        let _ = rustix::process::setpgid(Some(child), Some(child));
    }
}

/// A child process that leads its own process group.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    /// `None` if the child had been reaped by others before it could be opened.
    pidfd: Option<OwnedFd>,
    /// See [`Group::is_over`].
    group_is_over: AtomicBool,
    /// How it ended, once it was reaped. Whoever signals its group holds this: the number of the
    /// group may be another's after that.
    reaped: Mutex<Option<ExitStatus>>,
}

impl Child {
    /// Starts a program with `marker` as its argument, with one end of a [pair of sockets](socket::pair)
    /// as its descriptor 0, and with no other descriptor but standard output and error. Returns the
    /// child and the other end. What the child is to find in its socket at its start, `say` sends, which
    /// [does not wait](signals::as_one_user) for anything: what finds no room is an error, since nobody reads it yet.
    pub(crate) fn start(
        start: Start<'_>,
        marker: &str,
        say: impl FnOnce(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<(Child, OwnedFd)> {
        spawn::prepare();
        let arguments = arguments(&start, marker)?;
        // The child believes a socket only that was made by whom it acts as. Another thread's `setuid`, which changes this thread as
        // well, comes before all of this or behind it.
        let (pid, ours) = signals::as_one_user(|mask| {
            if start.executable.is_none()
                && let Some(why) = would_be_privileged()?
            {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("{why}; a program with privileges is nobody's worker, so none is started"),
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
            let pid = match start.executable {
                Some(executable) => spawned.asked(&executable.display().to_string()),
                None => spawned.map_err(own_executable),
            }?;
            Ok((pid, ours))
        })?;
        let child = Child::watch(pid).inspect_err(|_| {
            // A child that cannot be watched is none: it must not go on, nor stay as a zombie. One that may not be killed
            // (its file belongs to another user, and says so) finds its socket closed, and is not waited for.
            if group::kill_unwatched(pid) {
                let _ = retry(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
            }
        })?;
        Ok((child, ours))
    }

    /// A child that was made in another way: by `fork`, here or by the fork server.
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
            // Somebody has reaped the child already: SIGCHLD is ignored, or others wait for any child.
            Err(Errno::SRCH) => None,
            Err(error) => return Err(error).asked("to watch a process (pidfd_open)"),
        };
        Ok(Child { pid, pidfd, group_is_over: AtomicBool::new(false), reaped: Mutex::default() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// Readable once the child has ended; `None` means that it has ended.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Whether the child has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let Some(pidfd) = self.pidfd() else { return true };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// Sends a signal to the child and all programs it started, unless they left its group. An error if no
    /// process of the group could be signalled, nor the child alone: it is another user's, or this program has become one.
    /// Nothing happens once the child was reaped.
    pub(crate) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        let reaped = lock(&self.reaped);
        if reaped.is_some() {
            return Ok(());
        }
        match self.group().signal(signal) {
            Ok(()) => Ok(()),
            // It does not lead the group (the system has refused that to a copy of this process), or has ended.
            Err(_) => self.signal(signal),
        }
    }

    /// Kills what is left of the group that the child led: what it had started. Also after it was reaped, by whomever.
    pub(crate) fn kill_rest(&self) {
        // Most often nobody is left, and the system says so. Who has become another user's may stay.
        let _ = self.group().signal(Signal::KILL);
    }

    fn group(&self) -> Group<'_> {
        Group { leader: self.pid, pidfd: self.pidfd(), is_over: &self.group_is_over }
    }

    /// By which signal the child is stopped, if it is; a debugger's stops do not count. Takes nothing away from who else
    /// waits for it.
    pub(crate) fn stopped_by(&self) -> Option<i32> {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let pidfd = self.pidfd()?;
        retry(|| waitid(WaitId::PidFd(pidfd), options)).ok()??.stopping_signal()
    }

    /// How much processor time the child has used.
    pub(crate) fn computed(&self) -> Option<Duration> {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: writes a clock's number to where the pointer points.
        if unsafe { libc::clock_getcpuclockid(self.pid().cast_signed(), &raw mut clock) } != 0 {
            return None;
        }
        processor_time(clock)
    }

    /// Sends a signal to the child alone. Never to another process, also not after it was reaped.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pidfd) = self.pidfd() else { return Ok(()) };
        match rustix::process::pidfd_send_signal(pidfd, signal) {
            // It has ended.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// How it ended, once it was [reaped](Self::reap).
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        *lock(&self.reaped)
    }

    /// Takes the exit status of a child that has ended. What it had started is killed, unless the end was one after which that
    /// `may_stay`. The child is reaped once; the status is the same as often as it is asked for.
    ///
    /// Whoever reaps comes by here, whatever the child was for and however it ended.
    pub(crate) fn reap(&self, may_stay: impl FnOnce(ExitStatus) -> bool) -> ExitStatus {
        let mut reaped = lock(&self.reaped);
        if let Some(status) = *reaped {
            return status;
        }
        let has_ended = self.has_ended();
        let status = self.ask(WaitIdOptions::NOWAIT);
        // Before the child is reaped, where that is for us to do: its number is nobody else's until then, so that also a kernel
        // that knows groups by their number only kills the right one.
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

    /// How it has ended. Unknown where somebody else has reaped it: SIGCHLD is ignored, or others wait for any child.
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

    /// Waits for its end, at most `limit`; whether it has ended.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        self.wait(limit);
        self.has_ended()
    }

    /// Waits for the end of a child that is about to end; kills it if it takes longer than `limit`.
    pub(crate) fn end(&self, limit: Duration) {
        if !self.ends_within(limit) {
            // Where that is refused, nothing else is left to be tried: it is left alone, and is not waited for any longer.
            let _ = self.signal(Signal::KILL);
            self.wait(limit);
        }
    }

    /// Kills the child and waits for its end, at most `limit`; for the case that nobody else is left to do so.
    pub(crate) fn kill(&self, limit: Duration) {
        // Where that is refused, the end of its socket ends it, which the caller closes.
        let _ = self.signal_group(Signal::KILL);
        self.wait(limit);
    }

    fn wait(&self, limit: Duration) {
        if let Some(pidfd) = self.pidfd() {
            let timeout =
                rustix::event::Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos() as _ };
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(pidfd, rustix::event::PollFlags::IN)];
            let _ = retry(|| rustix::event::poll(&mut fds, Some(&timeout)));
        }
    }
}
