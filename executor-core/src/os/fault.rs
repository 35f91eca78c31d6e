//! Tells a stack overflow from any other segmentation fault, from within the dying process.
//!
//! The handler runs on an alternate stack, looks whether the fault lies in the guard region of the thread that runs
//! tasks, stores one flag, and hands on to whoever was there before: std's handler, which prints its own last words
//! and aborts, or the default action. It writes nothing itself.

use std::{
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering},
};

use super::sync::atomic::AtomicU8;

/// Below the lowest usable address of the stack; a large frame can jump this far over its end.
const GUARD_REACH_BYTES: usize = 1 << 20;
const ALTERNATE_STACK_BYTES: usize = 64 * 1024;

static GUARD_LOW: AtomicUsize = AtomicUsize::new(0);
static GUARD_HIGH: AtomicUsize = AtomicUsize::new(0);
/// Where to note an overflow: a flag in the worker's shared page.
static NOTE: AtomicPtr<AtomicU8> = AtomicPtr::new(ptr::null_mut());
/// The process that watches: a fork of it shares the page, and its faults are its own.
static PROCESS: AtomicU32 = AtomicU32::new(0);
static PREVIOUS: [AtomicUsize; 2] = [AtomicUsize::new(libc::SIG_DFL), AtomicUsize::new(libc::SIG_DFL)];

fn slot(signal: libc::c_int) -> &'static AtomicUsize {
    &PREVIOUS[usize::from(signal == libc::SIGBUS)]
}

/// Watches the calling thread's stack; an overflow sets `note` before the process ends.
pub(crate) fn watch_this_stack(note: &'static AtomicU8) {
    let Some(low) = super::stack::bounds().map(|bounds| bounds.start) else { return };
    GUARD_LOW.store(low.saturating_sub(GUARD_REACH_BYTES), Ordering::Relaxed);
    // One page above the bound: the bound of the main thread is where the kernel will stop growing it.
    GUARD_HIGH.store(low + 4096, Ordering::Relaxed);
    NOTE.store(ptr::from_ref(note).cast_mut(), Ordering::Release);
    PROCESS.store(std::process::id(), Ordering::Release);
    ensure_alternate_stack();
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        install(signal);
    }
}

/// What was noted is of a task that has ended: it has caught the fault, as some interpreters do.
#[inline]
pub(crate) fn forget() {
    // SAFETY: null or the `&'static AtomicU8` of `watch_this_stack`, in a mapping that stays.
    if let Some(note) = unsafe { NOTE.load(Ordering::Relaxed).as_ref() }
        && note.load(Ordering::Relaxed) != 0
        && PROCESS.load(Ordering::Relaxed) == std::process::id()
    {
        note.store(0, Ordering::Relaxed);
    }
}

/// std gives its own threads an alternate stack; a thread made before `main` has none.
fn ensure_alternate_stack() {
    let mut current = MaybeUninit::<libc::stack_t>::uninit();
    // SAFETY: asks only; the out-pointer is valid.
    if unsafe { libc::sigaltstack(ptr::null(), current.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: filled by the successful call.
    if unsafe { current.assume_init() }.ss_flags & libc::SS_DISABLE == 0 {
        return;
    }
    // Lives as long as the thread, which is as long as the process: never freed.
    let memory = Box::leak(vec![0_u8; ALTERNATE_STACK_BYTES].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
    // SAFETY: the memory is ours alone and is never freed.
    unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
}

fn install(signal: libc::c_int) {
    // SAFETY: an all-zero `sigaction` is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: as above.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both structures are valid; the handler does only what a handler may do.
    if unsafe { libc::sigaction(signal, &action, &mut previous) } == 0
        // In a fork it is installed already; to hand on to itself would have no end.
        && previous.sa_sigaction != action.sa_sigaction
    {
        slot(signal).store(previous.sa_sigaction, Ordering::Release);
    }
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid `siginfo_t` to a SA_SIGINFO handler.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code <= 0 {
        // Sent by somebody, not caused by an instruction that would fault again: end as it was meant.
        // SAFETY: both calls are allowed in a handler; the signal is blocked until the handler returns, then it ends
        // the process.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        return;
    }
    if (GUARD_LOW.load(Ordering::Relaxed)..GUARD_HIGH.load(Ordering::Relaxed)).contains(&address) {
        // SAFETY: asks for a number; allowed in a handler.
        let own = unsafe { libc::getpid() }.cast_unsigned() == PROCESS.load(Ordering::Acquire);
        // SAFETY: null or the `&'static AtomicU8` of `watch_this_stack`.
        if own && let Some(note) = unsafe { NOTE.load(Ordering::Acquire).as_ref() } {
            note.store(1, Ordering::Release);
        }
    }
    match slot(signal).load(Ordering::Acquire) {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: restores the default action; the faulting instruction runs again and ends the process with the
            // very signal it would have ended with.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        previous => {
            // SAFETY: not one of the two constants, so the address of the handler that was installed before; std's
            // handler takes these three arguments, and one that takes only the first ignores the others.
            let previous: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(previous) };
            previous(signal, info, context);
        }
    }
}
