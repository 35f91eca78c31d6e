//! How much memory of the server an object takes, beside its contents.
//!
//! For each kind there is a new server. It gets many objects that are empty, or have one or two
//! small numbers. The growth of its resident memory is divided by their number.

use std::{any::Any, time::Instant};

use comfy_table::Table;
use executor::manager::{Manager, ManagerError};

use crate::table::{number, table};

const OBJECTS: usize = 100_000;

type Make = fn(&Manager) -> Result<Box<dyn Any>, ManagerError>;

const KINDS: [(&str, Make); 15] = [
    ("value, a number", |manager| Ok(Box::new(manager.value(7_u64)?))),
    ("array, two numbers", |manager| Ok(Box::new(manager.array([7_u64, 8])?))),
    ("list, empty", |manager| Ok(Box::new(manager.list::<u64>([])?))),
    ("dict, empty", |manager| Ok(Box::new(manager.dict::<u64, u64>([])?))),
    ("set, empty", |manager| Ok(Box::new(manager.set::<u64>([])?))),
    ("namespace, empty", |manager| Ok(Box::new(manager.namespace()?))),
    ("queue, empty", |manager| Ok(Box::new(manager.queue::<u64>(None)?))),
    ("joinable queue, empty", |manager| Ok(Box::new(manager.joinable_queue::<u64>(None)?))),
    ("lock", |manager| Ok(Box::new(manager.lock()?))),
    ("rlock", |manager| Ok(Box::new(manager.rlock()?))),
    ("semaphore", |manager| Ok(Box::new(manager.semaphore(1)?))),
    ("bounded semaphore", |manager| Ok(Box::new(manager.bounded_semaphore(1)?))),
    // Two objects: it has a lock.
    ("condition, with its lock", |manager| Ok(Box::new(manager.condition()?))),
    ("event", |manager| Ok(Box::new(manager.event()?))),
    ("barrier", |manager| Ok(Box::new(manager.barrier(2)?))),
];

/// The kind of object that takes most.
pub(crate) struct Most {
    pub(crate) kind: &'static str,
    pub(crate) bytes: f64,
}

/// Measures all kinds and prints a table.
pub(crate) fn run(short: bool) -> Most {
    let count = if short { 100 } else { OBJECTS };
    println!("\nMemory of the server, {count} objects of each kind");
    let mut rows: Table =
        table(&["kind", "bytes an object", "objects", "µs to create", "bytes left after the end"]);
    let mut most = Most { kind: "none", bytes: 0.0 };
    for (kind, make) in KINDS {
        let manager = Manager::start().expect("a manager");
        let first = make(&manager).expect("an object");
        let before = resident(manager.pid());
        let began = Instant::now();
        let handles: Vec<_> = (0..count).map(|_| make(&manager).expect("an object")).collect();
        let time = began.elapsed().as_secs_f64() * 1e6 / count as f64;
        let growth = resident(manager.pid()) - before;
        let objects = manager.objects().expect("the server runs");
        drop((first, handles));
        assert_eq!(manager.objects().expect("the server runs"), 0, "no handle is left of a {kind}");
        let left = resident(manager.pid()) - before;
        // Per object of the server: a handle may stand for two.
        let bytes = growth / (objects as f64 * count as f64 / (count + 1) as f64);
        if bytes > most.bytes {
            most = Most { kind, bytes };
        }
        let cells = [number(bytes), objects.to_string(), number(time), number(left / count as f64)];
        rows.add_row(std::iter::once(kind.to_owned()).chain(cells));
    }
    println!("{rows}");
    most
}

/// The resident memory of a process in bytes.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok());
    kibibytes.expect("Linux says how much memory a process has") * 1024.0
}
