//! Control groups of the system (cgroup v2): one for each worker of an executor.
//!
//! ```text
//!  a delegated group          the program's own, one marked by systemd, or `CgroupLimits::under`
//!    executor-<pid>-<n>       of one executor, which holds a lock on it (flock) while it lives
//!      worker-1               a leaf: one worker, and everything that its tasks start
//!      worker-2
//!
//!  a worker starts:   make a leaf, write the limits, start the process, move it there, then greet
//!  a worker ends:     read `memory.events`, `cgroup.kill`, remove the leaf (again later, if busy)
//!  the program dies:  each worker kills its own leaf; the next program removes what is left
//! ```
//!
//! A process leaves its process group easily (`setsid`, as all daemons do), and its control group
//! only if it is out to do so. So `cgroup.kill` also reaches daemons that a task has started.
//!
//! **Limits need controllers.** A controller is enabled for the children of a group, in
//! `cgroup.subtree_control`. The kernel refuses that (EBUSY) if the group has processes itself,
//! unless it is the root. So a program whose own group is the delegated one cannot have limits for
//! its workers there, and this library does not move the program. Without limits no controller is
//! needed, and the program's own group will do.
//!
//! **Who is alive** is told by the lock, and not by a pid: programs in containers may share a group
//! without seeing each other's processes. A group that this library has made has a mark (an
//! attribute of the file system), and groups without it are never touched, whatever their names.

use std::{
    fs, io,
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags, XattrFlags, flock, fsetxattr, open},
    io::Errno,
};

use super::{
    arena::inode,
    asked::Asked,
    fork::{Creator, NotInherited},
    std_or_model::lock,
};

/// Limits of the control groups of workers, and where these groups are: see
/// [`cgroup`](crate::ProcessPoolBuilder::cgroup).
///
/// ```
/// use executor::CgroupLimits;
///
/// let limits = CgroupLimits::default().memory_max(512 << 20).pids_max(64).cpu_weight(50);
/// # let _ = limits;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    memory_max: Option<u64>,
    pids_max: Option<u64>,
    cpu_weight: Option<u32>,
    under: Option<PathBuf>,
    optional: bool,
}

impl CgroupLimits {
    /// Maximum memory of each worker and of everything that its tasks start, in bytes
    /// (`memory.max`). It needs the controller `memory`.
    ///
    /// The system counts what these processes have touched first: heap and stacks, shared memory,
    /// the cache of files that they read, and memory of the kernel. They may use no swap beyond it
    /// (`memory.swap.max` is set to 0). If they need more, the system kills all of them
    /// (`memory.oom.group`), and the task fails with
    /// [`TaskError::MemoryLimit`](crate::TaskError::MemoryLimit). What a worker has before it is
    /// moved to its group does not count: a megabyte or so, and what a copy of a fork server shares
    /// with the server.
    pub fn memory_max(mut self, bytes: u64) -> Self {
        self.memory_max = Some(bytes);
        self
    }

    /// Maximum number of processes and threads of each worker, with everything that its tasks start
    /// (`pids.max`). The minimum is 4, since a worker has a few threads itself. Starting more
    /// fails in the task (`EAGAIN`). It needs the controller `pids`.
    pub fn pids_max(mut self, count: u64) -> Self {
        self.pids_max = Some(count);
        self
    }

    /// The share of processor time of each worker and of everything that its tasks start, in
    /// relation to the other workers and groups beside them (`cpu.weight`): 1 to 10,000, where 100
    /// is what a group has otherwise. It matters only while processors are short. It needs the
    /// controller `cpu`.
    pub fn cpu_weight(mut self, weight: u32) -> Self {
        self.cpu_weight = Some(weight);
        self
    }

    /// The group below which those of the workers are made, as a path in the file system. The
    /// default is the program's own group, or else the nearest group above it that systemd has
    /// delegated.
    ///
    /// This program must have the right to make groups there, and to move processes there. For
    /// limits, no process may be in the group itself.
    pub fn under(mut self, group: impl Into<PathBuf>) -> Self {
        self.under = Some(group.into());
        self
    }

    /// Does without control groups if there can be none here. The executor is then built as if
    /// [`cgroup`](crate::ProcessPoolBuilder::cgroup) had not been called, and a warning is logged
    /// (`tracing`) with the reason. Without this, `build` returns the reason as an error.
    pub fn or_without(mut self) -> Self {
        self.optional = true;
        self
    }

    pub(crate) fn is_optional(&self) -> bool {
        self.optional
    }

    /// Returns what is wrong with these limits, if anything is.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.memory_max == Some(0) {
            return Err("the limit `memory_max` of a control group must be above 0");
        }
        if self.pids_max.is_some_and(|count| count < 4) {
            return Err("the limit `pids_max` of a control group must be at least 4");
        }
        if self.cpu_weight.is_some_and(|weight| !(1..=10_000).contains(&weight)) {
            return Err("`cpu_weight` of a control group must lie between 1 and 10000");
        }
        Ok(())
    }

    /// Returns the controllers that these limits need.
    fn controllers(&self) -> impl Iterator<Item = &'static str> {
        [
            ("memory", self.memory_max.is_some()),
            ("pids", self.pids_max.is_some()),
            ("cpu", self.cpu_weight.is_some()),
        ]
        .into_iter()
        .filter_map(|(controller, needed)| needed.then_some(controller))
    }

    /// Writes the limits of a leaf.
    fn write(&self, leaf: &Path) -> io::Result<()> {
        if let Some(bytes) = self.memory_max {
            set(leaf, "memory.max", &bytes.to_string())?;
            set(leaf, "memory.oom.group", "1")?;
            match set(leaf, "memory.swap.max", "0") {
                // This system has no swap for control groups.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        if let Some(count) = self.pids_max {
            set(leaf, "pids.max", &count.to_string())?;
        }
        if let Some(weight) = self.cpu_weight {
            set(leaf, "cpu.weight", &weight.to_string())?;
        }
        Ok(())
    }
}

/// How to make a group in which limits are possible. It is part of errors.
const HINT: &str = "start the program in a part of a delegated group, as by `systemd-run --user -p Delegate=yes -p \
                    DelegateSubgroup=main` (systemd 254), or name a delegated group without processes by \
                    `CgroupLimits::under`";

/// First pause before a group that still has dying processes is removed again. The pause doubles
/// each time, up to [`EVERY`].
const SOON: Duration = Duration::from_millis(1);
/// Longest such pause. With a lower value, a process that hangs in the kernel keeps the driver
/// awake.
const EVERY: Duration = Duration::from_secs(1);
/// Number of names to try for a group. One is taken if a program of the same pid has left it.
const NAMES_MAX: u64 = 64;
/// The number of the next group of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The names of all groups that this library makes below a delegated one begin with this.
const PREFIX: &str = "executor-";
/// The attribute that marks them. Control groups have attributes since Linux 5.7.
const MARK: &str = "user.executor";

/// The control group of an executor. It contains those of its workers, and no processes.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    path: PathBuf,
    /// The directory, with the lock that says that this program lives.
    _alive: NotInherited,
    limits: CgroupLimits,
    /// Number of leaves that were made.
    leaves: AtomicU64,
    /// Leaves that could not be removed yet.
    left: Mutex<Vec<Left>>,
    creator: Creator,
}

#[derive(Debug)]
struct Left {
    path: PathBuf,
    at: Instant,
    pause: Duration,
}

impl ControlGroup {
    /// Makes a group in a delegated one. Returns the reason if there can be none.
    pub(crate) fn create(limits: &CgroupLimits) -> Result<Self, String> {
        let places = match &limits.under {
            Some(path) => vec![given(path)?],
            None => found()?,
        };
        let mut reason = None;
        for place in places {
            match ControlGroup::create_in(&place, limits) {
                Ok(group) => return Ok(group),
                // The first place is the one that the user knows of.
                Err(why) => _ = reason.get_or_insert(why),
            }
        }
        Err(reason.unwrap_or_else(|| "there is no control group".to_owned()))
    }

    fn create_in(place: &Path, limits: &CgroupLimits) -> Result<Self, String> {
        sweep(place);
        limits.controllers().try_for_each(|controller| enable(place, controller))?;
        let (path, alive) = make(place).map_err(|error| {
            format!("a control group in {} was refused: {error}; {HINT}", place.display())
        })?;
        let group = ControlGroup {
            path,
            _alive: alive,
            limits: limits.clone(),
            leaves: AtomicU64::new(0),
            left: Mutex::default(),
            creator: Creator::here(),
        };
        // If something is missing, the group is removed again.
        if !group.path.join(KILL).exists() {
            return Err("the system cannot kill control groups (cgroup.kill, Linux 5.14)".into());
        }
        limits.controllers().try_for_each(|controller| enable(&group.path, controller))?;
        may_move_to(place)?;
        Ok(group)
    }

    /// Makes the group of one worker.
    pub(crate) fn leaf(self: &Arc<Self>) -> io::Result<Leaf> {
        let number = self.leaves.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let path = self.path.join(format!("worker-{number}"));
        let refused = |what: &str| format!("{what} ({})", path.display());
        fs::create_dir(&path).asked(&refused("to make the control group of a worker"))?;
        let opened = open(path.join(KILL), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let leaf = opened.asked(&refused("to open `cgroup.kill` of a worker")).and_then(|kill| {
            self.limits.write(&path)?;
            super::process::above_stdio(kill)
        });
        match leaf {
            Ok(kill) => Ok(Leaf { group: Arc::clone(self), path, kill }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// Removes what is left of the groups of workers that have ended, if it is time to.
    pub(crate) fn look(&self) {
        let now = Instant::now();
        lock(&self.left).retain_mut(|left| {
            if left.at > now {
                return true;
            }
            left.pause = (left.pause * 2).min(EVERY);
            left.at = now + left.pause;
            remove(&left.path).is_err()
        });
    }

    /// Returns when to call [`look`](Self::look) next, if something is left.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        lock(&self.left).iter().map(|left| left.at).min()
    }

    /// Kills everything in the group, and removes it. Waits at most `timeout` until all processes
    /// in it have ended.
    pub(crate) fn end(&self, timeout: Duration) {
        if self.creator.is_elsewhere() {
            return;
        }
        let deadline = Instant::now() + timeout;
        let mut pause = SOON;
        kill(&self.path);
        while remove(&self.path).is_err() && Instant::now() < deadline {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // If processes are left that hang in the kernel, the next program removes it.
        self.end(Duration::ZERO);
    }
}

/// The control group of one worker. When it is dropped, everything in it is killed, and it is
/// removed.
#[derive(Debug)]
pub(crate) struct Leaf {
    group: Arc<ControlGroup>,
    path: PathBuf,
    /// The file by which everything in the group is killed.
    kill: OwnedFd,
}

impl Leaf {
    /// Moves a process to the group, with its threads. What it starts from now on is in the group,
    /// too.
    pub(crate) fn adopt(&self, process: u32) -> io::Result<()> {
        match set(&self.path, "cgroup.procs", &process.to_string()) {
            // It has ended already, and somebody else has reaped it.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Returns the descriptor by which the group's own worker can kill everything in it.
    pub(crate) fn kill_descriptor(&self) -> BorrowedFd<'_> {
        self.kill.as_fd()
    }

    /// Returns the limit on memory and the most memory that there was, in bytes, if the system has
    /// killed processes of the group because of this limit.
    pub(crate) fn out_of_memory(&self) -> Option<(u64, u64)> {
        out_of_memory(&self.path, self.group.limits.memory_max?)
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if self.group.creator.is_elsewhere() {
            return;
        }
        kill(&self.path);
        if remove(&self.path).is_err() {
            let left = Left {
                path: std::mem::take(&mut self.path),
                at: Instant::now() + SOON,
                pause: SOON,
            };
            lock(&self.group.left).push(left);
        }
    }
}

const KILL: &str = "cgroup.kill";

/// Kills everything in a group and in the groups below it. New processes cannot escape.
fn kill(group: &Path) {
    // If this is refused, what is in the group stays, and so does the group.
    let _ = set(group, KILL, "1");
}

/// Returns the limit and the peak of a group's memory, if the system has killed processes for it.
///
/// The system also counts processes that it has killed because the whole machine, or a group above,
/// was out of memory (`oom_kill`). Only a limit of the group itself counts as `oom`.
fn out_of_memory(leaf: &Path, limit: u64) -> Option<(u64, u64)> {
    let events = fs::read_to_string(leaf.join("memory.events")).ok()?;
    let has = |event: &str| {
        let mut events = events.lines().filter_map(|line| line.split_once(' '));
        events.any(|(name, count)| name == event && count.trim() != "0")
    };
    let killed = has("oom") && (has("oom_kill") || has("oom_group_kill"));
    // Before Linux 5.19 the system does not tell the peak. There cannot have been more than this.
    let peak = || fs::read_to_string(leaf.join("memory.peak")).ok()?.trim().parse().ok();
    killed.then(|| (limit, peak().unwrap_or(limit)))
}

/// Writes one of a group's files. They exist already, so none is created.
fn set(group: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = group.join(file);
    let written = fs::OpenOptions::new().write(true).open(&path);
    written.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|error| {
        // The error keeps its number: callers look at it.
        match error.raw_os_error() {
            Some(libc::ESRCH) => error,
            _ => io::Error::new(error.kind(), format!("{value:?} to {}: {error}", path.display())),
        }
    })
}

/// Removes a group and the groups below it. It fails if one of them has processes.
fn remove(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a controller available in the groups below this one.
fn enable(group: &Path, controller: &str) -> Result<(), String> {
    let place = group.display();
    let has = |file: &str| {
        let text = fs::read_to_string(group.join(file)).unwrap_or_default();
        text.split_ascii_whitespace().any(|word| word == controller)
    };
    if has("cgroup.subtree_control") {
        return Ok(());
    }
    if !has("cgroup.controllers") {
        return Err(format!(
            "the control group {place} does not have the controller `{controller}` \
             (cgroup.controllers): no group above it passes it on, or the system uses it with cgroup v1; {HINT}"
        ));
    }
    let enabled = set(group, "cgroup.subtree_control", &format!("+{controller}"));
    enabled.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => format!(
            "the control group {place} has processes itself, so the system allows no limits below it: {error}; {HINT}"
        ),
        _ => format!("the controller `{controller}` cannot be used: {error}; {HINT}"),
    })
}

/// Makes a group below this one, and locks it.
fn make(place: &Path) -> io::Result<(PathBuf, NotInherited)> {
    let first = NEXT.fetch_add(1, Ordering::Relaxed);
    for number in first..first.saturating_add(NAMES_MAX) {
        let path = place.join(format!("{PREFIX}{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        let locked = NotInherited::open(|| {
            let directory = directory(&path)?;
            flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
            // A program that dies before this leaves an empty group that nobody removes.
            fsetxattr(&directory, MARK, b"1", XattrFlags::empty())
                .asked("to mark it (fsetxattr)")?;
            super::process::above_stdio(directory)
        });
        let is_there = |alive: &NotInherited| {
            let named = directory(&path).and_then(inode).ok();
            named.is_some() && named == alive.get().and_then(|directory| inode(directory).ok())
        };
        match locked {
            // Another program that cleans up may have removed it before it was locked.
            Ok(alive) if is_there(&alive) => return Ok((path, alive)),
            Ok(_) => continue,
            Err(error) if taken(&error) => continue,
            Err(error) => {
                let _ = fs::remove_dir(&path);
                return Err(error);
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "all names are taken"))
}

/// Whether an error says that another program has just locked or removed a group.
fn taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound)
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Returns whether this library has made a group.
fn is_marked(group: &Path) -> bool {
    rustix::fs::getxattr(group, MARK, &mut [0_u8; 8][..]).is_ok()
}

/// Removes the groups of executors whose programs have died, and kills what is left in them.
fn sweep(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) || !is_marked(&path) {
            continue;
        }
        // No copy of this process may keep the lock, or nobody would remove the group any more.
        let dead = NotInherited::open(|| {
            let directory = directory(&path)?;
            flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
            Ok(directory)
        });
        if dead.is_ok() {
            kill(&path);
            // If its processes need a moment, the next program removes it.
            let _ = remove(&path);
        }
    }
}

/// Returns the group that the user has named.
fn given(path: &Path) -> Result<PathBuf, String> {
    /// `CGROUP2_SUPER_MAGIC`.
    const MAGIC: u64 = 0x6367_7270;
    let named = path.display();
    let path =
        path.canonicalize().map_err(|error| format!("the control group {named}: {error}"))?;
    let system = rustix::fs::statfs(&path).map_err(|error| format!("{named}: {error}"))?;
    if system.f_type as u64 != MAGIC {
        return Err(format!("{named} is not a control group (cgroup v2)"));
    }
    Ok(path)
}

/// Returns the groups below which those of workers may be: this program's own, and those above it
/// that systemd has delegated. In a worker that has a group, none above it counts: what the worker
/// starts has to stay in its group.
fn found() -> Result<Vec<PathBuf>, String> {
    let (mount, own) = own()?;
    let mut places = vec![own.clone()];
    let above = own.ancestors().skip(1);
    let above = above.take_while(|group| group.starts_with(&mount) && !is_marked(group));
    places.extend(above.filter(|group| is_delegated(group)).map(Path::to_owned));
    Ok(places)
}

/// Returns whether systemd has given a group to a user or a service.
fn is_delegated(group: &Path) -> bool {
    let mut value = [0_u8; 8];
    ["user.delegate", "trusted.delegate"].into_iter().any(|name| {
        rustix::fs::getxattr(group, name, &mut value[..]).is_ok_and(|len| value[..len] == *b"1")
    })
}

/// Returns where this program's own group is: the place where control groups are mounted, and the
/// group.
fn own() -> Result<(PathBuf, PathBuf), String> {
    let read = |path: &str| fs::read(path).map_err(|error| format!("{path}: {error}"));
    let (group, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    own_in(&group, &mounts).ok_or_else(|| {
        "there are no control groups of version 2 here, or this program's own is out of sight \
         (/proc/self/cgroup, /proc/self/mountinfo)"
            .to_owned()
    })
}

fn own_in(group: &[u8], mounts: &[u8]) -> Option<(PathBuf, PathBuf)> {
    let lines =
        |text: &[u8]| text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let group =
        lines(group).into_iter().find_map(|line| Some(line.strip_prefix(b"0::")?.to_vec()))?;
    let group = PathBuf::from(std::ffi::OsString::from_vec(group));
    lines(mounts).into_iter().find_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let (root, at) = (unescaped(words.nth(3)?), unescaped(words.next()?));
        let kind = words.skip_while(|word| *word != b"-").nth(1)?;
        // A group outside of the namespace begins with "/..", and is below no mount.
        let below = group.strip_prefix(&root).ok().filter(|_| kind == b"cgroup2")?;
        let inside = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        inside.then(|| (at.clone(), at.join(below)))
    })
}

/// Returns a path as it is, without the escapes for blanks and the like in `/proc`.
fn unescaped(word: &[u8]) -> PathBuf {
    let (mut path, mut rest) = (Vec::new(), word);
    while let Some((byte, behind)) = rest.split_first() {
        let octal = (*byte == b'\\').then(|| behind.get(..3)).flatten();
        let code =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        path.push(code.unwrap_or(*byte));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

/// Returns an error if this process must not move processes from its own group to groups below
/// `place`. For that it needs the right to write to the nearest group that both are in.
fn may_move_to(place: &Path) -> Result<(), String> {
    // Where it is not known which group that is, the first start of a worker will tell.
    let Ok((mount, own)) = own() else { return Ok(()) };
    let above = own.ancestors().take_while(|group| group.starts_with(&mount));
    let Some(common) = above.into_iter().find(|group| place.starts_with(group)) else {
        return Ok(());
    };
    let processes = common.join("cgroup.procs");
    match rustix::fs::accessat(CWD, &processes, Access::WRITE_OK, AtFlags::EACCESS) {
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Err(format!(
            "processes cannot be moved from {} to {}: {} cannot be written; {HINT}",
            own.display(),
            place.display(),
            processes.display()
        )),
        _ => Ok(()),
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::*;

    /// Makes files of a control group that are plain files.
    fn plain(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn text(folder: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(folder.path().join(name)).unwrap()
    }

    #[test]
    fn limits_that_make_no_sense_are_told_apart() {
        let limits = CgroupLimits::default;
        assert_eq!(limits().check(), Ok(()));
        assert_eq!(limits().memory_max(1).pids_max(4).cpu_weight(10_000).check(), Ok(()));
        assert!(limits().memory_max(0).check().unwrap_err().contains("memory_max"));
        assert!(limits().pids_max(3).check().unwrap_err().contains("pids_max"));
        assert!(limits().cpu_weight(0).check().unwrap_err().contains("cpu_weight"));
        assert!(limits().cpu_weight(10_001).check().is_err());
    }

    #[test]
    fn each_limit_needs_its_controller_and_is_written_to_its_files() {
        let limits = CgroupLimits::default().memory_max(5 << 20).pids_max(7).cpu_weight(20);
        assert_eq!(Vec::from_iter(limits.controllers()), ["memory", "pids", "cpu"]);
        let names = ["memory.max", "memory.oom.group", "memory.swap.max", "pids.max", "cpu.weight"];
        let leaf = plain(&names.map(|name| (name, "")));
        limits.write(leaf.path()).unwrap();
        assert_eq!(names.map(|name| text(&leaf, name)), ["5242880", "1", "0", "7", "20"]);

        // Without swap, everything else is written. Without anything else, it is an error.
        let leaf = plain(&[("memory.max", ""), ("memory.oom.group", "")]);
        CgroupLimits::default().memory_max(1).write(leaf.path()).unwrap();
        assert_eq!(text(&leaf, "memory.oom.group"), "1");
        let error = CgroupLimits::default().pids_max(9).write(leaf.path()).unwrap_err();
        assert!(error.to_string().contains("pids.max"), "{error}");
        assert!(!leaf.path().join("pids.max").exists());

        let none = CgroupLimits::default();
        assert_eq!(none.controllers().count(), 0);
        none.write(&leaf.path().join("nowhere")).unwrap();
    }

    #[test]
    fn a_group_that_ran_out_of_memory_tells_its_limit_and_its_peak() {
        let events = |kills: u32| format!("low 0\nhigh 0\nmax 5\noom 2\noom_kill {kills}\n");
        let leaf = plain(&[("memory.events", &events(0)), ("memory.peak", "4096\n")]);
        assert_eq!(out_of_memory(leaf.path(), 5000), None, "nobody was killed");
        fs::write(leaf.path().join("memory.events"), events(1)).unwrap();
        assert_eq!(out_of_memory(leaf.path(), 5000), Some((5000, 4096)));
        fs::remove_file(leaf.path().join("memory.peak")).unwrap();
        assert_eq!(out_of_memory(leaf.path(), 5000), Some((5000, 5000)));
        fs::write(leaf.path().join("memory.events"), "oom 1\noom_kill 0\noom_group_kill 1\n")
            .unwrap();
        assert!(out_of_memory(leaf.path(), 1).is_some());
        fs::write(leaf.path().join("memory.events"), "max 0\noom 0\noom_kill 1\n").unwrap();
        assert_eq!(out_of_memory(leaf.path(), 1), None, "the whole machine was out of memory");
        fs::remove_file(leaf.path().join("memory.events")).unwrap();
        assert_eq!(out_of_memory(leaf.path(), 1), None);
    }

    #[test]
    fn a_controller_is_enabled_if_there_is_one() {
        let group = plain(&[
            ("cgroup.controllers", "cpuset cpu memory pids\n"),
            ("cgroup.subtree_control", "pids\n"),
        ]);
        enable(group.path(), "pids").unwrap();
        assert_eq!(text(&group, "cgroup.subtree_control"), "pids\n");
        enable(group.path(), "memory").unwrap();
        assert!(text(&group, "cgroup.subtree_control").starts_with("+memory"));
        let error = enable(group.path(), "io").unwrap_err();
        assert!(error.contains("`io`") && error.contains("Delegate=yes"), "{error}");
        fs::remove_file(group.path().join("cgroup.subtree_control")).unwrap();
        let error = enable(group.path(), "cpu").unwrap_err();
        assert!(error.contains("`cpu`") && error.contains("os error 2"), "{error}");
    }

    #[test]
    fn the_own_group_is_found_among_the_mounts() {
        let mounts = b"22 28 0:20 / /sys rw - sysfs sysfs rw\n\
            30 22 0:26 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
            31 22 0:27 /a /mnt/with\\040blank rw - cgroup2 cgroup2 rw\n\
            32 22 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = |group: &str| own_in(group.as_bytes(), mounts);
        let pair = |at: &str, group: &str| Some((PathBuf::from(at), PathBuf::from(group)));
        assert_eq!(
            own("9:memory:/x\n0::/user.slice/s\n"),
            pair("/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/s")
        );
        assert_eq!(own("0::/a/b\n"), pair("/mnt/with blank", "/mnt/with blank/b"));
        assert_eq!(own("0::/\n"), pair("/sys/fs/cgroup", "/sys/fs/cgroup/"));
        assert_eq!(own("0::/../other\n"), None, "out of sight");
        assert_eq!(own("9:memory:/x\n"), None);
        assert_eq!(own_in(b"0::/\n", b"22 28 0:20 / /sys rw - sysfs sysfs rw\n"), None);
    }

    #[test]
    fn a_place_that_is_no_control_group_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(given(folder.path()).unwrap_err().contains("is not a control group"));
        assert!(given(&folder.path().join("none")).unwrap_err().contains("os error 2"));
    }
}
