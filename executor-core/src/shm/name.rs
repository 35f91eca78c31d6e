//! Names of shared memory, and who owns them.
//!
//! ```text
//!  /dev/shm/executor-shared-memory.1000    of one user: the folder is that user's, and nobody else writes to it
//!    └─ 5a                                 names with this hash
//!        ├─ =prices                        a name: a folder, too
//!        │    └─ memory                    the file
//!        └─ +0123456789abcdef              a name that is being made
//!
//!  create   an unnamed file, filled; owned; linked into a new folder `+…`; that is renamed to the name: nobody sees it half made
//!  own      a byte of the file is locked through a description of one's own     (os/liveness.rs: the kernel lets go)
//!  dead     ours by what it says, nobody owns it, it is not persistent ─► the file goes, then the empty folders
//! ```
//!
//! **Nobody removes what another one has made in its place.** A folder of a name has one file in its life: it is renamed when it
//! has it, and to the place of an *empty* folder only. So who removes a file opens its folder, looks whether it is that file, and
//! removes it there: if the name has been given anew meanwhile, then to another folder. Whoever is late, or stopped in the
//! middle, harms nobody; no lock is held, and nobody waits for anybody.
//!
//! **Whether it is dead** is decided against those who become owners at the same moment by two bytes, each of which is locked before
//! the other one is looked at: `DOOM` by who wants to remove, one from `OWNERS` on by who wants to own. At least one of the two
//! sees the other, and gives up.
//!
//! A name goes with its last owner, by `Drop`. If that was killed, by whoever uses the name next; and whoever makes a name looks at two
//! others, chosen by chance, and at more if those were dead ([`Folder::tidy`]): the names of the dead stay fewer than those of
//! the living, and no step takes longer because there are many.
//!
//! **Other users.** All may write to `/dev/shm`. So the folder counts only if it belongs to this user and nobody else may write to it;
//! where somebody has taken its name, it has a number, and is found by a look at all that are there. In it, only files are looked at that begin as this
//! library's do and belong to this user or to root ([`OwnFile`]).

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
        AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags, Stat, fchmod, fstat, linkat, mkdirat, open, openat,
        openat2, renameat, statat, unlinkat,
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
/// The folder's name, before the user's number.
const PREFIX: &str = "executor-shared-memory.";
/// The file in the folder of a name.
const FILE: &str = "memory";
/// A folder of a name begins with the first, one that is to become that with the second.
const NAMED: char = '=';
const FRESH: char = '+';
/// The system takes 255 bytes; the rest is for what stands before a name.
const NAME_MAX: usize = 246;
/// Bytes that owners lock: far above those of users of the memory.
const OWNERS: u64 = 1 << 40;
const OWNERS_MAX: u64 = 1 << 30;
/// The byte that is locked by whoever is about to remove the name.
const DOOM: u64 = 1 << 41;
/// How often it is begun anew when somebody has removed an empty folder in between.
const ATTEMPTS: u32 = 100;
/// How many other names are looked at when one is made, and how many at most if dead ones are among them.
const LOOKS: usize = 2;
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

/// The folder of a name, within the user's.
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

/// FNV-1a, of which a byte is enough: all programs must agree.
fn bucket(name: &str) -> u8 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 56) as u8
}

/// Some number, differently each time.
fn chance() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Whether it could be done if there were fewer names.
fn is_want_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory
    )
}

/// Neither a link nor anything that is no file is followed, and nobody is waited for.
fn open_file(folder: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat(folder, path, flags, Mode::empty())
}

/// The same for the whole path of one, which may lead through a folder of a stranger's: no link in it is followed, anywhere. An
/// error where the system cannot do that.
fn open_whole(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Becomes an owner of a file that nobody removes meanwhile: it has no name yet.
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
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the name is gone: it had no owner any more");
    for _ in 0..ATTEMPTS {
        // After the lock: whoever marks it as doomed from now on sees that it is owned.
        let doomed = owner.get().is_none_or(|file| byte::is_locked(file, DOOM).unwrap_or(true));
        if fstat(file)?.st_nlink == 0 {
            return Err(gone());
        }
        if !doomed {
            return Ok(owner);
        }
        // Whoever marked it either has seen this owner and gives up, or removes it. If both gave up, it would stay without an owner.
        std::thread::yield_now();
    }
    // Stopped in between; or not this user's to ask.
    Err(gone())
}

/// Whether some other description than this one owns it.
fn is_owned(file: BorrowedFd<'_>) -> bool {
    // Whom one cannot ask about may be alive.
    byte::any_is_locked(file, OWNERS, OWNERS_MAX).unwrap_or(true)
}

/// A mark that lies with the file itself, and means nothing for one that is no directory.
fn is_persistent(stat: &Stat) -> bool {
    Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX)
}

/// Whether nobody needs the name, from now on for ever. The file was opened for this question: it stays marked as long as that
/// description is open.
fn is_doomed(file: &OwnFile) -> io::Result<bool> {
    // What is persistent stays so.
    if is_persistent(file.stat()) {
        return Ok(false);
    }
    if is_owned(file.as_fd()) || !file.has_magic() {
        return Ok(false);
    }
    let file = file.as_fd();
    byte::share(file, DOOM)?;
    kill_point!(NameDoomed);
    // In this order: an owner makes it persistent, and goes.
    if is_owned(file) || fstat(file).map_or(true, |stat| is_persistent(&stat)) {
        byte::unlock(file, DOOM)?;
        return Ok(false);
    }
    Ok(true)
}

/// What lies under a name.
enum Found {
    /// Nothing, or an empty folder.
    Nothing,
    /// Something that is not this library's, or not this user's.
    Strange,
    Ours(OwnFile),
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cleared {
    /// It is not to be removed.
    Stays,
    /// Nothing was there but a folder.
    Empty,
    Removed,
}

/// The folder of this user's names.
struct Folder {
    descriptor: OwnedFd,
    path: String,
    number: u32,
    /// Nobody else's name is in it, or was when it was made here.
    is_new: bool,
}

/// The user, and the number of the folder that was found last: strangers can have taken many, and each is looked at once.
static KNOWN: AtomicU64 = AtomicU64::new(0);

/// Who may have a folder of this name.
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

    fn candidate(user: u32, number: u32) -> io::Result<Candidate> {
        let path = Self::path(user, number);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = match open(&path, flags, Mode::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::NOENT) => return Ok(Candidate::Absent),
            // What this process or the system lacks.
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                return Err(error).asked(&format!("the folder of named memory, {path}"));
            }
            // Whatever else a stranger can make a path answer, which may be a file system of his.
            Err(_) => return Ok(Candidate::Strangers),
        };
        let Ok(stat) = fstat(&descriptor) else { return Ok(Candidate::Strangers) };
        let others_write = Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH);
        match stat.st_uid == user && !others_write {
            true => Ok(Candidate::Ours(Folder { descriptor, path, number, is_new: false })),
            false => Ok(Candidate::Strangers),
        }
    }

    /// The numbers of all folders that are called like this user's, in order.
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

    /// The number of the folder that was found last, of this user; 0 at first.
    fn known(user: u32) -> u32 {
        let known = KNOWN.load(Ordering::Relaxed);
        if known >> 32 == u64::from(user) { known as u32 } else { 0 }
    }

    /// Opens it; if it is not there, it is made, or [`NotFound`](io::ErrorKind::NotFound).
    ///
    /// It is not kept open: it goes when it is empty, and the process may become another user.
    fn open(make: bool) -> io::Result<Self> {
        let user = geteuid().as_raw();
        let mut is_new = false;
        for _ in 0..ATTEMPTS {
            // The first is the usual one.
            if let Candidate::Ours(folder) = Self::candidate(user, Self::known(user))? {
                return Ok(Folder { is_new, ..folder });
            }
            // Else those that there are, in order. Not by trying numbers until some are free: strangers give back
            // what they have taken, and one of this user's may lie beyond.
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
            let free = (0..).zip(&taken).find(|(number, taken)| number != *taken).map(|(number, _)| number);
            let number = free.unwrap_or(taken.len() as u32);
            let path = Self::path(user, number);
            match mkdirat(CWD, &path, Mode::RWXU) {
                Ok(()) => is_new = true,
                // By another process of this user, or by a stranger.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error).asked(&format!("a folder for named memory, {path}")),
            }
            kill_point!(NameFolderMade);
        }
        Err(match make {
            false => io::ErrorKind::NotFound.into(),
            true => {
                io::Error::other(format!("{DIRECTORY}: others take each folder's name that is to be made"))
            }
        })
    }

    /// What lies under a name.
    fn look(&self, path: &str) -> io::Result<Found> {
        match open_file(self.descriptor.as_fd(), &format!("{path}/{FILE}")) {
            Ok(file) => Ok(OwnFile::check(Arc::new(file)).map_or(Found::Strange, Found::Ours)),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            Err(
                Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::ISDIR | Errno::NXIO | Errno::WOULDBLOCK,
            ) => Ok(Found::Strange),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a name, if it is that of this file.
    fn remove(&self, path: &str, ours: &Stat) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(&self.descriptor, path, flags, Mode::empty())?;
        let there = statat(&folder, FILE, AtFlags::SYMLINK_NOFOLLOW)?;
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        kill_point!(NameRemovedNext);
        // In this folder there was never another one, nor will there be.
        unlinkat(&folder, FILE, AtFlags::empty())?;
        kill_point!(NameRemoved);
        self.remove_empty(path);
        Ok(())
    }

    /// Removes folders as far as they are empty. What others have put there meanwhile keeps them.
    fn remove_empty(&self, path: &str) {
        let bucket = path.split('/').next().unwrap_or(path);
        let removed = unlinkat(&self.descriptor, path, AtFlags::REMOVEDIR)
            .and_then(|()| unlinkat(&self.descriptor, bucket, AtFlags::REMOVEDIR));
        // One that was hard to get is kept: who makes it anew has to look at all that strangers have taken.
        if removed.is_ok() && self.number == 0 {
            let _ = unlinkat(CWD, &self.path, AtFlags::REMOVEDIR);
        }
    }

    /// Removes a name if nobody needs it.
    fn clear(&self, path: &str) -> io::Result<Cleared> {
        match self.look(path)? {
            Found::Ours(file) if is_doomed(&file)? => match self.remove(path, file.stat()) {
                // Another one has removed it.
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

    /// Gives a file its name. [`Errno::NOENT`] if somebody has removed an empty folder meanwhile.
    fn put(&self, source: &str, path: &str) -> io::Result<()> {
        let bucket = path.split('/').next().unwrap_or(path);
        let fresh = format!("{bucket}/{FRESH}{:016x}", chance());
        let make = || mkdirat(&self.descriptor, &fresh, Mode::RWXU);
        let made = make().or_else(|error| match error {
            Errno::NOENT => {
                match mkdirat(&self.descriptor, bucket, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => make(),
                    // No room: to begin anew would not help.
                    other => other,
                }
            }
            // Another process has drawn the same number; or there is no room, no permission.
            Errno::EXIST => Err(Errno::NOENT),
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

    fn publish(&self, fresh: &str, path: &str) -> io::Result<()> {
        for _ in 0..ATTEMPTS {
            // Replaces an empty folder, and nothing else.
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

    /// The entries of a folder in it; none if that is not there.
    fn list(&self, path: &str) -> Vec<CString> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(folder) = openat(&self.descriptor, path, flags, Mode::empty()) else { return Vec::new() };
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

    /// Removes what is there, of these entries of a bucket, if nobody needs it.
    fn clear_entry(&self, bucket: &str, entry: &CStr) -> Cleared {
        // What is called otherwise was not made here.
        match entry.to_str() {
            Ok(name) if name.starts_with([NAMED, FRESH]) => {
                self.clear(&format!("{bucket}/{name}")).unwrap_or(Cleared::Stays)
            }
            _ => Cleared::Stays,
        }
    }

    /// Looks at some names, chosen by chance, whether their owners are dead. What that takes does not grow with the number of
    /// names, but for the listing of a 256th of them; and each name that is made takes away two dead ones, or finds that there
    /// are few.
    fn tidy(&self) {
        // With many names, there are all buckets; with few, it is quick to look which there are.
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

    /// Looks at all names, whether their owners are dead; how many were.
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
    /// What `fill` makes of an unnamed file that is to have this name; [`link`](Self::link) gives it to it.
    ///
    /// Where there is no room, those of the dead give theirs: a program that was killed could else never make its name again, for
    /// what it has left takes the room of what comes in its place.
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
            // Not "no room": it could not be made in any case.
            if folder.clear(&path)? == Cleared::Stays {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            folder.sweep();
            attempt()
        })
    }

    /// Checks a name.
    pub(super) fn check(name: &str) -> io::Result<()> {
        path(name).map(drop)
    }

    /// Names the file, which is complete, and owns it.
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
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
                // The folders of a name take room, too.
                Err(error) if is_want_of_room(&error) && !swept => {
                    folder.sweep();
                    swept = true;
                }
                Err(error) => {
                    return Err(error).asked(&format!("a name for shared memory in {}", folder.path));
                }
            }
        }
        Err(io::Error::other(format!(
            "{DIRECTORY} or /proc/self/fd: what was made for a name is gone at once"
        )))
    }

    /// The file of that name, which is not owned thereby.
    pub(super) fn open(name: &str) -> io::Result<(Self, OwnFile)> {
        let path = path(name)?;
        let user = geteuid().as_raw();
        // At once, without a look at the folder: a stranger can put no file of this user's into one of his own, and a link to one
        // is not followed.
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
            // What the dead have left is no more.
            Found::Ours(file) if is_doomed(&file)? => {
                let _ = folder.remove(&path, file.stat());
                Err(io::ErrorKind::NotFound.into())
            }
            Found::Ours(file) => Ok((Self::label(name), file)),
        }
    }

    /// A name that came with its file, and is not owned thereby.
    pub(super) fn label(name: &str) -> Self {
        Name { name: name.to_owned(), owner: None }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.name
    }

    /// In a fork, it is the parent who owns it.
    fn is_owner(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.get().is_some())
    }

    /// Owns it, too.
    pub(super) fn own(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        if !self.is_owner() {
            self.owner = Some(self.own_or_clear(file)?);
        }
        Ok(())
    }

    /// If the name is too late to be owned, it is gone afterwards: whoever was about to remove it may be stopped.
    fn own_or_clear(&self, file: BorrowedFd<'_>) -> io::Result<Description> {
        own_named(file).inspect_err(|_| {
            if let (Ok(folder), Ok(path)) = (Folder::open(false), path(&self.name)) {
                let _ = folder.clear(&path);
            }
        })
    }

    /// From now on the name stays until it is removed.
    pub(super) fn persist(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        // As an owner: so nobody removes it at the same moment.
        let _owner = if self.is_owner() { None } else { Some(self.own_or_clear(file)?) };
        fchmod(file, Mode::RUSR | Mode::WUSR | Mode::SVTX)?;
        // After the mark: whoever unlinks it from now on removes what is persistent.
        if fstat(file)?.st_nlink == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name is gone: somebody has removed it"));
        }
        Ok(())
    }

    pub(super) fn unlink(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        Folder::open(false)?.remove(&path(&self.name)?, &fstat(file)?)
    }

    /// To be called when the last handle here goes; a name that nobody else owns goes too. Where it cannot be looked at any more
    /// (no descriptor is free, the process has become another user or changed its root), it goes as those of the dead do.
    pub(super) fn leave(&mut self) {
        // Before the owner gives its descriptor back, which another thread may take.
        let folder = self.is_owner().then(|| Folder::open(false));
        drop(self.owner.take());
        kill_point!(NameLeft);
        if let (Some(Ok(folder)), Ok(path)) = (folder, path(&self.name)) {
            let _ = folder.clear(&path);
        }
    }
}

/// Removes the names that dead owners have left; how many.
pub(super) fn sweep() -> usize {
    Folder::open(false).map_or(0, |folder| folder.sweep())
}
