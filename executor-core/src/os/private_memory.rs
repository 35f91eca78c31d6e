//! How much memory belongs to this process alone, and a note of an allocation that was refused.
//!
//! ```text
//!  /proc/self/statm   resident ─ shared = heap, stacks and private mappings that were written to
//!                     (`RssAnon` of /proc/self/status); files and shared memory do not count
//!
//!  RLIMIT_DATA ─► an allocation is refused (ENOMEM) ─► Rust aborts ─► SIGABRT ─► the handler here
//!                                                                     notes how much memory there was
//! ```

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicPtr, AtomicU32, Ordering},
    },
};

use rustix::{
    fs::{Mode, OFlags, open},
    process::{Resource, Rlimit, setrlimit},
};

use super::{arena::inode, limits::limit_of, std_or_model::atomic::AtomicU64};

/// How much more address space than its limit a process may reserve.
///
/// Memory that is reserved and not used costs nothing: stacks of threads (2 MiB each in Rust) and
/// arenas of the allocator. With less, a process with hundreds of threads is refused memory
/// although it uses little. With more, a process may get further beyond its limit before it is
/// noticed, on a machine that is too busy for the watcher.
const RESERVED_BYTES: u64 = 512 << 20;

/// Asks the system how much private memory this process has.
pub(crate) struct PrivateMemory {
    statm: OwnedFd,
    /// Device and inode of the file. A task may close a descriptor that it does not own, and its
    /// number may then belong to another file.
    identity: (u64, u64),
    page_bytes: u64,
    /// What does not count, in bytes.
    base: u64,
}

impl PrivateMemory {
    pub(crate) fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let statm = super::process::above_stdio(open("/proc/self/statm", flags, Mode::empty())?)?;
        let identity = inode(statm.as_fd())?;
        let page_bytes = rustix::param::page_size() as u64;
        Ok(PrivateMemory { statm, identity, page_bytes, base: 0 })
    }

    /// Does not count from now on what this process has now. A copy of a process has what that
    /// process had, and shares most of it until one of the two writes to it. The system does not
    /// tell which pages are still shared, except at the price of a walk through all of them.
    pub(crate) fn count_from_now(mut self) -> Self {
        self.base = 0;
        self.base = self.in_use().unwrap_or(0);
        self
    }

    /// Returns the private memory of this process that is in use, in bytes. Returns `None` if the
    /// system does not tell, or the descriptor is gone.
    ///
    /// It takes two microseconds or so. It does not allocate, and takes no lock, so it can be
    /// called in a signal handler.
    pub(crate) fn in_use(&self) -> Option<u64> {
        let [_, resident, shared, ..] = self.numbers()?;
        let private = resident.saturating_sub(shared).saturating_mul(self.page_bytes);
        Some(private.saturating_sub(self.base))
    }

    /// Returns the private address space that can be written to, in bytes, whether it is used or
    /// not. It is what `RLIMIT_DATA` limits, and the main thread's stack.
    fn reserved(&self) -> Option<u64> {
        Some(self.numbers()?[5].saturating_mul(self.page_bytes))
    }

    /// Returns the first six numbers of the file: size, resident, shared, text, 0, data.
    fn numbers(&self) -> Option<[u64; 6]> {
        if inode(self.statm.as_fd()).ok()? != self.identity {
            return None;
        }
        let mut text = [0_u8; 256];
        let len = rustix::io::pread(&self.statm, &mut text, 0).ok()?;
        let mut numbers = [0_u64; 6];
        let mut fields = text[..len].split(|byte| !byte.is_ascii_digit());
        for number in &mut numbers {
            let digits = fields.next().filter(|digits| !digits.is_empty())?;
            *number = digits.iter().fold(0, |number: u64, digit| {
                number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
            });
        }
        Some(numbers)
    }

    /// Lets the system refuse memory that is far beyond `limit` (`RLIMIT_DATA`). The limit is one
    /// that this process, and those that it starts, could raise again.
    pub(crate) fn limit_data(&self, limit: u64) -> io::Result<()> {
        let reserved = self.reserved().unwrap_or(0);
        let allowed = reserved.saturating_add(limit).saturating_add(RESERVED_BYTES);
        let Rlimit { current, maximum } = limit_of(Resource::Data)?;
        let lower = current.into_iter().chain(maximum).min().unwrap_or(u64::MAX);
        if allowed < lower {
            setrlimit(Resource::Data, Rlimit { current: Some(allowed), maximum })?;
        }
        Ok(())
    }
}

/// Where to note how much memory there was when an allocation was refused. It lies in the worker's
/// shared page.
static NOTE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
static MEMORY: AtomicPtr<PrivateMemory> = AtomicPtr::new(ptr::null_mut());
/// The process that watches its allocations. A fork of it shares the page.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// What happened on SIGABRT before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Stores the memory in use in `note`, if this process aborts because it is refused memory.
pub(crate) fn note_refused_memory(memory: &'static PrivateMemory, note: &'static AtomicU64) {
    NOTE.store(ptr::from_ref(note).cast_mut(), Ordering::Release);
    MEMORY.store(ptr::from_ref(memory).cast_mut(), Ordering::Release);
    PROCESS.store(std::process::id(), Ordering::Release);
    // SAFETY: an all-zero `sigaction` is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_abort as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: as above.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the structures are valid, and the handler does only what a signal handler may do.
    if unsafe { libc::sigaction(libc::SIGABRT, &action, &mut previous) } == 0 {
        // Already set in a fork, which has inherited the handler.
        let _ = PREVIOUS.set(previous);
    }
}

extern "C" fn on_abort(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // An allocator that is refused memory leaves ENOMEM here, and an abort that follows at once (of
    // a `std::bad_alloc` that nobody catches) does not change it. So this tells such an abort from
    // others. It stays there also if the task survives the refusal, until another call fails. So it
    // counts neither for an abort that Rust code has asked for, nor for the next task.
    let no_memory = io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM);
    // SAFETY: returns a number, and is allowed in a handler.
    let own = unsafe { libc::getpid() };
    // SAFETY: the kernel passes a valid `siginfo_t` to a SA_SIGINFO handler.
    let by_itself = unsafe { (*info).si_code == libc::SI_TKILL && (*info).si_pid() == own };
    if by_itself
        && own.cast_unsigned() == PROCESS.load(Ordering::Acquire)
        && match cause_of_abort() {
            Cause::Memory => true,
            Cause::Request => false,
            Cause::Unknown => no_memory,
        }
    {
        // SAFETY: null, or the `&'static` references of `note_refused_memory`.
        let (note, memory) = unsafe {
            (NOTE.load(Ordering::Acquire).as_ref(), MEMORY.load(Ordering::Acquire).as_ref())
        };
        if let (Some(note), Some(memory)) = (note, memory) {
            // The process could have been told how much it has by 0 only if it had none.
            note.store(memory.in_use().unwrap_or(0).max(1), Ordering::Release);
        }
    }
    // What would have happened without this handler happens when it returns: the signal is blocked
    // until then.
    //
    // SAFETY: all three calls are allowed in a handler, and the structure is what the kernel said.
    unsafe {
        match PREVIOUS.get() {
            Some(previous) => _ = libc::sigaction(signal, previous, ptr::null_mut()),
            None => _ = libc::signal(signal, libc::SIG_DFL),
        }
        libc::raise(signal);
    }
}

// The unwinder, which std is linked with.
unsafe extern "C" {
    fn _Unwind_Backtrace(
        frame: extern "C" fn(*mut libc::c_void, *mut libc::c_void) -> libc::c_int,
        found: *mut libc::c_void,
    ) -> libc::c_int;
    fn _Unwind_GetIP(context: *mut libc::c_void) -> usize;
    fn _Unwind_FindEnclosingFunction(at: *mut libc::c_void) -> *mut libc::c_void;
}

/// Forgets that the system has refused memory to a task, which has survived that and ended.
#[inline]
pub(crate) fn forget_refusal() {
    // SAFETY: the location is this thread's own, and lives as long as the thread.
    unsafe { *libc::__errno_location() = 0 };
}

/// Why this thread aborts, as far as its stack tells.
#[derive(Clone, Copy)]
enum Cause {
    Unknown,
    /// It is in [`handle_alloc_error`](std::alloc::handle_alloc_error). That writes its message
    /// before it aborts, and a backtrace if that is asked for, so the system's last error may be
    /// another one by then.
    Memory,
    /// It is in [`abort`](std::process::abort).
    Request,
}

fn cause_of_abort() -> Cause {
    extern "C" fn frame(context: *mut libc::c_void, found: *mut libc::c_void) -> libc::c_int {
        let handler: fn(std::alloc::Layout) -> ! = std::alloc::handle_alloc_error;
        let request: fn() -> ! = std::process::abort;
        // SAFETY: the unwinder passes its own context.
        let returns_to = unsafe { _Unwind_GetIP(context) };
        // The stack of a thread may end with 0.
        let Some(call) = returns_to.checked_sub(1).filter(|call| *call > 0) else { return 1 };
        // SAFETY: the unwinder looks functions up by any address.
        let function = unsafe { _Unwind_FindEnclosingFunction(call as *mut _) };
        let (cause, is_found) = match function as usize {
            function if function == handler as usize => (Cause::Memory, 1),
            // The search goes on: the handler calls this function.
            function if function == request as usize => (Cause::Request, 0),
            _ => return 0,
        };
        // SAFETY: it is the `Cause` below.
        unsafe { *found.cast::<Cause>() = cause };
        // Any other number than 0 ends the search.
        is_found
    }
    let mut found = Cause::Unknown;
    // SAFETY: the function keeps to the unwinder's contract, and does not unwind. The unwinder may
    // take locks of the loader. This thread has none of them: it has raised the signal itself, by
    // `abort`, which is not called within the loader.
    unsafe { _Unwind_Backtrace(frame, ptr::from_mut(&mut found).cast()) };
    found
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn memory_counts_when_it_is_written_to_and_not_if_it_is_shared() {
        const BYTES: usize = 64 << 20;
        let memory = PrivateMemory::open().unwrap();
        let before = memory.in_use().unwrap();
        assert!(before > 0);
        let mut bytes = vec![0_u8; BYTES];
        let reserved = memory.in_use().unwrap();
        // Other tests run in this process, so the numbers are not exact.
        assert!(reserved < before + BYTES as u64 / 2, "{before} {reserved}");
        bytes.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        let written = memory.in_use().unwrap();
        assert!(written > before + BYTES as u64 / 2, "{before} {written}");
        assert!(memory.reserved().unwrap() >= BYTES as u64);
        assert_eq!(std::hint::black_box(bytes)[4096], 1);
    }

    #[test]
    fn a_descriptor_that_is_another_file_now_tells_nothing() {
        let memory = PrivateMemory::open().unwrap();
        let other = std::fs::File::open("/dev/zero").unwrap();
        // SAFETY: both are open; what `memory` owns stays open, as another file.
        assert!(unsafe { libc::dup2(other.as_raw_fd(), memory.statm.as_raw_fd()) } >= 0);
        assert_eq!(memory.in_use(), None);
    }
}
