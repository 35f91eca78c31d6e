//! Ten processes change a managed dict and a managed list, each while it holds an `RLock`.

use executor::{
    Process, RLock,
    manager::{Dict, List, Manager, ManagerError},
    prelude::*,
};

#[task]
fn change(
    lock: RLock,
    dict: Dict<String, usize>,
    list: List<i32>,
    n: usize,
) -> Result<(), ManagerError> {
    let _guard = lock.acquire().expect("no process died while it held the lock");
    dict.insert(&n.to_string(), &n)?;
    list.set(n, &-99)?;
    Ok(())
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manager = Manager::start()?;
    let lock = RLock::new()?;
    let (dict, list) = (manager.dict([])?, manager.list(0..10)?);
    let children = (0..10)
        .map(|n| Process::new(change::task(lock.clone(), dict.clone(), list.clone(), n)).start());
    for child in children.collect::<Result<Vec<_>, _>>()? {
        child.join()?;
    }
    println!("{:?}", dict.snapshot()?);
    println!("{:?}", list.snapshot()?);
    Ok(())
}
