//! Programs of users, built the way users build them: dev, thin LTO with `panic = "abort"` and
//! stripped, fat LTO.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::{Mutex, PoisonError},
};

#[path = "programs/builder.rs"]
mod programs;

use programs::build;

fn run(program: &Path) -> Output {
    Command::new(program).output().unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

fn check(profile: &str) {
    let directory = build(profile, &[]);
    for (program, says) in [("faults", "all faults came home\n"), ("takeover", "taken over\n")] {
        let output = run(&directory.join(program));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} built as {profile}: {stderr}");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            says,
            "{program} built as {profile}: {stderr}"
        );
    }
}

#[test]
fn dev_build_runs_tasks_and_reports_faults() {
    check("dev");
}

#[test]
fn thin_lto_panic_abort_stripped_build_runs_tasks_and_reports_faults() {
    check("thin-abort");
}

#[test]
fn fat_lto_build_runs_tasks_and_reports_faults() {
    check("fat");
}

/// However the program uses the library, the error that `main` returns names the line to add, in
/// the parent and in the child.
#[test]
fn every_use_without_the_entry_point_fails_with_the_line_to_add() {
    let directory = build("dev", &[]);
    for by in ["executor", "map", "pool", "process", "spawn", "forkserver"] {
        let log = std::env::temp_dir().join(format!("executor-forgot-{}-{by}", std::process::id()));
        let mut forgot = Command::new(directory.join("forgot"));
        let output = forgot.env("FORGOT_LOG", &log).env("FORGOT_BY", by).output().expect("starts");
        let starts = std::fs::read_to_string(&log).expect("the program wrote it");
        std::fs::remove_file(&log).expect("just read");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{by}: {stderr}");
        assert_eq!(starts.lines().count(), 2, "{by}: {stderr}");
        let told: Vec<_> = stderr.lines().filter(|line| line.starts_with("Error: ")).collect();
        assert_eq!(told.len(), 2, "{by}: {stderr}");
        for line in told {
            assert!(
                line.contains("#[executor::main]") && line.contains("executor::init()"),
                "{by}: {stderr}"
            );
        }
    }
}

/// The child of a program that forgot the entry point reaches `main` and makes a pool of its own.
/// There it gets an error and starts nothing. So there are two starts, whatever the parent submits.
#[test]
fn a_forgotten_entry_point_is_an_error_and_no_fork_bomb() {
    let directory = build("dev", &[]);
    let log = std::env::temp_dir().join(format!("executor-forgot-{}", std::process::id()));
    let output =
        Command::new(directory.join("forgot")).env("FORGOT_LOG", &log).output().expect("starts");
    let starts = std::fs::read_to_string(&log).expect("the program wrote it");
    std::fs::remove_file(&log).expect("just read");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(starts.lines().count(), 2, "{stdout}");
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort();
    let [child, parent] = lines[..] else { panic!("{stdout}") };
    for text in [child, parent] {
        assert!(text.contains("#[executor::main]") && text.contains("executor::init()"), "{text}");
    }
    assert!(child.starts_with("in the child: "), "{child}");
    assert!(parent.contains("exited with code 0"), "{parent}");
}

/// Writes a file of a generated package. An unchanged file is not touched, so that it need not be
/// compiled again.
fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().expect("in a folder")).expect("made");
    if fs::read_to_string(file).is_ok_and(|old| old == text) {
        return;
    }
    fs::write(file, text).expect("written");
}

/// Builds and runs a workspace with three packages: a program, `app`; a library that is linked to
/// it at run time, `plug`, which contains `executor`; and another library, `late`, which the
/// program opens while it runs. Cargo runs the program, because it tells the loader where the
/// libraries are.
fn run_with_dylib(opened_later: bool) -> Output {
    // Two tests share the workspace. Its files must not be written while the other test's cargo
    // reads them.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linked-dylib");
    let library = env!("CARGO_MANIFEST_DIR");
    let package = |name: &str, more: &str| {
        format!(
            "[package]\nname = \"linked-dylib-{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n{more}"
        )
    };
    let executor = format!("executor = {{ path = {library:?} }}\n");
    write(
        &root.join("Cargo.toml"),
        "[workspace]\nmembers = [\"plug\", \"late\", \"app\"]\nresolver = \"3\"\n\n[profile.dev]\ndebug = \"line-tables-only\"\n",
    );
    let dylib = |name| {
        format!("[lib]\nname = \"{name}\"\ncrate-type = [\"dylib\"]\n\n[dependencies]\n{executor}")
    };
    write(&root.join("plug/Cargo.toml"), &package("plug", &dylib("plug")));
    write(
        &root.join("plug/src/lib.rs"),
        "pub use executor;\n\n#[executor::task]\npub fn in_dylib(x: u64) -> u64 { x + 1 }\n",
    );
    let plug = "plug = { package = \"linked-dylib-plug\", path = \"../plug\" }\n";
    write(&root.join("late/Cargo.toml"), &package("late", &format!("{}{plug}", dylib("late"))));
    write(
        &root.join("late/src/lib.rs"),
        r#"use plug::executor::{Process, ProcessPoolExecutor};

#[executor::task]
pub fn in_late(x: u64) -> u64 { x + 1 }

/// Called by the program, by its name.
#[unsafe(no_mangle)]
pub fn late(pool: &ProcessPoolExecutor) -> [String; 4] {
    let submitted = pool.submit(in_late::task(1)).result().unwrap_err();
    let mapped = pool.map(in_late::task, [1, 2]).next().unwrap().unwrap_err();
    let process = Process::new(in_late::task(1)).start().unwrap_err();
    [in_late(1).to_string(), submitted.to_string(), mapped.to_string(), process.to_string()]
}
"#,
    );
    write(
        &root.join("app/Cargo.toml"),
        &package("app", &format!("[dependencies]\n{executor}{plug}")),
    );
    write(
        &root.join("app/src/main.rs"),
        r#"use executor::{Context, Process, StartMethod, prelude::*};

#[task]
fn in_app(x: u64) -> u64 { x + 1 }

#[executor::main]
fn main() {
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    println!("{} {}", pool.submit(in_app::task(1)).result().unwrap(), pool.submit(plug::in_dylib::task(3)).result().unwrap());
    let (app, dylib) = (Process::new(in_app::task(5)), Process::new(plug::in_dylib::task(7)));
    println!("{} {}", app.start().unwrap().join().unwrap(), dylib.start().unwrap().join().unwrap());
    let context = Context::new(StartMethod::ForkServer);
    println!("{}", context.process(in_app::task(9)).start().unwrap().join().unwrap());
    if let Some(late) = std::env::args().nth(1) {
        for line in open(&late)(&pool) {
            println!("{line}");
        }
        println!("{}", pool.submit(in_app::task(11)).result().unwrap());
    }
}

type Late = fn(&ProcessPoolExecutor) -> [String; 4];

fn open(library: &str) -> Late {
    unsafe extern "C" {
        fn dlopen(file: *const std::ffi::c_char, flags: i32) -> *mut std::ffi::c_void;
        fn dlsym(library: *mut std::ffi::c_void, name: *const std::ffi::c_char) -> *mut std::ffi::c_void;
    }
    let file = std::ffi::CString::new(library).unwrap();
    unsafe {
        // RTLD_NOW
        let library = dlopen(file.as_ptr(), 2);
        assert!(!library.is_null(), "it is opened");
        let found = dlsym(library, c"late".as_ptr());
        assert!(!found.is_null(), "it has the function");
        std::mem::transmute::<*mut std::ffi::c_void, Late>(found)
    }
}
"#,
    );
    // Use the versions that the outer cargo has downloaded.
    if !root.join("Cargo.lock").exists() {
        fs::copy(Path::new(library).join("Cargo.lock"), root.join("Cargo.lock")).expect("copied");
    }
    let own = std::env::current_exe().expect("a path");
    let target = own.ancestors().nth(3).expect("three levels up");
    let cargo = |act: &str, package: &str| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(&root)
            .args([act, "--offline", "--quiet", "-p", package, "--target-dir"])
            .arg(target);
        cargo.env_remove("CARGO_MANIFEST_DIR").env_remove("RUSTC_WORKSPACE_WRAPPER");
        cargo
    };
    let mut run = cargo("run", "linked-dylib-app");
    if opened_later {
        let built = cargo("build", "linked-dylib-late").output().expect("cargo starts");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        run.arg("--").arg(target.join("debug/liblate.so"));
    }
    run.output().expect("cargo starts")
}

/// The program's task functions are in another image than the library's own list of task functions.
#[test]
fn a_program_linked_to_the_library_through_a_dylib_runs_the_tasks_of_both() {
    let output = run_with_dylib(false);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2 4\n6 8\n10\n", "{stderr}");
    assert!(output.status.success(), "{stderr}");
}

/// A worker loads only what the program loads at its start. A function of a library opened later
/// runs only in the process that opened it. Other functions are unaffected.
#[test]
fn a_task_function_of_a_library_opened_later_is_rejected_at_submit_by_name() {
    let output = run_with_dylib(true);
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let lines: Vec<&str> = stdout.lines().skip(3).collect();
    let [here, refused @ .., after] = &lines[..] else { panic!("{stdout}\n{stderr}") };
    assert_eq!((*here, *after, refused.len()), ("2", "12", 3), "{stdout}");
    for text in refused {
        assert!(text.contains("in_late") && text.contains("dlopen"), "{text}");
    }
}
