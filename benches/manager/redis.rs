//! Redis, with a server of its own, over loopback TCP.
//!
//! ```text
//!  Redis::run ── starts client processes: command, reply, command, reply
//!                                     or: 100 commands, 100 replies (pipelined)
//! ```
//!
//! The client is written here, because the crate `redis` brings about thirty other crates. It makes
//! one `write` and usually one `read` for a call or a batch, which is the least that a client can
//! do.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    process::{Child, ChildStdout, Command, Stdio},
    rc::Rc,
    time::Duration,
};

use executor::{Barrier, Process, prelude::*};

use crate::measure::{Job, Operation, Peer, Ran, Work, ran};

pub(crate) const NAME: &str = "Redis";
pub(crate) const NAME_PIPELINED: &str = "Redis, pipelined";
/// Number of commands in one batch.
pub(crate) const PIPELINE: u64 = 100;
/// How long a reply may take.
const REPLY_MAX: Duration = Duration::from_secs(30);

/// A server without files. It is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    log: BufReader<ChildStdout>,
    port: u16,
    version: String,
}

impl Server {
    pub(crate) fn start() -> Result<Rc<Self>, String> {
        let text = |error: io::Error| format!("redis-server: {error}");
        let version = Command::new("redis-server").arg("--version").output().map_err(text)?;
        let version = String::from_utf8_lossy(&version.stdout);
        let version = version.split("v=").nth(1).and_then(|rest| rest.split(' ').next());
        // The system names a free port. Another process may take it before Redis does.
        let mut why = String::new();
        for _ in 0..5 {
            let port = free_port().map_err(text)?;
            let (child, log) = launch(port).map_err(text)?;
            let version = version.unwrap_or("of an unknown version").to_owned();
            let mut server = Server { child, log, port, version };
            match server.wait_until_ready() {
                Ok(()) => return Ok(Rc::new(server)),
                Err(error) => why = text(error),
            }
        }
        Err(why)
    }

    /// Reads the log until Redis says that it is ready. Trying to connect until it works would not
    /// tell whether it is Redis that listens at the port.
    fn wait_until_ready(&mut self) -> io::Result<()> {
        let mut log = String::new();
        while !log.contains("Ready to accept connections") {
            if self.log.read_line(&mut log)? == 0 {
                let last = log.lines().last().unwrap_or("nothing");
                return Err(io::Error::other(format!("it has ended, its log says: {last}")));
            }
        }
        Client::connect(self.port)?.call(&[&["PING"]])
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn launch(port: u16) -> io::Result<(Child, BufReader<ChildStdout>)> {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        // It never writes a file, as nothing is saved.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // SAFETY: the closure makes one system call, and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            let kill = rustix::process::Signal::KILL;
            Ok(rustix::process::set_parent_process_death_signal(Some(kill))?)
        });
    }
    let mut child = command.spawn()?;
    let log = BufReader::new(child.stdout.take().expect("piped"));
    Ok((child, log))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection.
struct Client {
    stream: BufReader<TcpStream>,
    out: Vec<u8>,
    line: Vec<u8>,
    /// The last reply that is a text.
    reply: Vec<u8>,
}

impl Client {
    fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_MAX))?;
        let stream = BufReader::with_capacity(64 << 10, stream);
        Ok(Client { stream, out: Vec::new(), line: Vec::new(), reply: Vec::new() })
    }

    /// Sends commands, then reads the reply of each.
    fn call<T: AsRef<[u8]>>(&mut self, commands: &[&[T]]) -> io::Result<()> {
        self.out.clear();
        for command in commands {
            write!(self.out, "*{}\r\n", command.len())?;
            for word in *command {
                let word = word.as_ref();
                write!(self.out, "${}\r\n", word.len())?;
                self.out.extend_from_slice(word);
                self.out.extend_from_slice(b"\r\n");
            }
        }
        self.stream.get_mut().write_all(&self.out)?;
        commands.iter().try_for_each(|_| self.read_reply())
    }

    fn read_reply(&mut self) -> io::Result<()> {
        self.line.clear();
        self.stream.read_until(b'\n', &mut self.line)?;
        let line = str::from_utf8(&self.line).unwrap_or_default().trim_end();
        match line.split_at_checked(1) {
            Some(("+" | ":", _)) => Ok(()),
            Some(("$", size)) if size != "-1" => {
                let size: usize = size.parse().map_err(io::Error::other)?;
                self.reply.resize(size + 2, 0);
                self.stream.read_exact(&mut self.reply)
            }
            _ => Err(io::Error::other(format!("Redis replies {line:?}"))),
        }
    }
}

/// One client. It gets and sets a key of its own.
#[task]
fn client(port: u16, job: Job, at_once: u64, number: usize, together: Barrier) -> Ran {
    let key = if job.bytes > 0 { "large".to_owned() } else { format!("key {number}") };
    let value = if job.bytes > 0 { vec![7; job.bytes] } else { b"7".to_vec() };
    let command: &[&[u8]] = match job.operation {
        Operation::Get => &[b"GET", key.as_bytes()],
        Operation::Set => &[b"SET", key.as_bytes(), &value],
        Operation::Update => &[b"INCR", b"x"],
    };
    let commands = vec![command; at_once as usize];
    let mut client = Client::connect(port).expect("Redis runs");
    ran(&job, at_once, &together, || client.call(&commands).expect("Redis runs"))
}

/// A way to use the server.
pub(crate) struct Redis {
    server: Rc<Server>,
    at_once: u64,
}

impl Redis {
    pub(crate) fn new(server: &Rc<Server>, at_once: u64) -> Self {
        Redis { server: Rc::clone(server), at_once }
    }
}

impl Peer for Redis {
    fn name(&self) -> &'static str {
        if self.at_once == 1 { NAME } else { NAME_PIPELINED }
    }

    fn version(&self) -> Option<String> {
        Some(format!("Redis {}", self.server.version))
    }

    fn server(&self) -> u32 {
        self.server.child.id()
    }

    fn at_once(&self) -> u64 {
        self.at_once
    }

    fn can(&self, work: &Work) -> bool {
        work.bytes == 0 || self.at_once == 1
    }

    fn run(&mut self, job: &Job) -> Result<Vec<Ran>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut setup = Client::connect(self.server.port).map_err(|error| text(&error))?;
        let value = vec![7; job.bytes];
        let key = "large".to_owned();
        for number in 0..job.clients {
            let key = format!("key {number}");
            setup.call(&[&["SET", &key, "7"]]).map_err(|error| text(&error))?;
        }
        if job.bytes > 0 {
            setup.call(&[&[b"SET", key.as_bytes(), &value]]).map_err(|error| text(&error))?;
        }
        drop(setup);
        let together = Barrier::new(job.clients).map_err(|error| text(&error))?;
        let (port, at_once) = (self.server.port, self.at_once);
        let clients: Vec<_> = (0..job.clients)
            .map(|number| {
                Process::new(client::task(port, *job, at_once, number, together.clone()))
                    .daemon(true)
                    .start()
            })
            .collect::<Result<_, _>>()
            .map_err(|error| text(&error))?;
        let runs = clients.iter().map(|client| client.join()).collect::<Result<Vec<_>, _>>();
        runs.map_err(|error| text(&error))
    }
}
