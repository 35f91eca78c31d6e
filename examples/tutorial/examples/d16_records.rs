//! One process inserts a record into a managed list. Another one prints all records.

use executor::{
    Process,
    manager::{List, Manager, ManagerError},
    prelude::*,
};

type Record = (String, u32);

#[task]
fn insert(record: Record, records: List<Record>) -> Result<(), ManagerError> {
    records.push(&record)?;
    println!("New record added!");
    Ok(())
}

#[task]
fn print(records: List<Record>) -> Result<(), ManagerError> {
    for record in &records {
        let (name, score) = record?;
        println!("Name: {name}, Score: {score}");
    }
    Ok(())
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manager = Manager::start()?;
    let records = manager.list([("Sam", 10), ("Adam", 9), ("Kevin", 9)].map(owned))?;
    Process::new(insert::task(owned(("Jeff", 8)), records.clone())).start()?.join()?;
    Process::new(print::task(records.clone())).start()?.join()?;
    Ok(())
}

fn owned((name, score): (&str, u32)) -> Record {
    (name.to_owned(), score)
}
