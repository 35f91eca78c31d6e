//! Starts a program that inherits no descriptor except its standard streams.
//!
//! The children of this library must not keep anything that their starter has open. Otherwise, for
//! example, a pipe of the program would never come to its end. Which descriptors a child has
//! inherited is only certain between its `fork` and its `exec`. Afterwards constructors of its
//! libraries and of preloaded tools run, and open files of their own under the same numbers.
//!
//! ```text
//!  glibc 2.34    posix_spawn, which closes all above 2 in the child (`closefrom`)
//!  older         std's `Command`; between fork and exec, the descriptors found before to be
//!                inheritable become close-on-exec
//! ```
//!
//! `Command` alone cannot express this. With a closure for the child it uses `fork`, whose cost
//! grows with this process's memory.

use std::{
    ffi::{CStr, CString, OsStr, OsString, c_char, c_int},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
    ptr,
    sync::OnceLock,
};

use rustix::process::Pid;

use super::{
    process::above_stdio,
    signals::{self, Mask},
    socket::Credentials,
};

/// The error if the user or the group of this process has changed since the child's socket was
/// created. No system call that starts a program returns this number.
const USER_HAS_CHANGED: c_int = libc::EOWNERDEAD;

/// A program to be started, as the leader of its own process group.
#[derive(Debug)]
pub(super) struct Spawn<'a> {
    pub(super) program: &'a Path,
    /// The first argument is the program's own name.
    pub(super) arguments: Vec<OsString>,
    pub(super) directory: Option<&'a Path>,
    /// Variables to set in the environment, or to remove from it.
    pub(super) environment: &'a [(OsString, Option<OsString>)],
    pub(super) stdin: OwnedFd,
    /// `None` means this process's stream.
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    /// The child's mask. `None` means the current mask of this thread.
    pub(super) mask: Option<Mask>,
}

/// Does what is needed once per process and takes a lock of the dynamic loader. It must be called
/// before [`signals::as_one_user`].
pub(super) fn prepare() {
    Extensions::of_this_library();
}

impl Spawn<'_> {
    pub(super) fn spawn(self) -> io::Result<Pid> {
        match Extensions::of_this_library() {
            Some(extensions) => self.by_posix_spawn(extensions),
            None => self.by_fork(),
        }
    }

    fn by_posix_spawn(self, extensions: &Extensions) -> io::Result<Pid> {
        let program = text(self.program.as_os_str())?;
        let arguments =
            self.arguments.iter().map(|argument| text(argument)).collect::<io::Result<Vec<_>>>()?;
        let environment = environment(self.environment)?;
        let directory = self.directory.map(|directory| text(directory.as_os_str())).transpose()?;
        // If the descriptor had the target number already, duplicating it onto itself would leave
        // it close-on-exec.
        let stdin = above_stdio(self.stdin)?;
        let (stdout, stderr) =
            (self.stdout.map(above_stdio).transpose()?, self.stderr.map(above_stdio).transpose()?);

        let mut actions = Actions::new()?;
        actions.duplicate(&stdin, 0)?;
        if let Some(stdout) = &stdout {
            actions.duplicate(stdout, 1)?;
        }
        if let Some(stderr) = &stderr {
            actions.duplicate(stderr, 2)?;
        }
        if let Some(directory) = &directory {
            // SAFETY: the actions are initialised, and the path is a string, which is copied.
            done(unsafe { (extensions.add_chdir)(actions.get(), directory.as_ptr()) })?;
        }
        // SAFETY: the actions are initialised.
        done(unsafe { (extensions.add_closefrom)(actions.get(), 3) })?;
        let mut attributes = Attributes::new(self.mask)?;

        let (arguments, environment) = (pointers(&arguments), pointers(&environment));
        let mut pid = 0;
        // SAFETY: actions and attributes are initialised. The lists end with a null pointer. Their
        // strings live until the call returns, when the child runs the program or has ended.
        done(unsafe {
            libc::posix_spawn(
                &raw mut pid,
                program.as_ptr(),
                actions.get(),
                attributes.get(),
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        })?;
        Pid::from_raw(pid).ok_or_else(|| io::Error::other("a process without a number"))
    }

    fn by_fork(self) -> io::Result<Pid> {
        let maker = Credentials::of_maker(self.stdin.as_fd()).ok();
        let mut command = Command::new(self.program);
        let mut arguments = self.arguments.into_iter();
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments).stdin(Stdio::from(self.stdin)).process_group(0);
        for (key, value) in self.environment {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(directory) = self.directory {
            // As with `posix_spawn`, a program with a relative path is looked up in this directory.
            command.current_dir(directory);
        }
        if let Some(stdout) = self.stdout {
            command.stdout(stdout);
        }
        if let Some(stderr) = self.stderr {
            command.stderr(stderr);
        }
        // Listed before the fork, because the child must not allocate memory.
        let inheritable = inheritable();
        let prepare = move || {
            // The child would not trust its own socket, because another user created it.
            if maker.is_some_and(|maker| maker != Credentials::own()) {
                return Err(io::Error::from_raw_os_error(USER_HAS_CHANGED));
            }
            for number in &inheritable {
                // SAFETY: sets a flag in the child's own table of descriptors. It does nothing if
                // the number is not open.
                unsafe { libc::fcntl(*number, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        };
        // SAFETY: the closure only makes system calls, and reads a vector that was created before
        // the fork.
        unsafe { command.pre_exec(prepare) };
        // A fork may wait for a lock whose holder waits in `setuid` for this thread. So the signal
        // must not be blocked during the fork. Instead, the child checks whether the user has
        // changed.
        let spawned = match self.mask {
            Some(mask) => mask.during(|| command.spawn()),
            None => command.spawn(),
        };
        let child = spawned.map_err(|error| match error.raw_os_error() {
            Some(USER_HAS_CHANGED) => io::Error::new(
                io::ErrorKind::Interrupted,
                "this process has changed its user or group meanwhile, and the child would have been a stranger's",
            ),
            _ => error,
        })?;
        Ok(Pid::from_child(&child))
    }
}

/// Returns the open descriptors that a started program would inherit, without the standard streams.
fn inheritable() -> Vec<RawFd> {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let numbers = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_inheritable = |number: &RawFd| {
        // SAFETY: only reads flags; the number may be anything.
        let flags = unsafe { libc::fcntl(*number, libc::F_GETFD) };
        *number > 2 && flags >= 0 && flags & libc::FD_CLOEXEC == 0
    };
    numbers.filter(is_inheritable).collect()
}

type AddClosefrom = unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, c_int) -> c_int;
type AddChdir = unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, *const c_char) -> c_int;

/// Functions of glibc's `posix_spawn` since 2.34 that POSIX does not have. They are looked up at
/// run time, because a program runs with the library of the machine that it is on.
struct Extensions {
    add_closefrom: AddClosefrom,
    add_chdir: AddChdir,
}

impl Extensions {
    fn of_this_library() -> Option<&'static Extensions> {
        static FOUND: OnceLock<Option<Extensions>> = OnceLock::new();
        FOUND
            .get_or_init(|| {
                // SAFETY: looks up a name.
                let find = |name: &CStr| unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
                let closefrom = find(c"posix_spawn_file_actions_addclosefrom_np");
                let chdir = find(c"posix_spawn_file_actions_addchdir_np");
                if closefrom.is_null() || chdir.is_null() {
                    return None;
                }
                // SAFETY: according to its documentation, the C library's functions have these
                // arguments.
                Some(unsafe {
                    Extensions {
                        add_closefrom: std::mem::transmute::<*mut libc::c_void, AddClosefrom>(
                            closefrom,
                        ),
                        add_chdir: std::mem::transmute::<*mut libc::c_void, AddChdir>(chdir),
                    }
                })
            })
            .as_ref()
    }
}

/// What `posix_spawn` does with the descriptors and the directory of the child.
struct Actions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: initialises the actions. They own their memory and do not point to themselves, so
        // they may be moved.
        done(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Actions(actions))
    }

    fn get(&mut self) -> *mut libc::posix_spawn_file_actions_t {
        self.0.as_mut_ptr()
    }

    fn duplicate(&mut self, descriptor: &OwnedFd, number: RawFd) -> io::Result<()> {
        // SAFETY: initialised by `new`.
        done(unsafe {
            libc::posix_spawn_file_actions_adddup2(self.get(), descriptor.as_raw_fd(), number)
        })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, and no longer used.
        unsafe { libc::posix_spawn_file_actions_destroy(self.get()) };
    }
}

/// The group and the signal settings of the child.
struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

impl Attributes {
    /// The child leads a group. SIGPIPE has its default action, as in programs that std starts. If
    /// `mask` is `None`, the child inherits the mask of this thread.
    fn new(mask: Option<Mask>) -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialises the attributes, which may be moved.
        done(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut attributes = Attributes(attributes);
        let mut default = signals::empty();
        // SAFETY: `attributes` and the set are initialised.
        unsafe {
            libc::sigemptyset(default.as_mut_ptr());
            libc::sigaddset(default.as_mut_ptr(), libc::SIGPIPE);
            done(libc::posix_spawnattr_setsigdefault(attributes.get(), default.as_ptr()))?;
            done(libc::posix_spawnattr_setpgroup(attributes.get(), 0))?;
            let mut flags = libc::POSIX_SPAWN_SETPGROUP | libc::POSIX_SPAWN_SETSIGDEF;
            if let Some(mask) = mask {
                done(libc::posix_spawnattr_setsigmask(attributes.get(), mask.to_set().as_ptr()))?;
                flags |= libc::POSIX_SPAWN_SETSIGMASK;
            }
            done(libc::posix_spawnattr_setflags(attributes.get(), flags as libc::c_short))?;
        }
        Ok(attributes)
    }

    fn get(&mut self) -> *mut libc::posix_spawnattr_t {
        self.0.as_mut_ptr()
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, and no longer used.
        unsafe { libc::posix_spawnattr_destroy(self.get()) };
    }
}

/// Converts a result. These functions return the error and do not set `errno`.
fn done(error: c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

fn text(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// Returns a list of strings in the form that the system takes.
fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

/// Returns this process's environment with these changes. If a name occurs several times, its last
/// change applies.
fn environment(changes: &[(OsString, Option<OsString>)]) -> io::Result<Vec<CString>> {
    let mut variables: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    for (key, value) in changes {
        variables.retain(|(other, _)| other != key);
        variables.extend(value.clone().map(|value| (key.clone(), value)));
    }
    let line = |(key, value): (OsString, OsString)| {
        Ok(CString::new([key.as_bytes(), b"=", value.as_bytes()].concat())?)
    };
    variables.into_iter().map(line).collect()
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{io::Read, path::PathBuf};

    use rustix::{
        io::{FdFlags, fcntl_setfd},
        process::{WaitOptions, waitpid},
    };

    use super::*;
    use crate::os::socket;

    /// Starts a shell in this way, and returns its output.
    fn said(spawn: impl FnOnce(Spawn<'_>) -> io::Result<Pid>, script: &str) -> String {
        let (mut read, write) = io::pipe().unwrap();
        let changes = [
            (OsString::from("EXECUTOR_SPAWN"), Some(OsString::from("first"))),
            (OsString::from("EXECUTOR_SPAWN"), Some(OsString::from("last=one"))),
            (OsString::from("PATH"), None),
        ];
        let pid = spawn(Spawn {
            program: Path::new("/bin/sh"),
            arguments: ["a shell", "-c", script].map(OsString::from).to_vec(),
            directory: Some(Path::new("/")),
            environment: &changes,
            stdin: std::fs::File::open("/dev/null").unwrap().into(),
            stdout: Some(write.into()),
            stderr: None,
            mask: None,
        });
        let pid = pid.unwrap();
        let mut said = String::new();
        read.read_to_string(&mut said).unwrap();
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
        said
    }

    const WAYS: [fn(Spawn<'_>) -> io::Result<Pid>; 2] =
        [|spawn| spawn.spawn(), |spawn| spawn.by_fork()];

    #[test]
    fn a_program_inherits_its_streams_and_nothing_else() {
        let (open, _other) = io::pipe().unwrap();
        fcntl_setfd(&open, FdFlags::empty()).unwrap();
        let number = open.as_raw_fd();
        for spawn in WAYS {
            let script = format!(
                "for n in 0 1 2 {number}; do [ -e /proc/$$/fd/$n ] && echo $n; done; echo $0 $EXECUTOR_SPAWN $PWD"
            );
            assert_eq!(said(spawn, &script), "0\n1\n2\na shell last=one /\n");
        }
        // This process's own descriptor is unchanged.
        assert!(rustix::io::fcntl_getfd(&open).unwrap().is_empty());
    }

    #[test]
    fn a_program_leads_a_group_and_breaks_with_a_pipe() {
        for spawn in WAYS {
            let script = "read -r _ _ _ _ group _ < /proc/$$/stat; [ $group = $$ ] && echo leads; \
                          while read -r name value; do [ $name = SigIgn: ] && echo $value; done < /proc/$$/status";
            let said = said(spawn, script);
            let (first, ignored) = said.trim().split_once('\n').unwrap();
            let ignored = u64::from_str_radix(ignored, 16).unwrap();
            assert_eq!((first, ignored & 1 << (libc::SIGPIPE - 1)), ("leads", 0), "{said}");
        }
    }

    #[test]
    fn a_program_has_the_mask_that_its_starter_has_otherwise() {
        let script = "while read -r name value; do [ $name = SigBlk: ] && echo $value; done < /proc/$$/status";
        for spawn in WAYS {
            let plain = said(spawn, script);
            let as_one_user = |mut program: Spawn<'_>| {
                signals::as_one_user(|mask| {
                    assert!(mask.is_some());
                    program.mask = mask;
                    spawn(program)
                })
            };
            assert_eq!(said(as_one_user, script), plain);
        }
    }

    #[test]
    #[allow(clippy::print_stdout, reason = "a test says that it was skipped")]
    fn no_program_is_forked_that_would_take_its_socket_for_a_strangers() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can become another user");
            return;
        }
        let maker = std::thread::spawn(|| {
            // SAFETY: only changes the user of this thread (the C library would change all
            // threads). The thread ends soon.
            let set = unsafe { libc::syscall(libc::SYS_setresuid, -1_i64, 65_534_i64, -1_i64) };
            assert_eq!(set, 0);
            socket::pair().unwrap()
        });
        let (_ours, theirs) = maker.join().unwrap();
        let error = Spawn {
            program: Path::new("/bin/true"),
            arguments: vec!["x".into()],
            directory: None,
            environment: &[],
            stdin: theirs,
            stdout: None,
            stderr: None,
            mask: None,
        }
        .by_fork()
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}");
        assert!(error.to_string().contains("changed its user"), "{error}");
    }

    #[test]
    fn what_cannot_be_started_is_an_error() {
        for spawn in WAYS {
            let spawn = |program: &str| {
                spawn(Spawn {
                    program: &PathBuf::from(program),
                    arguments: vec!["x".into()],
                    directory: None,
                    environment: &[],
                    stdin: std::fs::File::open("/dev/null").unwrap().into(),
                    stdout: None,
                    stderr: None,
                    mask: None,
                })
            };
            assert_eq!(spawn("/no/such/program").unwrap_err().kind(), io::ErrorKind::NotFound);
            assert_eq!(spawn("/dev/null").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(spawn("a\0b").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
