//! What is measured, and how one run becomes figures.
//!
//! ```text
//!  Work + count ──► Job ──► Peer::run ──► a Ran of each client ──► Figures
//! ```

use std::{fmt, hint::black_box, time::Duration};

use executor::Barrier;
use serde::{Deserialize, Serialize};

/// How long a client waits for the others to come. If one has died, the others must not wait
/// forever.
const MEETING_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    Get,
    Set,
    Update,
}

/// One line of a table.
pub(crate) struct Work {
    pub(crate) section: &'static str,
    pub(crate) operation: Operation,
    pub(crate) clients: usize,
    /// The size of the value. 0 stands for a number.
    pub(crate) bytes: usize,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = format!("{:?}", self.operation).to_lowercase();
        match self.bytes {
            0 if self.clients == 1 => write!(f, "{operation}, 1 client"),
            0 => write!(f, "{operation}, {} clients", self.clients),
            bytes if bytes >> 20 == 0 => write!(f, "{operation} {} KiB", bytes >> 10),
            bytes => write!(f, "{operation} {} MiB", bytes >> 20),
        }
    }
}

/// What the clients of one run do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) operation: Operation,
    pub(crate) clients: usize,
    pub(crate) bytes: usize,
    /// Number of calls of each client, after the warm-up.
    pub(crate) count: u64,
    pub(crate) warm_up: u64,
    /// Whether the time of each call is recorded.
    pub(crate) timed: bool,
}

/// What one client has measured. Times are nanoseconds of the monotonic clock, which all processes
/// share.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ran {
    pub(crate) began: u64,
    pub(crate) ended: u64,
    /// The client's processor time.
    pub(crate) processor: u64,
    pub(crate) latencies: Vec<u64>,
}

pub(crate) trait Peer {
    fn name(&self) -> &'static str;
    fn version(&self) -> Option<String>;
    /// The process whose processor time is the server's.
    fn server(&self) -> u32;
    /// Number of calls that are made at once. The count of a job is a multiple of it.
    fn at_once(&self) -> u64 {
        1
    }
    fn can(&self, _work: &Work) -> bool {
        true
    }
    fn run(&mut self, job: &Job) -> Result<Vec<Ran>, String>;
}

/// The figures of one round. Times are microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    CallsPerSecond,
    P50,
    P99,
    Worst,
    /// Processor time of one call in the clients, and in the server.
    InClient,
    InServer,
    /// The time of the slowest client, divided by that of the fastest.
    Spread,
}

pub(crate) type Figures = Vec<(Figure, f64)>;

/// Makes the calls of one client. The clients begin together.
pub(crate) fn ran(job: &Job, at_once: u64, together: &Barrier, mut call: impl FnMut()) -> Ran {
    (0..job.warm_up.div_ceil(at_once)).for_each(|_| call());
    together.wait_timeout(MEETING_MAX).expect("all clients come");
    let mut latencies = Vec::with_capacity(if job.timed { job.count as usize } else { 0 });
    let processor = processor_time(None);
    let began = now();
    let mut last = began;
    for _ in 0..job.count / at_once {
        black_box(&mut call)();
        if job.timed {
            let now = now();
            latencies.push(now - last);
            last = now;
        }
    }
    let ended = now();
    Ran { began, ended, processor: processor_time(None) - processor, latencies }
}

/// Returns the number of calls of each client that take about [`TIME`](crate::TIME).
pub(crate) fn calibrate(peer: &mut dyn Peer, work: &Work, short: bool) -> Result<u64, String> {
    let at_once = peer.at_once();
    let rounded = |count: f64| (count as u64).max(1).next_multiple_of(at_once);
    let mut count = rounded(if work.bytes == 0 { 50.0 } else { 2.0 });
    if short {
        return Ok(count);
    }
    for time in [crate::TIME / 10, crate::TIME] {
        let time_of_one = elapsed(&peer.run(&job(work, count, false))?) as f64 / count as f64;
        count = rounded(time.as_nanos() as f64 / time_of_one);
    }
    Ok(count)
}

/// Makes two runs: one for the rate, and a shorter one for latencies.
pub(crate) fn measure(peer: &mut dyn Peer, work: &Work, count: u64) -> Result<Figures, String> {
    let calls = (count * work.clients as u64) as f64;
    let server = processor_time(Some(peer.server()));
    let runs = peer.run(&job(work, count, false))?;
    let server = processor_time(Some(peer.server())).saturating_sub(server);
    let clients: u64 = runs.iter().map(|ran| ran.processor).sum();
    let times = || runs.iter().map(|ran| ran.ended - ran.began);
    let mut figures = vec![
        (Figure::CallsPerSecond, calls / elapsed(&runs) as f64 * 1e9),
        (Figure::InClient, clients as f64 / calls / 1e3),
        (Figure::InServer, server as f64 / calls / 1e3),
        (
            Figure::Spread,
            times().max().unwrap_or(1) as f64 / times().min().unwrap_or(1).max(1) as f64,
        ),
    ];
    if peer.at_once() == 1 && work.bytes == 0 {
        let runs = peer.run(&job(work, count.div_ceil(3), true))?;
        let mut latencies: Vec<u64> = runs.into_iter().flat_map(|ran| ran.latencies).collect();
        latencies.sort_unstable();
        let last = latencies.len().checked_sub(1).ok_or("no call was timed")?;
        let at = |part: f64| latencies[(last as f64 * part) as usize] as f64 / 1e3;
        figures.extend([(Figure::P50, at(0.5)), (Figure::P99, at(0.99)), (Figure::Worst, at(1.0))]);
    }
    Ok(figures)
}

fn job(work: &Work, count: u64, timed: bool) -> Job {
    let Work { operation, clients, bytes, .. } = *work;
    Job { operation, clients, bytes, count, warm_up: (count / 10).clamp(1, 1_000), timed }
}

/// The time from the barrier to the end of the last client.
fn elapsed(runs: &[Ran]) -> u64 {
    let began = runs.iter().map(|ran| ran.began).min().unwrap_or(0);
    runs.iter().map(|ran| ran.ended).max().unwrap_or(0).saturating_sub(began).max(1)
}

fn now() -> u64 {
    nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic))
}

fn nanoseconds(time: rustix::time::Timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Returns the processor time of a process, with that of its threads that have ended. `None` is
/// this process. It is 0 if the process is not there.
fn processor_time(pid: Option<u32>) -> u64 {
    let Some(pid) = pid else {
        return nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime));
    };
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls only write to the variable that they are given.
    let is_known = unsafe {
        libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    if is_known { time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 } else { 0 }
}

/// Returns which part of the processors' time is used while this program sleeps, so by others.
///
/// A client and a server that are both awake need a processor each. Where others use the
/// processors, they wait asleep for each other, and a call takes several times as long.
pub(crate) fn used_by_others() -> Option<f64> {
    let ticks = || -> Option<[u64; 2]> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let words = text.lines().next()?.split_whitespace().skip(1);
        let ticks: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        // Columns 3 and 4 are time without work, and time without work before a disk answers.
        Some([ticks.iter().take(8).sum(), ticks.get(3)? + ticks.get(4)?])
    };
    let before = ticks()?;
    std::thread::sleep(Duration::from_secs(1));
    let after = ticks()?;
    let [all, idle] = [0, 1].map(|i| after[i].saturating_sub(before[i]) as f64);
    Some(1.0 - idle / all.max(1.0))
}
