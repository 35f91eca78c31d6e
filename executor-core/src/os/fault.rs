//! A signal handler that tells a stack overflow from any other segmentation fault, inside the dying
//! process.
//!
//! The handler runs on an alternate stack. It checks whether the fault lies in the guard region of
//! the thread that runs tasks, or, in any thread, at the place up to which the thread uses its
//! stack. If so, it stores one flag. Then it calls the previous handler: std's, which prints its
//! own message and aborts, or the default action. It writes no message itself.
//!
//! Only a thread with an alternate stack can run the handler. Threads of std have one if std has
//! installed its own handler, which it does before `main`. In a worker that begins before `main`,
//! in a test binary, only the thread that runs tasks has one.

use std::{
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering},
};

use super::std_or_model::atomic::AtomicU8;

/// Size of the guarded region below the lowest usable address of the stack. A large stack frame can
/// jump this far past the stack's end.
const GUARD_REACH_BYTES: usize = 1 << 20;
/// How far below the stack pointer a program writes before it moves the stack pointer there: what a
/// call pushes, and a frame of a function that calls no other.
const NEXT_FRAME_BYTES: usize = 4096;
const ALTERNATE_STACK_BYTES: usize = 64 * 1024;

static GUARD_LOW: AtomicUsize = AtomicUsize::new(0);
static GUARD_HIGH: AtomicUsize = AtomicUsize::new(0);
/// The flag to set on an overflow. It lies in the worker's shared page.
static NOTE: AtomicPtr<AtomicU8> = AtomicPtr::new(ptr::null_mut());
/// The process that watches its stack. A fork of it shares the page, but its faults must not be
/// recorded there.
static PROCESS: AtomicU32 = AtomicU32::new(0);
static PREVIOUS: [AtomicUsize; 2] =
    [AtomicUsize::new(libc::SIG_DFL), AtomicUsize::new(libc::SIG_DFL)];

fn slot(signal: libc::c_int) -> &'static AtomicUsize {
    &PREVIOUS[usize::from(signal == libc::SIGBUS)]
}

/// Watches the calling thread's stack. An overflow sets `note` before the process ends.
pub(crate) fn watch_this_stack(note: &'static AtomicU8) {
    let Some(low) = super::stack::bounds().map(|bounds| bounds.start) else { return };
    GUARD_LOW.store(low.saturating_sub(GUARD_REACH_BYTES), Ordering::Relaxed);
    // Include one page above the bound: for the main thread, the bound is where the kernel stops
    // growing the stack.
    GUARD_HIGH.store(low + 4096, Ordering::Relaxed);
    NOTE.store(ptr::from_ref(note).cast_mut(), Ordering::Release);
    PROCESS.store(std::process::id(), Ordering::Release);
    ensure_alternate_stack();
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        install(signal);
    }
}

/// Clears the flag. It belongs to a task that has ended, so the task caught the fault, as some
/// interpreters do.
#[inline]
pub(crate) fn forget() {
    // SAFETY: null, or the `&'static AtomicU8` of `watch_this_stack`, in a mapping that is never
    // unmapped.
    if let Some(note) = unsafe { NOTE.load(Ordering::Relaxed).as_ref() }
        && note.load(Ordering::Relaxed) != 0
        && PROCESS.load(Ordering::Relaxed) == std::process::id()
    {
        note.store(0, Ordering::Relaxed);
    }
}

/// Installs an alternate stack if the thread has none. std gives one to its own threads, but a
/// thread that was created before `main` has none.
fn ensure_alternate_stack() {
    let mut current = MaybeUninit::<libc::stack_t>::uninit();
    // SAFETY: this only reads the setting; the out-pointer is valid.
    if unsafe { libc::sigaltstack(ptr::null(), current.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: filled by the successful call.
    if unsafe { current.assume_init() }.ss_flags & libc::SS_DISABLE == 0 {
        return;
    }
    // Never freed: it is needed as long as the thread, which lives as long as the process.
    let memory = Box::leak(vec![0_u8; ALTERNATE_STACK_BYTES].into_boxed_slice());
    let stack =
        libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
    // SAFETY: nothing else uses the memory, and it is never freed.
    unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
}

fn install(signal: libc::c_int) {
    // SAFETY: an all-zero `sigaction` is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: as above.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both structures are valid, and the handler does only what a signal handler may do.
    if unsafe { libc::sigaction(signal, &action, &mut previous) } == 0
        // In a fork our handler is installed already. If it called itself as the previous one, it
        // would never end.
        && previous.sa_sigaction != action.sa_sigaction
    {
        slot(signal).store(previous.sa_sigaction, Ordering::Release);
    }
}

/// Returns the stack pointer at the fault, on machines where this code knows where it is.
///
/// # Safety
/// `context` is what the kernel has passed to a handler.
unsafe fn stack_pointer(context: *mut libc::c_void) -> Option<usize> {
    // SAFETY: the caller promises that it is a valid one.
    let context = unsafe { context.cast::<libc::ucontext_t>().as_ref()? };
    #[cfg(target_arch = "x86_64")]
    return Some(context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize);
    #[cfg(target_arch = "aarch64")]
    return Some(context.uc_mcontext.sp as usize);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = context;
        None
    }
}

/// Returns whether a fault at this address means that there is no stack where the stack pointer is.
/// That is so if the address is just below it, where the next frame begins, or above it, within a
/// frame that does not exist. An address above it within a stack that does exist is that of an
/// overrun.
fn is_at_top(address: usize, top: usize) -> bool {
    match address.checked_sub(top) {
        None => top - address <= NEXT_FRAME_BYTES,
        Some(above) => above < GUARD_REACH_BYTES && !is_readable(top),
    }
}

/// Returns whether this process can read the word at an address. It may be called in a handler.
fn is_readable(address: usize) -> bool {
    // SAFETY: the location is this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. The system call reads the set, and then refuses to do anything with it,
    // because there is no such operation. A set that cannot be read is reported as such.
    unsafe {
        let before = *errno;
        let set = address & !(size_of::<u64>() - 1);
        libc::syscall(libc::SYS_rt_sigprocmask, -1_i64, set, 0_usize, size_of::<u64>());
        let readable = *errno != libc::EFAULT;
        *errno = before;
        readable
    }
}

/// Sets the flag if a stack has overflowed, in a handler for a fault at this address.
///
/// # Safety
/// `context` must be what the kernel has passed to a SA_SIGINFO handler.
pub(super) unsafe fn note_overflow(address: usize, context: *mut libc::c_void) {
    let guard = GUARD_LOW.load(Ordering::Relaxed)..GUARD_HIGH.load(Ordering::Relaxed);
    // SAFETY: as the caller says.
    let top = || unsafe { stack_pointer(context) };
    if guard.contains(&address) || top().is_some_and(|top| is_at_top(address, top)) {
        // SAFETY: returns a number, and is allowed in a handler.
        let own = unsafe { libc::getpid() }.cast_unsigned() == PROCESS.load(Ordering::Acquire);
        // SAFETY: null, or the `&'static AtomicU8` of `watch_this_stack`.
        if own && let Some(note) = unsafe { NOTE.load(Ordering::Acquire).as_ref() } {
            note.store(1, Ordering::Release);
        }
    }
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a SA_SIGINFO handler.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code <= 0 {
        // The signal was sent by a process. No faulting instruction would run again and raise it,
        // so raise it here with the default action.
        //
        // SAFETY: both calls are allowed in a handler. The signal is blocked until the handler
        // returns, and then ends the process.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        return;
    }
    // SAFETY: the kernel passes a valid `ucontext_t` to a SA_SIGINFO handler.
    unsafe { note_overflow(address, context) };
    match slot(signal).load(Ordering::Acquire) {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: this restores the default action. The faulting instruction runs again and
            // ends the process with the same signal as without this handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        previous => {
            // SAFETY: the value is neither of the two constants, so it is the address of the
            // handler that was installed before. std's handler takes these three arguments. A
            // handler that takes only the first ignores the others.
            let previous: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(previous) };
            previous(signal, info, context);
        }
    }
}
