//! Objects that programs on different machines share: a server, found by its address, with TLS and
//! a key, and a worker that goes on when the server was killed and started again.
//!
//! ```text
//! cargo run --release --example remote_manager --features tls                  shows all of it
//! cargo run … -- serve FOLDER ADDRESS                          one program, on one machine
//! cargo run … -- work FOLDER ADDRESS                           another one, on another machine
//! ```
//!
//! The folder of the server has its certificate, its private key and the key that all share. The
//! worker needs the shared key and the fingerprint of the certificate.

use std::{
    env, fs,
    io::{BufRead, BufReader, ErrorKind},
    path::Path,
    process::{Child, Command, Stdio},
};

use executor::{
    AuthKey,
    manager::{Backoff, Dict, Fingerprint, Identity, Manager, ManagerError, Queue, Trust},
    prelude::*,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs in the server.
#[task]
fn one_more(count: Option<u64>) -> u64 {
    count.unwrap_or(0) + 1
}

#[executor::main]
fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(),
        ["serve", folder, address] => serve(Path::new(folder), address),
        ["work", folder, address] => work(Path::new(folder), address),
        _ => Err("usage: remote_manager [serve|work FOLDER ADDRESS]".into()),
    }
}

/// The key that both programs know: of the environment, or of a file.
fn key(folder: &Path) -> Outcome<AuthKey> {
    Ok(match env::var("MANAGER_KEY") {
        Ok(key) => AuthKey::new(key),
        Err(_) => AuthKey::new(fs::read(folder.join("key"))?),
    })
}

/// The server. It is the same one after a restart, as its identity is kept.
fn serve(folder: &Path, address: &str) -> Outcome<()> {
    let [certificate, secret] = ["certificate.pem", "private.pem"].map(|name| folder.join(name));
    let identity = match fs::read(&certificate) {
        Ok(pem) => Identity::from_pem(&pem, &fs::read(&secret)?)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let identity = Identity::generate()?;
            let (public, private) = identity.to_pem();
            fs::write(&secret, private)?;
            fs::write(folder.join("fingerprint"), identity.fingerprint().to_string())?;
            fs::write(&certificate, public)?;
            identity
        }
        Err(error) => return Err(error.into()),
    };
    let manager = Manager::builder().key(key(folder)?).identity(identity).start()?;
    let jobs = manager.queue::<String>(None)?;
    ["a rose", "is a rose"].iter().try_for_each(|line| jobs.put(*line))?;
    manager.publish("jobs", &jobs)?;
    manager.publish("counts", &manager.dict::<String, u64>([])?)?;
    println!("{}", manager.listen(&address.parse()?)?);
    // It serves until this program is killed.
    loop {
        std::thread::park();
    }
}

/// Counts the words of all jobs. The server may be restarted meanwhile, and then has new ones.
fn work(folder: &Path, address: &str) -> Outcome<()> {
    let fingerprint: Fingerprint = fs::read_to_string(folder.join("fingerprint"))?.parse()?;
    let manager = Manager::connector(&address.parse()?, &key(folder)?)
        .trust(Trust::fingerprint(fingerprint))
        .reconnect(Backoff::default())
        .connect()?;
    for _ in 0..2 {
        let jobs: Queue<String> = manager.published("jobs")?.ok_or("no jobs")?;
        let counts: Dict<String, u64> = manager.published("counts")?.ok_or("no counts")?;
        while let Some(line) = jobs.try_get()? {
            for word in line.split(' ') {
                counts.update_or_insert(word, one_more::with())?;
            }
        }
        println!("counted: {:?}", counts.snapshot()?);
        // There is no more work. This call waits until the server is killed.
        match jobs.get() {
            Err(ManagerError::Gone(_)) => println!("the server is gone"),
            other => return Err(format!("not expected: {other:?}").into()),
        }
        let old = counts.len().expect_err("it was an object of the server that is gone");
        println!("its objects as well: {old}");
    }
    Ok(())
}

/// Plays both programs: the server is killed when the worker has counted all words.
fn show() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("key"), AuthKey::random()?.as_bytes())?;
    let start = |role: &str, address: &str| -> Outcome<(Child, BufReader<_>)> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(role).arg(folder.path()).arg(address).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("it has an output")?);
        Ok((child, lines))
    };
    let line = |lines: &mut BufReader<_>| -> Outcome<String> {
        let mut line = String::new();
        BufRead::read_line(lines, &mut line)?;
        Ok(line.trim().to_owned())
    };
    let (mut server, mut says) = start("serve", "127.0.0.1:0")?;
    let address = line(&mut says)?;
    let (mut worker, mut reports) = start("work", &address)?;
    println!("worker: {}", line(&mut reports)?);
    server.kill()?;
    server.wait()?;
    println!("worker: {}", line(&mut reports)?);
    // The same identity, the same address, and new objects.
    let (mut server, mut says) = start("serve", &address)?;
    line(&mut says)?;
    println!("worker: {}", line(&mut reports)?);
    println!("worker: {}", line(&mut reports)?);
    server.kill()?;
    server.wait()?;
    println!("worker: {}", line(&mut reports)?);
    worker.kill()?;
    worker.wait()?;
    Ok(())
}
