//! Log levels and messages of a process and its descendants, and the authentication key that they
//! share.

use std::{fs::File, io::Read};

use executor::{Process, Stdio, current_process, log_level, log_to_stderr, prelude::*};
use tracing::{Level, level_filters::LevelFilter};

executor::test_support!();

#[task]
fn level() -> String {
    log_level().to_string()
}

#[task]
fn speak(word: &str) {
    tracing::info!(word, "said");
    tracing::debug!("not said");
}

#[task]
fn level_of_grandchild() -> Result<String, String> {
    let child = Process::new(level::task()).start().map_err(|error| error.to_string())?;
    child.join().map_err(|error| error.to_string())
}

#[task]
fn key() -> Vec<u8> {
    current_process().authkey().as_bytes().to_vec()
}

/// A single test, because the level belongs to the whole process.
#[test]
fn mx03_mx04_children_log_at_their_parents_level_with_name_and_file() {
    let of_child = || Process::new(level::task()).start().unwrap().join().unwrap();
    // Nobody has set a level yet, so the root's level applies.
    assert_eq!(log_level(), LevelFilter::current());
    assert_eq!(of_child(), LevelFilter::current().to_string());
    log_to_stderr(Level::INFO).unwrap();
    assert!(log_to_stderr(Level::ERROR).is_err(), "it is set once");
    assert_eq!(log_level(), LevelFilter::INFO);
    assert_eq!(of_child(), "info");
    let grandchild = Process::new(level_of_grandchild::task()).start().unwrap();
    assert_eq!(grandchild.join().unwrap(), "info");
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    assert_eq!(pool.submit(level::task()).result().unwrap(), "info", "workers as well");

    let child =
        Process::new(speak::task("hello")).name("speaker").stderr(Stdio::piped()).start().unwrap();
    let mut said = String::new();
    File::from(child.take_stderr().unwrap()).read_to_string(&mut said).unwrap();
    child.join().unwrap();
    let line =
        said.strip_prefix("[INFO/speaker] tests/logging.rs:").unwrap_or_else(|| panic!("{said}"));
    assert!(line.ends_with(": said word=\"hello\"\n") && line.lines().count() == 1, "{said}");
}

#[test]
fn pr01_the_main_process_knows_itself_and_shares_its_authkey() {
    let own = current_process();
    assert!(own.is_alive() && !own.daemon() && own.exit_code().is_none());
    assert_eq!((own.name(), own.pid()), ("MainProcess", std::process::id()));
    assert!(!own.authkey().as_bytes().is_empty());
    let of_child = Process::new(key::task()).start().unwrap().join().unwrap();
    assert_eq!(of_child, own.authkey().as_bytes(), "a family has one secret");
    let pool = ProcessPoolExecutor::builder().max_workers(1).build().unwrap();
    assert_eq!(pool.submit(key::task()).result().unwrap(), own.authkey().as_bytes());
}
