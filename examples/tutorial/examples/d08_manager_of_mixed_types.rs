//! A child changes a managed dict with keys of several types, and a managed list. The parent prints
//! both.

use executor::{
    Process,
    manager::{Any, Dict, List, Manager, ManagerError},
    prelude::*,
};

#[task]
fn change(dict: Dict<Any, Any>, list: List<i32>) -> Result<(), ManagerError> {
    dict.insert(&1.into(), &"1".into())?;
    dict.insert(&"2".into(), &2.into())?;
    dict.insert(&0.25.into(), &Any::None)?;
    list.push(&666)
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manager = Manager::start()?;
    let (dict, list) = (manager.dict([])?, manager.list([])?);
    Process::new(change::task(dict.clone(), list.clone())).start()?.join()?;
    println!("{:?}", dict.snapshot()?);
    println!("{:?}", list.snapshot()?);
    Ok(())
}
