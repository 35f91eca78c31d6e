//! Names of shared memory, and their owners.
//!
//! ```text
//!  /dev/shm/executor-shared-memory.1000    one user's folder, to which nobody else may write
//!    └─ 5a                                 names with this hash
//!        ├─ =prices                        a name: a folder, too
//!        │    └─ memory                    the file
//!        └─ +0123456789abcdef              a name that is being created
//!
//!  create   fill an unnamed file; own it; link it into a new folder `+…`; rename that to the name,
//!           so nobody sees it half made
//!  own      lock a byte of the file through a separate description
//!           (os/liveness.rs: the kernel unlocks it when the owner ends)
//!  dead     the file is this library's, nobody owns it, and it is not persistent
//!           ─► remove the file, then the empty folders
//! ```
//!
//! **No process removes what another has created in the same place.** A name's folder contains one
//! file in its whole life: the folder is renamed after it has the file, and only to the place of an
//! *empty* folder. To remove a file, a process opens the file's folder, checks that it contains
//! that very file, and removes it there. If the name has been given again in the meantime, it was
//! given to another folder. So a process that is late, or is stopped in the middle, does no harm.
//! No lock is held, and no process waits for another.
//!
//! **Removing and owning may race.** Two bytes decide, and each side locks its byte before it
//! checks the other one: a remover locks `REMOVING`, and a new owner locks a byte from `OWNERS` on.
//! At least one of the two sees the other and gives up.
//!
//! A name is removed with its last owner, by `Drop`. If that owner was killed, the next process
//! that uses the name removes it. A process that creates a name also checks two others, chosen at
//! random, and more if those were dead ([`Folder::tidy`]). So there are fewer dead names than live
//! ones, and no step takes longer because there are many names.
//!
//! **Other users.** All users may write to `/dev/shm`. So the folder counts only if it belongs to
//! this user and nobody else may write to it. If another user has taken its name, the folder gets a
//! number, and is found by checking all folders that exist. In the folder, only those files count
//! that begin like this library's and belong to this user or to root ([`OwnFile`]).

use std::{
    ffi::{CStr, CString},
    hash::{BuildHasher, RandomState},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags, Stat, fchmod, fstat, linkat, mkdirat,
        open, openat, openat2, renameat, statat, unlinkat,
    },
    io::Errno,
    process::geteuid,
};

use crate::heap::segment::OwnFile;
use crate::os::{
    asked::Asked,
    liveness::{Description, byte},
};

const DIRECTORY: &str = "/dev/shm";
/// The beginning of the folder's name, before the user's number.
const PREFIX: &str = "executor-shared-memory.";
/// The name of the file in a name's folder.
const FILE: &str = "memory";
/// First character of a name's folder.
const NAMED: char = '=';
/// First character of a folder that is to become a name's folder.
const FRESH: char = '+';
/// Maximum length of a name. The system takes 255 bytes; the rest is for what precedes a name.
const NAME_MAX: usize = 246;
/// The first byte that owners lock, far above the bytes of the users of the memory.
const OWNERS: u64 = 1 << 40;
/// Number of bytes that owners choose from.
const OWNERS_MAX: u64 = 1 << 30;
/// The byte that a process locks before it removes a name.
const REMOVING: u64 = 1 << 41;
/// How often an operation starts again, for example after somebody has removed an empty folder.
const ATTEMPTS: u32 = 100;
/// How many other names are checked when a name is created.
const LOOKS: usize = 2;
/// Maximum number of names that are checked, if dead ones are among them.
const LOOKS_MAX: usize = 32;

/// A name of shared memory.
#[derive(Debug)]
pub(super) struct Name {
    name: String,
    owner: Option<Description>,
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Returns the path of a name's folder within the user's folder, or an error if the name is
/// invalid.
fn path(name: &str) -> io::Result<String> {
    if name.is_empty() {
        return Err(invalid("no name"));
    }
    if name.contains(['\0', '/']) {
        return Err(invalid("a name of shared memory has no slash and no NUL in it"));
    }
    if name.len() > NAME_MAX {
        return Err(invalid("a name of shared memory is not as long"));
    }
    Ok(format!("{:02x}/{NAMED}{name}", bucket(name)))
}

/// Returns a byte of the name's FNV-1a hash. All programs must agree on it.
fn bucket(name: &str) -> u8 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 56) as u8
}

/// Returns a random number.
fn chance() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Whether the operation might succeed if there were fewer names.
fn is_want_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory
    )
}

/// Opens a file without following a link, and without waiting if it is something other than a file.
fn open_file(folder: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags =
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat(folder, path, flags, Mode::empty())
}

/// Like [`open_file`], for a whole path, which may lead through another user's folder: links are
/// not followed anywhere in it. Returns an error if the system does not support that.
fn open_whole(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Becomes an owner of a file that nobody can remove meanwhile, because it has no name yet.
fn own(file: BorrowedFd<'_>) -> io::Result<Description> {
    let description = Description::open(file)?;
    let forked = || io::Error::other("forked meanwhile");
    for _ in 0..ATTEMPTS {
        if byte::try_lock(description.get().ok_or_else(forked)?, OWNERS + chance() % OWNERS_MAX)? {
            return Ok(description);
        }
    }
    Err(io::Error::other("too many own it"))
}

/// Becomes an owner of a file that has a name.
fn own_named(file: BorrowedFd<'_>) -> io::Result<Description> {
    let owner = own(file)?;
    let gone =
        || io::Error::new(io::ErrorKind::NotFound, "the name is gone: it had no owner any more");
    for _ in 0..ATTEMPTS {
        // Check this after locking: a process that marks the name for removal from now on sees this
        // owner.
        let removing =
            owner.get().is_none_or(|file| byte::is_locked(file, REMOVING).unwrap_or(true));
        if fstat(file)?.st_nlink == 0 {
            return Err(gone());
        }
        if !removing {
            return Ok(owner);
        }
        // The process that marked it either has seen this owner and gives up, or removes the name.
        // Wait to learn which: if both gave up, the name would stay without an owner.
        std::thread::yield_now();
    }
    // The remover is stopped halfway, or this user must not ask about its lock.
    Err(gone())
}

/// Whether a description other than this one owns the file.
fn is_owned(file: BorrowedFd<'_>) -> bool {
    // If this cannot be determined, the owner may be alive.
    byte::any_is_locked(file, OWNERS, OWNERS_MAX).unwrap_or(true)
}

/// Whether the file is marked as persistent. The mark is the sticky bit: it is stored with the
/// file, and has no other meaning for a regular file.
fn is_persistent(stat: &Stat) -> bool {
    Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX)
}

/// Whether nobody needs the name, from now on and for ever. In that case the name is marked for
/// removal as long as this description of the file is open, so open the file for this call.
fn is_doomed(file: &OwnFile) -> io::Result<bool> {
    // A persistent name stays persistent.
    if is_persistent(file.stat()) {
        return Ok(false);
    }
    if is_owned(file.as_fd()) || !file.has_magic() {
        return Ok(false);
    }
    let file = file.as_fd();
    byte::share(file, REMOVING)?;
    kill_point!(NameDoomed);
    // Check in this order: an owner may make the name persistent, and then end.
    if is_owned(file) || fstat(file).map_or(true, |stat| is_persistent(&stat)) {
        byte::unlock(file, REMOVING)?;
        return Ok(false);
    }
    Ok(true)
}

/// What a name leads to.
enum Found {
    /// Nothing, or an empty folder.
    Nothing,
    /// Something that is not this library's, or not this user's.
    Strange,
    Ours(OwnFile),
}

/// The result of an attempt to remove a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cleared {
    /// It must not be removed.
    Stays,
    /// There was nothing but a folder.
    Empty,
    Removed,
}

/// The folder of this user's names.
struct Folder {
    descriptor: OwnedFd,
    path: String,
    number: u32,
    /// This call has created the folder, so it had no names then.
    is_new: bool,
}

/// The user, and the number of the folder that was found last. Other users may have taken many
/// numbers, and a search checks each of them.
static KNOWN: AtomicU64 = AtomicU64::new(0);

/// Who has the folder with a certain number.
enum Candidate {
    Absent,
    Strangers,
    Ours(Folder),
}

impl Folder {
    fn path(user: u32, number: u32) -> String {
        match number {
            0 => format!("{DIRECTORY}/{PREFIX}{user}"),
            _ => format!("{DIRECTORY}/{PREFIX}{user}.{number}"),
        }
    }

    /// Checks who has the folder with this number.
    fn candidate(user: u32, number: u32) -> io::Result<Candidate> {
        let path = Self::path(user, number);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = match open(&path, flags, Mode::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::NOENT) => return Ok(Candidate::Absent),
            // This process or the system has run out of something, which says nothing about the
            // folder.
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                return Err(error).asked(&format!("the folder of named memory, {path}"));
            }
            // Any other error may be another user's doing: the path may even lead to a file system
            // of theirs.
            Err(_) => return Ok(Candidate::Strangers),
        };
        let Ok(stat) = fstat(&descriptor) else { return Ok(Candidate::Strangers) };
        let others_write = Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH);
        match stat.st_uid == user && !others_write {
            true => Ok(Candidate::Ours(Folder { descriptor, path, number, is_new: false })),
            false => Ok(Candidate::Strangers),
        }
    }

    /// Returns the numbers of all folders that are named like this user's, in order.
    fn numbers(user: u32) -> io::Result<Vec<u32>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let list = open(DIRECTORY, flags, Mode::empty()).asked(DIRECTORY)?;
        let first = format!("{PREFIX}{user}");
        let number = |name: &CStr| match name.to_str().ok()?.strip_prefix(&first)? {
            "" => Some(0),
            rest => rest.strip_prefix('.')?.parse().ok(),
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(list, &mut buffer);
        let mut numbers = Vec::new();
        while let Some(entry) = entries.next() {
            numbers.extend(number(entry.asked(DIRECTORY)?.file_name()));
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    /// Returns the number of this user's folder that was found last, at first 0.
    fn known(user: u32) -> u32 {
        let known = KNOWN.load(Ordering::Relaxed);
        if known >> 32 == u64::from(user) { known as u32 } else { 0 }
    }

    /// Opens the folder. If it does not exist, it is created if `make` is set; otherwise this
    /// returns [`NotFound`](io::ErrorKind::NotFound).
    ///
    /// The folder is not kept open, because it is removed when it is empty, and because the process
    /// may become another user.
    fn open(make: bool) -> io::Result<Self> {
        let user = geteuid().as_raw();
        let mut is_new = false;
        for _ in 0..ATTEMPTS {
            // Usually this one.
            if let Candidate::Ours(folder) = Self::candidate(user, Self::known(user))? {
                return Ok(Folder { is_new, ..folder });
            }
            // Otherwise check the existing folders, in order. It is not enough to try numbers until
            // one is free: another user may have given a number back, and this user's folder may
            // come after it.
            let taken = Self::numbers(user)?;
            for &number in &taken {
                if let Candidate::Ours(folder) = Self::candidate(user, number)? {
                    KNOWN.store(u64::from(user) << 32 | u64::from(number), Ordering::Relaxed);
                    return Ok(Folder { is_new, ..folder });
                }
            }
            if !make {
                break;
            }
            let free = (0..)
                .zip(&taken)
                .find(|(number, taken)| number != *taken)
                .map(|(number, _)| number);
            let number = free.unwrap_or(taken.len() as u32);
            let path = Self::path(user, number);
            match mkdirat(CWD, &path, Mode::RWXU) {
                Ok(()) => is_new = true,
                // Another process of this user, or another user, was faster.
                Err(Errno::EXIST) => {}
                Err(error) => {
                    return Err(error).asked(&format!("a folder for named memory, {path}"));
                }
            }
            kill_point!(NameFolderMade);
        }
        Err(match make {
            false => io::ErrorKind::NotFound.into(),
            true => io::Error::other(format!(
                "{DIRECTORY}: others take each folder's name that is to be made"
            )),
        })
    }

    /// Returns what a name leads to.
    fn look(&self, path: &str) -> io::Result<Found> {
        match open_file(self.descriptor.as_fd(), &format!("{path}/{FILE}")) {
            Ok(file) => Ok(OwnFile::check(Arc::new(file)).map_or(Found::Strange, Found::Ours)),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            Err(
                Errno::NOTDIR
                | Errno::LOOP
                | Errno::ACCESS
                | Errno::ISDIR
                | Errno::NXIO
                | Errno::WOULDBLOCK,
            ) => Ok(Found::Strange),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a name, if it leads to this file.
    fn remove(&self, path: &str, ours: &Stat) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(&self.descriptor, path, flags, Mode::empty())?;
        let there = statat(&folder, FILE, AtFlags::SYMLINK_NOFOLLOW)?;
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        kill_point!(NameRemovedNext);
        // This folder has never contained another file, and never will.
        unlinkat(&folder, FILE, AtFlags::empty())?;
        kill_point!(NameRemoved);
        self.remove_empty(path);
        Ok(())
    }

    /// Removes folders that are empty. If others have added something in the meantime, a folder
    /// stays.
    fn remove_empty(&self, path: &str) {
        let bucket = path.split('/').next().unwrap_or(path);
        let removed = unlinkat(&self.descriptor, path, AtFlags::REMOVEDIR)
            .and_then(|()| unlinkat(&self.descriptor, bucket, AtFlags::REMOVEDIR));
        // Keep a folder with a number: to create it again, a process has to check all folders that
        // other users have taken.
        if removed.is_ok() && self.number == 0 {
            let _ = unlinkat(CWD, &self.path, AtFlags::REMOVEDIR);
        }
    }

    /// Removes a name if nobody needs it.
    fn clear(&self, path: &str) -> io::Result<Cleared> {
        match self.look(path)? {
            Found::Ours(file) if is_doomed(&file)? => match self.remove(path, file.stat()) {
                // If the name is gone, another process has removed it.
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(Cleared::Removed),
            },
            Found::Nothing => {
                self.remove_empty(path);
                Ok(Cleared::Empty)
            }
            Found::Ours(_) | Found::Strange => Ok(Cleared::Stays),
        }
    }

    /// Gives a file its name. Returns [`Errno::NOENT`] if somebody has removed an empty folder in
    /// the meantime.
    fn put(&self, source: &str, path: &str) -> io::Result<()> {
        let bucket = path.split('/').next().unwrap_or(path);
        let fresh = format!("{bucket}/{FRESH}{:016x}", chance());
        let make = || mkdirat(&self.descriptor, &fresh, Mode::RWXU);
        let made = make().or_else(|error| match error {
            Errno::NOENT => {
                match mkdirat(&self.descriptor, bucket, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => make(),
                    // There is no room, for example, and to start again would not help.
                    other => other,
                }
            }
            // Another process has drawn the same number, so the caller starts again.
            Errno::EXIST => Err(Errno::NOENT),
            // There is no room, or no permission.
            other => Err(other),
        });
        made?;
        kill_point!(NameFresh);
        let file = format!("{fresh}/{FILE}");
        let put = linkat(CWD, source, &self.descriptor, &file, AtFlags::SYMLINK_FOLLOW);
        kill_point!(NameLinked);
        let put = put.map_err(io::Error::from).and_then(|()| self.publish(&fresh, path));
        if put.is_err() {
            let _ = unlinkat(&self.descriptor, &file, AtFlags::empty());
            self.remove_empty(&fresh);
        }
        put
    }

    /// Renames a new folder, which has its file, to its name.
    fn publish(&self, fresh: &str, path: &str) -> io::Result<()> {
        for _ in 0..ATTEMPTS {
            // This replaces an empty folder, and nothing else.
            match renameat(&self.descriptor, fresh, &self.descriptor, path) {
                Ok(()) => {
                    kill_point!(NamePublished);
                    return Ok(());
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    if self.clear(path)? == Cleared::Stays {
                        break;
                    }
                }
                Err(Errno::NOTDIR) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Returns the entries of a folder in this one, or none if that does not exist.
    fn list(&self, path: &str) -> Vec<CString> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(folder) = openat(&self.descriptor, path, flags, Mode::empty()) else {
            return Vec::new();
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(folder, &mut buffer);
        let mut names = Vec::new();
        while let Some(Ok(entry)) = entries.next() {
            if !entry.file_name().to_bytes().starts_with(b".") {
                names.push(entry.file_name().to_owned());
            }
        }
        names
    }

    /// Removes an entry of a bucket, if nobody needs it.
    fn clear_entry(&self, bucket: &str, entry: &CStr) -> Cleared {
        // Entries with other names were not created by this library.
        match entry.to_str() {
            Ok(name) if name.starts_with([NAMED, FRESH]) => {
                self.clear(&format!("{bucket}/{name}")).unwrap_or(Cleared::Stays)
            }
            _ => Cleared::Stays,
        }
    }

    /// Checks some names, chosen at random, and removes those whose owners are dead.
    ///
    /// The cost does not grow with the number of names, except for listing one 256th of them. For
    /// each name that is created, this removes two dead ones, or finds that there are few.
    fn tidy(&self) {
        // With many names, all buckets exist. With few names, it is quick to list the buckets.
        let mut bucket = format!("{:02x}", chance() as u8);
        let mut entries = self.list(&bucket);
        if entries.is_empty() {
            let mut buckets = self.list(".");
            if buckets.is_empty() {
                return;
            }
            let chosen = buckets.swap_remove(chance() as usize % buckets.len());
            bucket = chosen.into_string().unwrap_or_default();
            entries = self.list(&bucket);
        }
        let (mut looks, mut looked) = (LOOKS, 0);
        while looked < looks && !entries.is_empty() {
            let entry = entries.swap_remove(chance() as usize % entries.len());
            looked += 1;
            if self.clear_entry(&bucket, &entry) != Cleared::Stays {
                looks = (looks + LOOKS).min(LOOKS_MAX);
            }
        }
    }

    /// Checks all names, and removes those whose owners are dead. Returns how many were removed.
    fn sweep(&self) -> usize {
        let buckets = self.list(".").into_iter().filter_map(|bucket| bucket.into_string().ok());
        let in_bucket = |bucket: String| {
            let removed = |entry: &CString| self.clear_entry(&bucket, entry) == Cleared::Removed;
            self.list(&bucket).iter().filter(|entry| removed(entry)).count()
        };
        buckets.map(in_bucket).sum()
    }
}

impl Name {
    /// Calls `fill` with an unnamed file, which gets the name with [`link`](Self::link) later.
    ///
    /// If there is no room, names of dead owners are removed first. Otherwise a program that was
    /// killed could never create its name again, because its old memory takes the room for the new
    /// one.
    pub(super) fn fill<R>(name: &str, fill: impl Fn(OwnedFd) -> io::Result<R>) -> io::Result<R> {
        let path = path(name)?;
        let attempt = || {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let file = open(DIRECTORY, flags, Mode::RUSR | Mode::WUSR);
            fill(file.asked("a file for named memory in /dev/shm")?)
        };
        attempt().or_else(|error| {
            if !is_want_of_room(&error) {
                return Err(error);
            }
            let Ok(folder) = Folder::open(false) else { return Err(error) };
            // Report that the name is in use, and not the lack of room: it could not be created in
            // any case.
            if folder.clear(&path)? == Cleared::Stays {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            folder.sweep();
            attempt()
        })
    }

    /// Checks whether a name is valid.
    pub(super) fn check(name: &str) -> io::Result<()> {
        path(name).map(drop)
    }

    /// Gives the file, which is complete, its name, and becomes its owner.
    pub(super) fn link(name: &str, file: BorrowedFd<'_>) -> io::Result<Self> {
        let path = path(name)?;
        let owner = own(file)?;
        kill_point!(NameOwned);
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut swept = false;
        for _ in 0..ATTEMPTS {
            let folder = Folder::open(true)?;
            match folder.put(&source, &path) {
                Ok(()) => {
                    if !folder.is_new {
                        folder.tidy();
                    }
                    return Ok(Name { name: name.to_owned(), owner: Some(owner) });
                }
                // Somebody has removed an empty folder in the meantime: start again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
                // A name's folders take room, too.
                Err(error) if is_want_of_room(&error) && !swept => {
                    folder.sweep();
                    swept = true;
                }
                Err(error) => {
                    return Err(error)
                        .asked(&format!("a name for shared memory in {}", folder.path));
                }
            }
        }
        Err(io::Error::other(format!(
            "{DIRECTORY} or /proc/self/fd: what was made for a name is gone at once"
        )))
    }

    /// Opens the file with that name, without becoming an owner.
    pub(super) fn open(name: &str) -> io::Result<(Self, OwnFile)> {
        let path = path(name)?;
        let user = geteuid().as_raw();
        // Try the whole path at once, without checking the folder. Another user cannot put a file
        // of this user's into a folder of theirs, and links are not followed.
        let mut whole = Folder::path(user, Folder::known(user));
        for part in ["/", &path, "/", FILE] {
            whole.push_str(part);
        }
        if let Ok(file) = open_whole(&whole)
            && let Ok(file) = OwnFile::check(Arc::new(file))
            && (is_persistent(file.stat()) || is_owned(file.as_fd()))
        {
            return Ok((Self::label(name), file));
        }
        let folder = Folder::open(false)?;
        match folder.look(&path)? {
            Found::Nothing => Err(io::ErrorKind::NotFound.into()),
            Found::Strange => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no memory of this library, or of another user, has that name",
            )),
            // A name that dead owners have left counts as gone.
            Found::Ours(file) if is_doomed(&file)? => {
                let _ = folder.remove(&path, file.stat());
                Err(io::ErrorKind::NotFound.into())
            }
            Found::Ours(file) => Ok((Self::label(name), file)),
        }
    }

    /// Returns a name that was sent along with its file, without becoming an owner.
    pub(super) fn label(name: &str) -> Self {
        Name { name: name.to_owned(), owner: None }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.name
    }

    /// Whether this process owns the name. In a forked process, it is the parent that owns it.
    fn is_owner(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.get().is_some())
    }

    /// Becomes an owner of the name, too.
    pub(super) fn own(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        if !self.is_owner() {
            self.owner = Some(self.own_or_clear(file)?);
        }
        Ok(())
    }

    /// Becomes an owner of the name. If it is too late for that, the name is gone afterwards: this
    /// call removes it, because the process that was about to do so may be stopped.
    fn own_or_clear(&self, file: BorrowedFd<'_>) -> io::Result<Description> {
        own_named(file).inspect_err(|_| {
            if let (Ok(folder), Ok(path)) = (Folder::open(false), path(&self.name)) {
                let _ = folder.clear(&path);
            }
        })
    }

    /// Lets the name stay until it is removed explicitly.
    pub(super) fn persist(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        // Only as an owner, so that nobody removes the name at the same moment.
        let _owner = if self.is_owner() { None } else { Some(self.own_or_clear(file)?) };
        fchmod(file, Mode::RUSR | Mode::WUSR | Mode::SVTX)?;
        // Check this after setting the mark: a process that unlinks the name later removes a
        // persistent one.
        if fstat(file)?.st_nlink == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the name is gone: somebody has removed it",
            ));
        }
        Ok(())
    }

    /// Removes the name, if it still leads to this file.
    pub(super) fn unlink(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Folder::open(false)?.remove(&path(&self.name)?, &fstat(file)?)
    }

    /// Called when the last handle in this process is dropped. The name is removed if nobody else
    /// owns it.
    ///
    /// If the name cannot be checked any more (no descriptor is free, or the process has become
    /// another user or changed its root), it is removed later, like the names of dead owners.
    pub(super) fn leave(&mut self) {
        // Open the folder before the owner gives its descriptor back, because another thread may
        // take that.
        let folder = self.is_owner().then(|| Folder::open(false));
        drop(self.owner.take());
        kill_point!(NameLeft);
        if let (Some(Ok(folder)), Ok(path)) = (folder, path(&self.name)) {
            let _ = folder.clear(&path);
        }
    }
}

/// Removes the names that dead owners have left, and returns how many.
pub(super) fn sweep() -> usize {
    Folder::open(false).map_or(0, |folder| folder.sweep())
}
