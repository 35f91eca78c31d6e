//! A signal handler that writes where a process crashed, in the dying process.
//!
//! ```text
//!  SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT ─► on_crash ─► report on stderr ─► what was there before:
//!                                                 │                            the pool's handler for
//!                                                 │                            overflows, std's, none
//!                                              SIGALRM after TIMEOUT ─► ends the process by its signal
//! ```
//!
//! The handler may not allocate or lock: the fault can have come in the middle of either. So it
//! formats numbers into memory of its own and writes with `write(2)`. Two calls are less safe, and
//! can wait for a lock that the crashed thread holds: `_Unwind_Backtrace` and `dladdr`. Therefore a
//! timer ends the process by the signal it crashed with.
//!
//! Names of functions are not looked up, because that reads files and allocates. The offsets in the
//! report are those that `addr2line` and debuggers take.

use super::fault;
use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    mem::MaybeUninit,
    os::unix::ffi::OsStringExt,
    sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering},
};

/// What ends a process because of its own fault, and its names.
const CRASHES: [(c_int, &str); 5] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGABRT, "SIGABRT"),
];

/// How long a report may take, in seconds. It takes this long only if it waits for a lock that is
/// never released.
const TIMEOUT: c_uint = 2;

/// Frames beyond this number are left out. A stack that has overflowed has far more.
const FRAMES_MAX: usize = 64;

/// The handlers that were there before.
static PREVIOUS: [AtomicUsize; CRASHES.len()] =
    [const { AtomicUsize::new(libc::SIG_DFL) }; CRASHES.len()];
/// Whether a report is being written. Another fault meanwhile is not reported: it comes from a
/// thread that crashes at the same time, or from the report itself.
static REPORTS: AtomicBool = AtomicBool::new(false);
/// The path of this program, with a 0 at the end. Null if it is not known.
static PROGRAM: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
/// The signal of the crash that is being reported.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

unsafe extern "C" {
    fn _Unwind_Backtrace(
        each: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// From now on, this process and its forks write a report to stderr if they crash.
pub(crate) fn enable() {
    give_this_thread_a_stack();
    remember_program();
    for (index, (signal, _)) in CRASHES.iter().enumerate() {
        // SAFETY: an all-zero `sigaction` is a valid one.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_crash as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: as above.
        let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: both structures are valid, and the handler does only what a signal handler may
        // do, except for what the module's documentation says.
        if unsafe { libc::sigaction(*signal, &action, &mut previous) } == 0
            && previous.sa_sigaction != action.sa_sigaction
        {
            PREVIOUS[index].store(previous.sa_sigaction, Ordering::Release);
        }
    }
}

/// Reads the path of this program. The loader knows it only by `argv[0]`, which for a worker is a
/// title.
fn remember_program() {
    if let Ok(path) = std::env::current_exe()
        && let Ok(path) = CString::new(path.into_os_string().into_vec())
    {
        // Never freed: a crash may come at any time.
        PROGRAM.store(path.into_raw().cast(), Ordering::Release);
    }
}

/// Returns the path of the file that is loaded at this address, as a report names it.
fn file_of(found: &libc::Dl_info) -> *const c_char {
    // SAFETY: returns a number, and is allowed in a handler. It is the address of a table that
    // lies behind the header of the program's file, in the same page.
    let header = unsafe { libc::getauxval(libc::AT_PHDR) } as usize & !0xfff;
    let program = PROGRAM.load(Ordering::Acquire);
    if found.dli_fbase as usize == header && !program.is_null() {
        return program.cast();
    }
    found.dli_fname
}

/// Gives this thread an alternate stack that is large enough for a report. std's have 8 KiB, which
/// may not be enough for the unwinder. If it is not, in another thread, the process ends by the
/// same signal, with less of a report.
fn give_this_thread_a_stack() {
    const BYTES: usize = 64 * 1024;
    // Never freed: it is needed as long as the thread.
    let memory = Box::leak(vec![0_u8; BYTES].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: BYTES };
    // SAFETY: nothing else uses the memory, and it is never freed. std frees what it has set for a
    // thread by its own record of it.
    unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
}

extern "C" fn on_crash(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a SA_SIGINFO handler.
    let (code, address, sender) =
        unsafe { ((*info).si_code, (*info).si_addr() as usize, (*info).si_pid()) };
    // SAFETY: returns a number, and is allowed in a handler.
    let process = unsafe { libc::getpid() };
    // A report can take more stack than the alternate one of this thread has. The process then ends
    // at once, so what is to be noted is noted first.
    if code > 0 && matches!(signal, libc::SIGSEGV | libc::SIGBUS) {
        // SAFETY: the kernel has passed the context to this handler.
        unsafe { fault::note_overflow(address, context) };
    }
    // SAFETY: returns the address of this thread's variable.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. Who comes next in the chain may judge by it.
    let before = unsafe { *errno };
    // A signal that another process has sent says nothing about this program.
    let is_own = code > 0 || sender == process;
    let is_reporter = is_own && !REPORTS.swap(true, Ordering::AcqRel);
    if is_reporter {
        SIGNAL.store(signal, Ordering::Release);
        within_time(|| report(signal, (code > 0).then_some(address), process));
    }
    // SAFETY: as above.
    unsafe { *errno = before };
    chain(signal, code, info, context);
    if is_reporter {
        // The process goes on if a handler in the chain has dealt with the fault.
        REPORTS.store(false, Ordering::Release);
    }
}

/// Calls the handler that was there before, or lets the signal end the process.
fn chain(signal: c_int, code: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let index = CRASHES.iter().position(|(crash, _)| *crash == signal).unwrap_or(0);
    match PREVIOUS[index].load(Ordering::Acquire) {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: both calls are allowed in a handler. A faulting instruction runs again and
            // ends the process. A signal that was sent has no such instruction, and is raised
            // again: it is blocked until the handler returns, and then ends the process.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        previous => {
            // SAFETY: the value is neither of the two constants, so it is the address of the
            // handler that was installed before, which takes these arguments or ignores them.
            let previous: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(previous) };
            previous(signal, info, context);
        }
    }
}

/// Writes the report. SIGALRM ends this process by the signal of its crash if that takes too long.
fn within_time(report: impl FnOnce()) {
    extern "C" fn on_alarm(_: c_int) {
        let signal = SIGNAL.load(Ordering::Acquire);
        // SAFETY: all of these are allowed in a handler, and the set is filled before it is used.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            let mut set = MaybeUninit::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::raise(signal);
        }
    }
    // SAFETY: all of these are allowed in a handler, and the structures are valid. The signal is
    // blocked again when the handler returns, if it was.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_alarm as extern "C" fn(_) as usize;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(libc::SIGALRM, &action, &mut before);
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGALRM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::alarm(TIMEOUT);
        report();
        libc::alarm(0);
        libc::sigaction(libc::SIGALRM, &before, std::ptr::null_mut());
    }
}

fn report(signal: c_int, address: Option<usize>, process: libc::pid_t) {
    let name =
        CRASHES.iter().find(|(crash, _)| *crash == signal).map_or("a signal", |crash| crash.1);
    let line = Line::of_report();
    line.text(b"executor: process ").decimal(process.unsigned_abs() as usize);
    line.text(b" crashed with ").text(name.as_bytes());
    if let Some(address) = address {
        line.text(b" at address 0x").hexadecimal(address);
    }
    let mut thread = [0_u8; 16];
    // SAFETY: the call writes at most 16 bytes, with a 0 at the end.
    if unsafe { libc::prctl(libc::PR_GET_NAME, thread.as_mut_ptr()) } == 0 {
        let len = thread.iter().position(|byte| *byte == 0).unwrap_or(0);
        line.text(b", in thread `").text(&thread[..len]).text(b"`");
    }
    line.text(b". Its stack, innermost frame first (`addr2line -Cfipe FILE OFFSET` names them):");
    line.write();
    let mut frames = 0_usize;
    // SAFETY: `each_frame` is called with this pointer only during the call.
    unsafe { _Unwind_Backtrace(each_frame, (&raw mut frames).cast()) };
}

/// Writes a frame. Returns 0 to go on.
extern "C" fn each_frame(context: *mut c_void, frames: *mut c_void) -> c_int {
    const END_OF_STACK: c_int = 5;
    // SAFETY: `report` passes the address of this number, and nobody else uses it meanwhile. The
    // context is the unwinder's.
    let (number, address) = unsafe { (&mut *frames.cast::<usize>(), _Unwind_GetIP(context)) };
    if address == 0 || *number >= FRAMES_MAX {
        return END_OF_STACK;
    }
    let line = Line::of_report();
    line.text(b"  ").decimal(*number).text(b": ");
    *number += 1;
    let mut found = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: the call fills the structure if it returns something else than 0. The texts in it
    // belong to loaded files, which stay loaded.
    unsafe {
        if libc::dladdr(address as *const c_void, found.as_mut_ptr()) == 0 {
            line.text(b"0x").hexadecimal(address);
        } else {
            let found = found.assume_init();
            let file = file_of(&found);
            if !file.is_null() {
                line.text(CStr::from_ptr(file).to_bytes()).text(b" ");
            }
            line.text(b"0x").hexadecimal(address.wrapping_sub(found.dli_fbase as usize));
            if !found.dli_sname.is_null() {
                line.text(b" ").text(CStr::from_ptr(found.dli_sname).to_bytes());
            }
        }
    }
    line.write();
    0
}

/// A line of text, made without allocation. What does not fit is left out.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    const fn new() -> Self {
        Line { bytes: [0; 512], len: 0 }
    }

    /// Returns the empty line of the report, which is not on the small stack of the handler.
    fn of_report() -> &'static mut Self {
        static mut LINE: Line = Line::new();
        // SAFETY: only the thread that writes the report calls this. `REPORTS` lets no other one do
        // that. It has written one line before it asks for the next.
        let line = unsafe { (&raw mut LINE).as_mut_unchecked() };
        line.len = 0;
        line
    }

    fn text(&mut self, text: &[u8]) -> &mut Self {
        // One byte is kept for the end of the line.
        let len = text.len().min(self.bytes.len() - 1 - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&text[..len]);
        self.len += len;
        self
    }

    fn decimal(&mut self, number: usize) -> &mut Self {
        self.number(number, 10)
    }

    fn hexadecimal(&mut self, number: usize) -> &mut Self {
        self.number(number, 16)
    }

    fn number(&mut self, mut number: usize, base: usize) -> &mut Self {
        let mut digits = [0_u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[number % base];
            number /= base;
            if number == 0 {
                break;
            }
        }
        self.text(&digits[at..])
    }

    /// Writes the line to stderr in one call, so that lines of several processes do not mix.
    fn write(&mut self) {
        self.bytes[self.len] = b'\n';
        // SAFETY: allowed in a handler, and the bytes are there. Nothing can be done if it fails.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.len + 1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_made_without_allocation_and_cut_off_where_they_end() {
        let mut line = Line::new();
        line.text(b"x ").decimal(0).text(b" ").decimal(usize::MAX).text(b" ").hexadecimal(0xbeef);
        assert_eq!(line.bytes[..line.len], *format!("x 0 {} beef", usize::MAX).as_bytes());
        line.text(&[b'y'; 600]).decimal(7);
        assert_eq!(line.len, 511);
        assert_eq!(line.bytes[510], b'y');
    }
}
