//! Names of shared memory, and who owns them.
//!
//! ```text
//!  create   an unnamed file in /dev/shm, filled; owned; then linked to its name: nobody sees it half made
//!  own      a byte of the file is locked through a description of one's own     (os/liveness.rs: the kernel lets go)
//!  sweep    for each file of ours: nobody owns it, it is not persistent ─► its name goes
//! ```
//!
//! A name goes with its last owner: by `Drop`, or, if that was killed, by whoever looks next. A name that is removed is removed
//! under a lock of another byte of the file, with a look whether the name is the file's still: so nobody removes what
//! another one has made in its place.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchmod, fstat, linkat, open, stat, unlink};

use crate::os::{fork::NotInherited, liveness::byte};

const DIRECTORY: &str = "/dev/shm";
const PREFIX: &str = "executor.";
/// Of a file's name, by the system.
const NAME_MAX: usize = 255 - PREFIX.len();
/// Bytes that owners lock: far above those of users of the memory.
const OWNERS: u64 = 1 << 40;
const OWNERS_MAX: u64 = 1 << 16;
/// The byte that is locked by whoever removes the name.
const REMOVAL: u64 = 1 << 41;
/// Whoever removes a name does so in microseconds.
const REMOVAL_MAX: Duration = Duration::from_secs(1);

/// A name of shared memory.
#[derive(Debug)]
pub(super) struct Name {
    name: String,
    owner: Option<NotInherited>,
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn path(name: &str) -> io::Result<PathBuf> {
    if name.is_empty() {
        return Err(invalid("no name"));
    }
    if name.contains(['\0', '/']) {
        return Err(invalid("a name of shared memory has no slash and no NUL in it"));
    }
    if name.len() > NAME_MAX {
        return Err(invalid("a name of shared memory is not as long"));
    }
    Ok(PathBuf::from(format!("{DIRECTORY}/{PREFIX}{name}")))
}

/// The file anew, with locks of its own.
fn reopen(file: BorrowedFd<'_>) -> io::Result<NotInherited> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    NotInherited::open(|| Ok(open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?))
}

/// Becomes an owner.
fn own(file: BorrowedFd<'_>) -> io::Result<NotInherited> {
    let description = reopen(file)?;
    let forked = || io::Error::other("forked meanwhile");
    for at in OWNERS..OWNERS + OWNERS_MAX {
        if byte::try_lock(description.get().ok_or_else(forked)?, at)? {
            return Ok(description);
        }
    }
    Err(io::Error::other("too many own it"))
}

/// Whether some other description than this one owns it.
fn is_owned(file: BorrowedFd<'_>) -> bool {
    // Whom one cannot ask about may be alive.
    byte::any_is_locked(file, OWNERS, OWNERS_MAX).unwrap_or(true)
}

fn is_persistent(file: BorrowedFd<'_>) -> bool {
    // A mark that lies with the file itself, and means nothing for one that is no directory.
    fstat(file).is_ok_and(|stat| Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX))
}

/// Removes a name, if it is that of this file. With `unless_needed`, only if nobody owns it and it is not persistent.
fn remove(path: &PathBuf, file: BorrowedFd<'_>, unless_needed: bool) -> io::Result<()> {
    let description = reopen(file)?;
    let Some(file) = description.get() else { return Ok(()) };
    let deadline = Instant::now() + REMOVAL_MAX;
    while !byte::try_lock(file, REMOVAL)? {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    let (ours, there) = (fstat(file)?, stat(path)?);
    if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino) {
        return Err(io::ErrorKind::NotFound.into());
    }
    if unless_needed && (is_owned(file) || is_persistent(file)) {
        return Ok(());
    }
    Ok(unlink(path)?)
}

impl Name {
    /// An unnamed file; `link` gives it its name.
    pub(super) fn create_file() -> io::Result<OwnedFd> {
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(open(DIRECTORY, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode)?)
    }

    /// Checks a name.
    pub(super) fn check(name: &str) -> io::Result<()> {
        path(name).map(drop)
    }

    /// Names the file, which is complete, and owns it.
    pub(super) fn link(name: &str, file: BorrowedFd<'_>) -> io::Result<Self> {
        let path = path(name)?;
        let owner = own(file)?;
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(CWD, source.as_str(), CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
        Ok(Name { name: name.to_owned(), owner: Some(owner) })
    }

    /// The file of that name, which is not owned thereby.
    pub(super) fn open(name: &str) -> io::Result<(Self, OwnedFd)> {
        let path = path(name)?;
        let file = open(&path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
        if !is_persistent(file.as_fd()) && !is_owned(file.as_fd()) {
            // What the dead have left is no more.
            let _ = remove(&path, file.as_fd(), true);
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((Name { name: name.to_owned(), owner: None }, file))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.name
    }

    /// Owns it, too.
    pub(super) fn own(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        if self.owner.is_none() {
            self.owner = Some(own(file)?);
        }
        Ok(())
    }

    /// From now on the name stays until it is removed.
    pub(super) fn persist(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(fchmod(file, Mode::RUSR | Mode::WUSR | Mode::SVTX)?)
    }

    pub(super) fn unlink(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        remove(&path(&self.name)?, file, false)
    }

    /// To be called when the last handle here goes; a name that nobody else owns goes too.
    pub(super) fn leave(&mut self, file: BorrowedFd<'_>) {
        // In a fork, it is the parent's.
        if let Some(owner) = self.owner.take()
            && owner.get().is_some()
        {
            drop(owner);
            if let Ok(path) = path(&self.name) {
                let _ = remove(&path, file, true);
            }
        }
    }
}

/// Removes the names that dead owners have left; how many.
pub(super) fn sweep() -> usize {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return 0 };
    let ours = entries.flatten().filter(|entry| is_ours(&entry.file_name()));
    ours.filter(|entry| {
        let path = entry.path();
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // Of other users there is no opening it, nor removing.
        let Ok(file) = open(&path, flags, Mode::empty()) else { return false };
        let file = file.as_fd();
        !is_persistent(file) && !is_owned(file) && remove(&path, file, true).is_ok() && !path.exists()
    })
    .count()
}

fn is_ours(file_name: &OsStr) -> bool {
    file_name.to_str().is_some_and(|name| name.starts_with(PREFIX))
}
