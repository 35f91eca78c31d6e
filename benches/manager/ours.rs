//! The manager of this library, and its clients.

use std::hint::black_box;

use executor::{
    Barrier, Process,
    manager::{Dict, Manager, Value},
    prelude::*,
};
use serde_bytes::ByteBuf;

use crate::measure::{Job, Operation, Peer, Ran, ran};

pub(crate) const NAME: &str = "executor";
/// The key that all clients update.
const COUNT: &str = "x";

pub(crate) struct Executor {
    manager: Manager,
    dict: Dict<String, u64>,
    large: Value<ByteBuf>,
}

#[task]
fn add(value: u64, n: u64) -> u64 {
    value + n
}

/// One client. It gets and sets a key of its own.
#[task]
fn client(
    dict: Dict<String, u64>,
    large: Value<ByteBuf>,
    job: Job,
    number: usize,
    together: Barrier,
) -> Ran {
    let key = format!("key {number}");
    let bytes = ByteBuf::from(vec![7; job.bytes]);
    let run = |call: &dyn Fn()| ran(&job, 1, &together, call);
    match (job.operation, job.bytes) {
        (Operation::Get, 0) => {
            run(&|| assert!(black_box(dict.get(&key)).expect("the server runs").is_some()))
        }
        (Operation::Set, 0) => run(&|| _ = dict.insert(&key, &7).expect("the server runs")),
        (Operation::Update, _) => run(&|| {
            let new = dict.update(COUNT, add::with(1)).expect("the server runs");
            assert!(black_box(new).is_some());
        }),
        (Operation::Get, size) => {
            run(&|| assert_eq!(black_box(large.get()).expect("the server runs").len(), size))
        }
        (Operation::Set, _) => run(&|| large.set(&bytes).expect("the server runs")),
    }
}

impl Executor {
    pub(crate) fn start() -> Self {
        let manager = Manager::start().expect("a manager");
        let keys = (0..8).map(|number| format!("key {number}")).chain([COUNT.to_owned()]);
        let dict = manager.dict(keys.map(|key| (key, 0))).expect("a dict");
        let large = manager.value(ByteBuf::new()).expect("a value");
        Executor { manager, dict, large }
    }
}

impl Peer for Executor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> Option<String> {
        None
    }

    fn server(&self) -> u32 {
        self.manager.pid()
    }

    fn run(&mut self, job: &Job) -> Result<Vec<Ran>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        if job.bytes > 0 {
            self.large.set(&ByteBuf::from(vec![7; job.bytes])).map_err(|error| text(&error))?;
        }
        let before = self.dict.get(COUNT).map_err(|error| text(&error))?.unwrap_or(0);
        let together = Barrier::new(job.clients).map_err(|error| text(&error))?;
        let clients: Vec<_> = (0..job.clients)
            .map(|number| {
                let (dict, large) = (self.dict.clone(), self.large.clone());
                Process::new(client::task(dict, large, *job, number, together.clone()))
                    .daemon(true)
                    .start()
            })
            .collect::<Result<_, _>>()
            .map_err(|error| text(&error))?;
        let runs = clients
            .iter()
            .map(|client| client.join())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| text(&error))?;
        if job.operation == Operation::Update {
            let after = self.dict.get(COUNT).map_err(|error| text(&error))?;
            let made = job.clients as u64 * (job.count + job.warm_up);
            assert_eq!(after, Some(before + made), "no update is lost");
        }
        Ok(runs)
    }
}
