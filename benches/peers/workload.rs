//! The workloads: what is run, by which peers, how often, and which goals are set.
//!
//! ```text
//!  Workload ── peers: the peers that take part, `executor` first
//!           ── request(peer, mode): the number of tasks; a slow peer gets fewer than a fast one
//!  Goal     ── for one figure of `executor`, derived from the figures of other peers
//! ```

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::table::Results;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Full,
    Quick,
    /// A few seconds, without Python: only checks that the benchmark runs.
    Smoke,
}

pub(crate) struct Workload {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) peers: &'static [&'static str],
    /// Whether one busy process for each core runs beside the workload.
    pub(crate) loaded: bool,
}

pub(crate) const PYTHON: &[&str] =
    &["ProcessPoolExecutor", "multiprocessing.Pool", "loky", "pebble", "mpire"];
/// The peers among which "the best process peer" is chosen.
pub(crate) const PROCESS_PEERS: &[&str] =
    &["procspawn", "ProcessPoolExecutor", "multiprocessing.Pool", "loky", "pebble", "mpire"];

const POOLS: &[&str] = &[
    "executor",
    "rayon",
    "spawn_blocking",
    "procspawn",
    "ProcessPoolExecutor",
    "multiprocessing.Pool",
    "loky",
    "pebble",
    "mpire",
];

pub(crate) const WORKLOADS: &[Workload] = &[
    Workload {
        number: 1,
        name: "noop",
        title: "no-op tasks, submitted one by one, then all results taken",
        peers: POOLS,
        loaded: false,
    },
    Workload {
        number: 2,
        name: "map",
        title: "map of no-ops, default settings",
        peers: &[
            "executor",
            "ProcessPoolExecutor",
            "multiprocessing.Pool",
            "loky",
            "pebble",
            "mpire",
        ],
        loaded: false,
    },
    Workload {
        number: 3,
        name: "trip",
        title: "submit, then the result, one at a time",
        peers: &[
            "executor",
            "rayon",
            "spawn_blocking",
            "procspawn",
            "ProcessPoolExecutor",
            "multiprocessing.Pool",
            "loky",
            "pebble",
            "mpire",
            "socket",
            "pipe",
            "shared memory, spinning",
        ],
        loaded: false,
    },
    Workload {
        number: 4,
        name: "loaded",
        title: "the same with every core busy",
        peers: &[
            "executor",
            "rayon",
            "procspawn",
            "ProcessPoolExecutor",
            "multiprocessing.Pool",
            "socket",
            "pipe",
        ],
        loaded: true,
    },
    Workload {
        number: 5,
        name: "await",
        title: "submit, then .await, on tokio's multi-thread runtime",
        peers: &["executor", "spawn_blocking", "bare chain"],
        loaded: false,
    },
    Workload {
        number: 6,
        name: "echo",
        title: "echo of a Vec<u8>, one at a time",
        peers: &[
            "executor",
            "procspawn",
            "ProcessPoolExecutor",
            "multiprocessing.Pool",
            "loky",
            "pebble",
            "mpire",
        ],
        loaded: false,
    },
    Workload {
        number: 7,
        name: "large",
        title: "echo of a Vec<u8> of 64 MiB",
        peers: &["executor", "ProcessPoolExecutor", "multiprocessing.Pool", "four copies"],
        loaded: false,
    },
    Workload {
        number: 8,
        name: "shared",
        title: "echo of SharedBytes of 64 MiB",
        peers: &["executor", "warm memcpy"],
        loaded: false,
    },
    Workload {
        number: 9,
        name: "first",
        title: "a new pool, to the first result of both its workers",
        peers: &[
            "executor",
            "procspawn",
            "ProcessPoolExecutor",
            "multiprocessing.Pool",
            "loky",
            "pebble",
            "mpire",
            "two children",
        ],
        loaded: false,
    },
    Workload { number: 10, name: "cpu", title: "CPU tasks of 5 ms", peers: POOLS, loaded: false },
    Workload {
        number: 11,
        name: "uneven",
        title: "uneven sleeps: 95 % of 1 ms, 5 % of 50 ms",
        peers: POOLS,
        loaded: false,
    },
    Workload {
        number: 12,
        name: "grid",
        title: "workers x submitting threads, no-ops",
        peers: &["executor"],
        loaded: false,
    },
    Workload {
        number: 13,
        name: "pending",
        title: "futures pending",
        peers: &["executor"],
        loaded: false,
    },
];

/// One run of one peer, in the form in which it is sent to the driver. `peers.py` reads the same
/// fields.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) workload: String,
    /// The number of tasks, items, round trips or pools, depending on the workload.
    pub(crate) count: u64,
    /// Sizes in bytes, for the echo workloads.
    pub(crate) sizes: Vec<u64>,
    /// Lengths of the sleeps in milliseconds, in order.
    pub(crate) sleeps: Vec<u64>,
    /// The values of both axes of the grid.
    pub(crate) axis: Vec<u64>,
}

pub(crate) type Figures = Map<String, Value>;

impl Workload {
    pub(crate) fn repetitions(&self, mode: Mode) -> usize {
        match (mode, self.name) {
            (Mode::Smoke, _) => 1,
            (Mode::Quick, "grid") => 2,
            (Mode::Quick, _) => 3,
            (Mode::Full, "pending") => 3,
            (Mode::Full, _) => 7,
        }
    }

    pub(crate) fn request(&self, peer: &str, mode: Mode) -> Request {
        let fast = !PROCESS_PEERS.contains(&peer);
        // Counts for (full, quick, smoke), by whether the peer is fast.
        let counts = match (self.name, fast) {
            ("noop", true) => (500_000, 100_000, 200),
            ("noop", false) => (10_000, 1_500, 50),
            ("map", true) => (4_000_000, 400_000, 200),
            // These peers send chunks. They need as many items as `executor` to reach their best
            // rate.
            ("map", false) if matches!(peer, "multiprocessing.Pool" | "mpire") => {
                (4_000_000, 400_000, 200)
            }
            ("map", false) => (10_000, 1_500, 50),
            ("trip" | "await", true) => (20_000, 3_000, 100),
            ("trip" | "await", false) => (3_000, 600, 50),
            ("loaded", _) => (300, 60, 3),
            ("echo", true) => (400, 60, 2),
            ("echo", false) => (60, 12, 2),
            ("large", _) => (5, 2, 1),
            ("shared", _) => (20, 5, 1),
            ("first", _) => (5, 2, 1),
            ("cpu", _) => (400, 60, 4),
            ("uneven", _) => (400, 100, 10),
            ("grid", _) => (40_000, 4_000, 100),
            ("pending", _) => (1_000_000, 200_000, 2_000),
            _ => unreachable!("a workload without a count"),
        };
        let count = match mode {
            Mode::Full => counts.0,
            Mode::Quick => counts.1,
            Mode::Smoke => counts.2,
        };
        let mut request = Request { workload: self.name.to_owned(), count, ..Request::default() };
        match self.name {
            "echo" => request.sizes = vec![1 << 10, 64 << 10, 1 << 20],
            "large" | "shared" if mode == Mode::Smoke => request.sizes = vec![1 << 20],
            "large" | "shared" => request.sizes = vec![64 << 20],
            "uneven" => request.sleeps = sleeps(count as usize),
            "grid" if mode == Mode::Smoke => request.axis = vec![1, 3],
            "grid" => request.axis = vec![1, 2, 8, 64],
            _ => {}
        }
        request
    }
}

/// The sleeps in a shuffled order. The generator has a fixed seed, so the order is the same for all
/// peers and all runs.
fn sleeps(count: usize) -> Vec<u64> {
    let mut sleeps: Vec<u64> =
        (0..count).map(|i| if i < count.div_ceil(20) { 50 } else { 1 }).collect();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for last in (1..count).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        sleeps.swap(last, (state % (last as u64 + 1)) as usize);
    }
    sleeps
}

pub(crate) struct Goal {
    pub(crate) workload: &'static str,
    pub(crate) figure: String,
    pub(crate) text: String,
    /// The least value to reach if more is better, otherwise the most.
    pub(crate) bound: f64,
    pub(crate) value: f64,
    pub(crate) more_is_better: bool,
}

impl Goal {
    /// The value relative to the bound: the goal is reached at 1 or more.
    pub(crate) fn ratio(&self) -> f64 {
        if self.more_is_better { self.value / self.bound } else { self.bound / self.value }
    }

    pub(crate) fn reached(&self) -> bool {
        self.ratio() >= 1.0
    }
}

/// Returns all goals that can be judged with the figures that exist.
pub(crate) fn goals(results: &Results) -> Vec<Goal> {
    let mut goals = Judge { results, goals: Vec::new() };
    goals.at_least("noop", "tasks/s", 4.0, "rayon");
    goals.at_least("noop", "tasks/s", 40.0, "*");
    goals.at_least("map", "items/s", 3.0, "multiprocessing.Pool");
    goals.at_most("trip", "p50 µs", 0.25, "rayon");
    goals.at_most("trip", "p99 µs", 0.5, "*");
    goals.at_most("loaded", "p50 µs", 1.3, "socket");
    goals.at_most("await", "p50 µs", 1.5, "spawn_blocking");
    goals.at_most("await", "p50 µs", 1.1, "bare chain");
    goals.at_least("echo", "1 KiB MB/s", 2.0, "*");
    goals.at_least("echo", "64 KiB MB/s", 2.5, "*");
    goals.at_least("echo", "1024 KiB MB/s", 8.0, "*");
    goals.at_least("large", "65536 KiB MB/s", 0.7, "four copies");
    goals.at_least("shared", "65536 KiB MB/s", 0.25, "warm memcpy");
    goals.at_most("first", "ms", 1.6, "two children");
    goals.at_most("first", "ms", 1.0, "ProcessPoolExecutor");
    // The goal is 1.95, or rayon's speed-up on a machine that does not allow this much.
    let ceiling =
        goals.results.median("cpu", "rayon", "speed-up").map_or(1.95, |rayon| rayon.min(1.95));
    goals.fixed("cpu", "speed-up", ceiling, "1.95, or rayon's", true);
    goals.at_most("uneven", "time / ideal", 1.02, "**");
    goals.fixed("grid", "least / best", 0.6, "0.6, where there are more than cores", true);
    goals.fixed("pending", "bytes each", 400.0, "400", false);
    goals.fixed("pending", "last / first", 0.8, "0.8", true);
    goals.goals
}

struct Judge<'a> {
    results: &'a Results,
    goals: Vec<Goal>,
}

impl Judge<'_> {
    fn at_least(&mut self, workload: &'static str, figure: &str, factor: f64, peer: &str) {
        self.relative(workload, figure, factor, peer, true);
    }

    fn at_most(&mut self, workload: &'static str, figure: &str, factor: f64, peer: &str) {
        self.relative(workload, figure, factor, peer, false);
    }

    /// Adds a goal relative to a peer. `*` means the best process peer, `**` the best of all peers.
    fn relative(
        &mut self,
        workload: &'static str,
        figure: &str,
        factor: f64,
        peer: &str,
        more: bool,
    ) {
        let best = |among: &mut dyn Iterator<Item = &&'static str>| {
            among
                .filter_map(|&peer| Some((peer, self.results.median(workload, peer, figure)?)))
                .reduce(|a, b| if (b.1 > a.1) == more { b } else { a })
        };
        let (against, value) = match peer {
            "*" => match best(&mut PROCESS_PEERS.iter()) {
                Some((peer, value)) => (format!("the best process peer ({peer})"), value),
                None => return,
            },
            "**" => match best(&mut POOLS.iter().filter(|peer| **peer != "executor")) {
                Some((peer, value)) => (format!("the best peer ({peer})"), value),
                None => return,
            },
            peer => match self.results.median(workload, peer, figure) {
                Some(value) => (peer.to_owned(), value),
                None => return,
            },
        };
        self.fixed(workload, figure, factor * value, &format!("{factor} x {against}"), more);
    }

    fn fixed(&mut self, workload: &'static str, figure: &str, bound: f64, text: &str, more: bool) {
        if let Some(value) = self.results.median(workload, "executor", figure) {
            let text = format!("{} {text}", if more { "≥" } else { "≤" });
            let figure = figure.to_owned();
            self.goals.push(Goal { workload, figure, text, bound, value, more_is_better: more });
        }
    }
}

/// One figure with its name.
pub(crate) fn figure(name: impl Into<String>, value: f64) -> (String, Value) {
    (name.into(), json!(value))
}
