//! Twenty buyers share fifty tickets. The number of tickets is in a file, and a lock is held while
//! a buyer reads, thinks and writes. One buyer is killed while it holds the lock. The next owner is
//! told about this, and the final number is correct.

use std::{fs, path::PathBuf, thread::sleep, time::Duration};

use executor::{Child, Lock, Process, prelude::*};

#[task]
fn buy(file: PathBuf, lock: Lock, dies: bool) -> Result<bool, String> {
    let text = |error: std::io::Error| error.to_string();
    // An owner that died may have left a change half done. Here the buyer dies before it writes, so
    // the file is intact.
    let guard = lock.acquire().unwrap_or_else(|died| died.into_guard());
    let left: u32 =
        fs::read_to_string(&file).map_err(text)?.trim().parse().map_err(|_| "no number")?;
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
            // Start 21 processes, because one of them dies.
            buyers.push(Process::new(buy::task(file.clone(), lock.clone(), number == 7)).start()?);
        }
        let sold = buyers.iter().filter(|buyer| matches!(buyer.join(), Ok(true))).count();
        println!("{tickets} tickets, 20 buyers: {sold} sold, {} left", fs::read_to_string(&file)?);
    }
    fs::remove_file(file)?;
    Ok(())
}
