//! The manager of this library, and its clients: near ones, over shared memory, and far ones, over
//! TCP and TLS.

use std::hint::black_box;

use executor::{
    AuthKey, Barrier, Process,
    manager::{Dict, Identity, Manager, ManagerError, Trust, Value},
    prelude::*,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::measure::{Job, Operation, Peer, Ran, ran};

pub(crate) const NAME: &str = "executor";
pub(crate) const NAME_FAR: &str = "executor, TLS";
/// The key that all clients update.
const COUNT: &str = "x";

pub(crate) struct Executor {
    manager: Manager,
    dict: Dict<String, u64>,
    large: Value<ByteBuf>,
    /// For far clients.
    way: Option<Way>,
}

/// What a far client has to know.
#[derive(Clone, Serialize, Deserialize)]
struct Way {
    address: String,
    key: Vec<u8>,
    fingerprint: String,
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
    calls(&dict, &large, &job, number, &together)
}

/// One client that connects by the address.
#[task]
fn far_client(way: Way, job: Job, number: usize, together: Barrier) -> Result<Ran, ManagerError> {
    let address = way.address.parse().expect("an address");
    let trust = Trust::fingerprint(way.fingerprint.parse().expect("a fingerprint"));
    let manager = Manager::connector(&address, &AuthKey::new(way.key)).trust(trust).connect()?;
    let (dict, large) = manager.published("objects")?.expect("it is published");
    Ok(calls(&dict, &large, &job, number, &together))
}

fn calls(
    dict: &Dict<String, u64>,
    large: &Value<ByteBuf>,
    job: &Job,
    number: usize,
    together: &Barrier,
) -> Ran {
    let key = format!("key {number}");
    let bytes = ByteBuf::from(vec![7; job.bytes]);
    let run = |call: &dyn Fn()| ran(job, 1, together, call);
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
        Self::of(Manager::start().expect("a manager"))
    }

    fn of(manager: Manager) -> Self {
        let keys = (0..8).map(|number| format!("key {number}")).chain([COUNT.to_owned()]);
        let dict = manager.dict(keys.map(|key| (key, 0))).expect("a dict");
        let large = manager.value(ByteBuf::new()).expect("a value");
        Executor { manager, dict, large, way: None }
    }

    /// One whose clients come over TCP and TLS.
    pub(crate) fn start_far() -> Self {
        let (key, identity) = (AuthKey::random(), Identity::generate());
        let (key, identity) = (key.expect("a key"), identity.expect("an identity"));
        let fingerprint = identity.fingerprint().to_string();
        let builder = Manager::builder().key(key.clone()).identity(identity);
        let near = Self::of(builder.start().expect("a manager"));
        let address = near.manager.listen(&"127.0.0.1:0".parse().expect("an address"));
        let address = address.expect("a free port").to_string();
        near.manager
            .publish("objects", &(near.dict.clone(), near.large.clone()))
            .expect("the server runs");
        Executor { way: Some(Way { address, key: key.as_bytes().to_vec(), fingerprint }), ..near }
    }
}

impl Peer for Executor {
    fn name(&self) -> &'static str {
        if self.way.is_some() { NAME_FAR } else { NAME }
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
                let together = together.clone();
                match self.way.clone() {
                    None => {
                        let (dict, large) = (self.dict.clone(), self.large.clone());
                        let task = client::task(dict, large, *job, number, together);
                        Process::new(task).daemon(true).start()
                    }
                    Some(way) => {
                        let task = far_client::task(way, *job, number, together);
                        Process::new(task).daemon(true).start()
                    }
                }
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
