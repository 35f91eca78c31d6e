//! Twenty buyers, fifty tickets, their number in a file, a lock around look, think and write. One buyer is killed in the
//! middle of it: the next one is told, and the number in the end is right.

use std::{fs, path::PathBuf, thread::sleep, time::Duration};

use executor::{Child, Lock, Process, prelude::*};

#[task]
fn buy(file: PathBuf, lock: Lock, dies: bool) -> Result<bool, String> {
    let text = |error: std::io::Error| error.to_string();
    // Whoever held it and died may have left half a change behind. Here the file is written at once, so it has not.
    let guard = lock.acquire().unwrap_or_else(|died| died.into_guard());
    let left: u32 = fs::read_to_string(&file).map_err(text)?.trim().parse().map_err(|_| "no number")?;
    sleep(Duration::from_millis(2));
    if dies {
        std::process::abort();
    }
    let sold = left > 0;
    if sold {
        fs::write(&file, (left - 1).to_string()).map_err(text)?;
    }
    drop(guard);
    Ok(sold)
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::temp_dir().join(format!("tickets-{}", std::process::id()));
    let lock = Lock::new()?;
    for tickets in [50, 5] {
        fs::write(&file, tickets.to_string())?;
        let mut buyers: Vec<Child<bool>> = Vec::new();
        for number in 0..21 {
            // One more than twenty, for the one that dies.
            buyers.push(Process::new(buy::task(file.clone(), lock.clone(), number == 7)).start()?);
        }
        let sold = buyers.iter().filter(|buyer| matches!(buyer.join(), Ok(true))).count();
        println!("{tickets} tickets, 20 buyers: {sold} sold, {} left", fs::read_to_string(&file)?);
    }
    fs::remove_file(file)?;
    Ok(())
}
