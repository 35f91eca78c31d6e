//! Processes of their own: `behaviours` of section 9.

mod support;

use std::time::Duration;

use executor::{ExitStatus, Process, Run, StartMethod, prelude::*};
use serde::{Deserialize, Serialize};

executor::test_support!();

#[task]
fn answer(x: u64) -> u64 {
    x * 2
}

#[derive(Serialize, Deserialize)]
struct Doubler {
    x: u64,
}

#[task]
impl Run for Doubler {
    fn run(self) -> u64 {
        self.x * 2
    }
}

#[test]
fn pr03_first() {
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let child = Process::new(answer::task(21)).start_method(method).start().unwrap();
        assert_eq!(child.join_timeout(Duration::from_secs(20)).unwrap().unwrap(), 42);
        assert_eq!(child.exit_code(), Some(ExitStatus::Exited(0)));
        let child = Process::new(Doubler { x: 4 }).start_method(method).start().unwrap();
        assert_eq!(child.join().unwrap(), 8);
    }
}
