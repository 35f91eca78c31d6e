//! Objects that programs on different machines share: a server with TLS and a key, and a worker
//! that goes on when the server was killed and started again.
//!
//! `cargo run --release --example remote_manager` plays both programs. With the arguments
//! `serve FOLDER ADDRESS` or `work FOLDER ADDRESS` it is one of them. The server makes what is
//! missing in its folder, and the worker needs the files `key` and `fingerprint` of it. The key and
//! the server's private key are secrets: nobody but this user can read them.

use std::{
    env,
    fs::{self, OpenOptions, Permissions},
    io::{BufRead, BufReader, Lines, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use executor::{
    AuthKey,
    manager::{Backoff, Dict, Identity, Manager, ManagerError, Queue, Trust},
    prelude::*,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs in the server, so nothing is lost between reading the count and writing it.
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

/// Writes a file that only this user can read, from its first byte on.
fn write_secret(path: &Path, secret: &[u8]) -> Outcome<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // The mode above is for a new file. One that was there before keeps its own.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file.write_all(secret)?)
}

/// The key that both programs know.
fn key(folder: &Path) -> Outcome<AuthKey> {
    Ok(AuthKey::new(fs::read(folder.join("key"))?))
}

/// Who the server is. It is kept, so that clients recognize the server after a restart.
fn identity(folder: &Path) -> Outcome<Identity> {
    let [certificate, secret] = ["certificate.pem", "private.pem"].map(|name| folder.join(name));
    if !certificate.exists() {
        let identity = Identity::generate()?;
        let (public, private) = identity.to_pem();
        fs::write(folder.join("fingerprint"), identity.fingerprint().to_string())?;
        write_secret(&secret, private.as_bytes())?;
        fs::write(&certificate, public)?;
    }
    Ok(Identity::from_pem(&fs::read(certificate)?, &fs::read(secret)?)?)
}

fn serve(folder: &Path, address: &str) -> Outcome<()> {
    if !folder.join("key").exists() {
        write_secret(&folder.join("key"), AuthKey::random()?.as_bytes())?;
    }
    let manager = Manager::builder().key(key(folder)?).identity(identity(folder)?).start()?;
    let jobs = manager.queue::<String>(None)?;
    ["a rose", "is a rose"].iter().try_for_each(|line| jobs.put(*line))?;
    manager.publish("jobs", &jobs)?;
    manager.publish("counts", &manager.dict::<String, u64>([])?)?;
    println!("{}", manager.listen(&address.parse()?)?);
    manager.wait().map_err(Into::into)
}

/// Counts the words of all jobs, and again when the server has other ones after a restart.
fn work(folder: &Path, address: &str) -> Outcome<()> {
    let fingerprint = fs::read_to_string(folder.join("fingerprint"))?.parse()?;
    let manager = Manager::connector(&address.parse()?, &key(folder)?)
        .trust(Trust::fingerprint(fingerprint))
        .reconnect(Backoff::default())
        .connect()?;
    loop {
        let jobs: Queue<String> = manager.published("jobs")?.ok_or("no jobs")?;
        let counts: Dict<String, u64> = manager.published("counts")?.ok_or("no counts")?;
        while let Some(line) = jobs.try_get()? {
            for word in line.split(' ') {
                counts.update_or_insert(word, one_more::with())?;
            }
        }
        println!("counted {:?}", counts.snapshot()?);
        // There is nothing else to do. The call ends with the server, and the loop begins anew.
        match jobs.get() {
            Err(ManagerError::Gone(_)) => println!("the server is gone"),
            other => return Err(format!("not expected: {other:?}").into()),
        }
    }
}

/// Plays both programs: the server is killed when the worker has counted all words.
fn show() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let start = |role: &str, address: &str| -> Outcome<(Child, Lines<BufReader<ChildStdout>>)> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(role).arg(folder.path()).arg(address).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let says = child.stdout.take().ok_or("it has no output")?;
        Ok((child, BufReader::new(says).lines()))
    };
    let (server, mut says) = start("serve", "127.0.0.1:0")?;
    let address = says.next().ok_or("the server has ended")??;
    let (worker, mut reports) = start("work", &address)?;
    let kill = |mut program: Child| program.kill().and_then(|()| program.wait());
    let mut report = || -> Outcome<()> {
        println!("worker: {}", reports.next().ok_or("the worker has ended")??);
        Ok(())
    };
    report()?;
    kill(server)?;
    report()?;
    // The same identity and address, and other objects, which have the same names.
    let (server, _says) = start("serve", &address)?;
    report()?;
    kill(server)?;
    kill(worker)?;
    Ok(())
}
