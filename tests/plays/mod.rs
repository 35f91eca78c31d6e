//! Programs with a `main` of their own, played by the test binary itself. The binary starts its own
//! file again with the name of a program in its environment, and checks the program's output and
//! what it leaves behind.
//!
//! A program has one thread, so that it may fork, and an alarm, so that `SIGALRM` ends it if it
//! hangs.

#![allow(dead_code, unreachable_pub)] // : each test crate uses only a part

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use executor::StartMethod;
use rustix::process::Signal;

#[path = "../support/harness.rs"]
pub mod harness;

use crate::support::{LONG, signal, tagged, watchdog};

/// Names the program to be played.
pub const PROGRAM: &str = "EXECUTOR_TEST_PROGRAM";
/// The program's argument.
const ARGUMENT: &str = "EXECUTOR_TEST_ARGUMENT";
/// Marks a program and everything that it starts.
const TAG: &str = "EXECUTOR_TEST_TAG";

/// Defines a list of functions with their names.
macro_rules! list {
    ($list:ident: $($name:ident,)*) => {
        const $list: &[(&str, fn())] = &[$((stringify!($name), $name),)*];
    };
}

/// The `main` of a test binary that plays programs.
pub fn main(tests: &[(&str, fn())], programs: &[(&str, fn())]) {
    // A shell script that starts these tests in the background makes them ignore SIGINT, and every
    // process that they start inherits that.
    // SAFETY: restores the default action.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    let Ok(program) = std::env::var(PROGRAM) else {
        harness::run(tests);
    };
    executor::init();
    // SAFETY: only sets an alarm.
    unsafe { libc::alarm(7 * LONG.as_secs() as u32) };
    let (_, play) =
        programs.iter().find(|(name, _)| *name == program).expect("there is such a program");
    play();
}

/// A program to be played.
pub struct Play {
    pub command: Command,
    pub tag: String,
}

/// Returns a program of this file, ready to be played.
pub fn play(program: &str) -> Play {
    play_file(&std::env::current_exe().expect("this file"), program)
}

/// Returns a program of another copy of this file.
pub fn play_file(file: &Path, program: &str) -> Play {
    static PLAYS: AtomicU64 = AtomicU64::new(0);
    let number = format!("{}-{}", std::process::id(), PLAYS.fetch_add(1, Ordering::Relaxed));
    let mut command = Command::new(file);
    command.env(PROGRAM, program).env(TAG, &number).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Play { command, tag: format!("{TAG}={number}") }
}

impl Play {
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn argument(self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.env(ARGUMENT, argument)
    }

    /// Plays the program to its end. Asserts that it ends as expected, prints nothing to stderr and
    /// leaves no process behind. Returns its output.
    #[track_caller]
    pub fn play_out_to(self, expected: impl Fn(ExitStatus) -> bool) -> String {
        let _watchdog = watchdog();
        let Play { mut command, tag } = self;
        let Output { status, stdout, stderr } = command.output().expect("it starts");
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(expected(status), "it {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        assert_eq!(stderr, "", "it has nothing to complain of");
        assert_nothing_left(&tag);
        stdout.into_owned()
    }

    /// Like [`play_out_to`](Self::play_out_to), for a program that succeeds.
    #[track_caller]
    pub fn play_out(self) -> String {
        self.play_out_to(|status| status.success())
    }

    /// Starts the program and waits until it has printed its first line.
    #[track_caller]
    pub fn until_it_speaks(mut self) -> (Child, BufReader<ChildStdout>, String) {
        let mut child = self.command.stderr(Stdio::inherit()).spawn().expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it speaks");
        assert_eq!(line, "ready\n");
        (child, stdout, self.tag)
    }
}

/// Asserts that no process with this tag is left. They are promised to end within a second, and a
/// busy machine gets a minute. Without the promise they would never end.
#[track_caller]
pub fn assert_nothing_left(tag: &str) {
    let deadline = Instant::now() + LONG;
    loop {
        let left = tagged(tag);
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            for (pid, _) in &left {
                signal(*pid, Signal::KILL);
            }
            panic!("left behind: {left:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn argument() -> String {
    std::env::var(ARGUMENT).expect("this program needs an argument")
}

pub fn ready() {
    println!("ready");
}

/// All start methods.
pub const METHODS: [StartMethod; 3] =
    [StartMethod::Spawn, StartMethod::ForkServer, StartMethod::Fork];

/// Returns the start method that this program was told to use.
pub fn method() -> StartMethod {
    let name = argument();
    METHODS.into_iter().find(|method| format!("{method:?}") == name).expect("a method")
}

/// Plays a program with each start method. The program has to end by calling [`fine`].
pub fn with_each(program: &str) {
    for method in METHODS {
        assert_eq!(
            play(program).argument(format!("{method:?}")).play_out(),
            "fine\n",
            "{method:?}"
        );
    }
}

/// The last line of a program whose assertions have held.
pub fn fine() {
    println!("fine");
}
