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
    /// `--only` selects it by this name, or by the part of the name before a hyphen.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What those peers do here whose names do not say it.
    pub(crate) note: &'static str,
    pub(crate) peers: &'static [&'static str],
    /// Whether one busy process for each core runs beside the workload.
    pub(crate) loaded: bool,
}

pub(crate) const PYTHON: &[&str] =
    &["ProcessPoolExecutor", "multiprocessing.Pool", "loky", "pebble", "mpire"];
/// The peers among which "the best process peer" is chosen.
pub(crate) const PROCESS_PEERS: &[&str] =
    &["procspawn", "ProcessPoolExecutor", "multiprocessing.Pool", "loky", "pebble", "mpire"];

/// This library again, with the tasks of `burst`. Beside a workload, it shows what that way of
/// using the library costs, in the same minute and on the same machine.
pub(crate) const OWN_BURST: &str = "own burst";

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
        name: "burst",
        title: "no-op tasks, submitted one by one, then all results taken",
        note: "rayon: a channel of std for each result; rayon, oneshot: a oneshot of futures",
        peers: &[
            "executor",
            "rayon",
            "rayon, oneshot",
            "spawn_blocking",
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
        name: "window",
        title: "no-op tasks, 256 in flight: result() of the oldest, then the next submit",
        note: "own burst: the same tasks as in `burst`",
        peers: &[
            "executor",
            OWN_BURST,
            "rayon",
            "rayon, oneshot",
            "spawn_blocking",
            "ProcessPoolExecutor",
            "multiprocessing.Pool",
        ],
        loaded: false,
    },
    Workload {
        name: "callbacks",
        title: "no-op tasks with add_done_callback, then shutdown(true)",
        note: "own burst: the same tasks as in `burst`; \
               multiprocessing.Pool: apply_async(callback=…), then join",
        peers: &["executor", OWN_BURST, "ProcessPoolExecutor", "multiprocessing.Pool"],
        loaded: false,
    },
    Workload {
        name: "on_done",
        title: "no-op tasks with on_done, then shutdown(true)",
        note: "own burst: the same tasks as in `burst`",
        peers: &["executor", OWN_BURST],
        loaded: false,
    },
    Workload {
        name: "as_completed",
        title: "no-op tasks, all submitted, then results as they are completed",
        note: "own burst: the same tasks as in `burst`; rayon: one channel for all results",
        peers: &["executor", OWN_BURST, "rayon", "ProcessPoolExecutor"],
        loaded: false,
    },
    Workload {
        name: "map",
        title: "map of no-ops, default settings",
        note: "",
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
        name: "trip",
        title: "submit, then the result, one at a time",
        note: "",
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
        name: "loaded",
        title: "the same with every core busy",
        note: "",
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
        name: "await-1",
        title: "submit, then .await, in one task of a tokio runtime with two workers",
        note: "spawn_blocking: up to 512 threads, as by default; \
               bare chain: three wake-ups by futex and no work; \
               bare reactor: two, by eventfds that tokio's own driver waits for",
        peers: &["executor", "spawn_blocking", "bare chain", "bare reactor"],
        loaded: false,
    },
    Workload {
        name: "await-2",
        title: "the same in 2 tasks at once",
        note: "spawn_blocking: up to 512 threads, as by default",
        peers: &["executor", "spawn_blocking", "spawn_blocking, 2 threads"],
        loaded: false,
    },
    Workload {
        name: "await-64",
        title: "the same in 64 tasks at once",
        note: "spawn_blocking: up to 512 threads, as by default",
        peers: &["executor", "spawn_blocking", "spawn_blocking, 2 threads"],
        loaded: false,
    },
    Workload {
        name: "await-1000",
        title: "the same in 1,000 tasks at once",
        note: "spawn_blocking: up to 512 threads, as by default",
        peers: &["executor", "spawn_blocking", "spawn_blocking, 2 threads"],
        loaded: false,
    },
    Workload {
        name: "echo",
        title: "echo of a Vec<u8>, one at a time",
        note: "",
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
        name: "large",
        title: "echo of a Vec<u8> of 64 MiB",
        note: "",
        peers: &["executor", "ProcessPoolExecutor", "multiprocessing.Pool", "four copies"],
        loaded: false,
    },
    Workload {
        name: "shared",
        title: "echo of SharedBytes of 64 MiB",
        note: "",
        peers: &["executor", "warm memcpy"],
        loaded: false,
    },
    Workload {
        name: "first",
        title: "a new pool, to the first result of both its workers",
        note: "",
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
    Workload { name: "cpu", title: "CPU tasks of 5 ms", note: "", peers: POOLS, loaded: false },
    Workload {
        name: "uneven",
        title: "uneven sleeps: 95 % of 1 ms, 5 % of 50 ms",
        note: "",
        peers: POOLS,
        loaded: false,
    },
    Workload {
        name: "grid",
        title: "workers x submitting threads, no-ops",
        note: "",
        peers: &["executor"],
        loaded: false,
    },
    Workload {
        name: "pending",
        title: "futures pending",
        note: "",
        peers: &["executor"],
        loaded: false,
    },
];

/// One run of one peer, in the form in which it is sent to the driver. `peers.py` reads the same
/// fields.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(crate) struct Request {
    pub(crate) workload: String,
    /// The number of tasks, items, round trips or pools, depending on the workload.
    pub(crate) count: u64,
    /// How many tasks are in flight at a time, in `window` and `await-…`.
    pub(crate) in_flight: u64,
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
            // A shutdown at the end takes about a millisecond, which many tasks must outweigh.
            ("callbacks" | "on_done", true) => (500_000, 200_000, 200),
            ("as_completed", true) => (100_000, 100_000, 200),
            ("burst" | "window", true) => (500_000, 100_000, 1_000),
            ("burst" | "window" | "callbacks" | "as_completed", false) => (10_000, 1_500, 50),
            ("map", true) => (4_000_000, 400_000, 200),
            // These peers send chunks. They need as many items as `executor` to reach their best
            // rate.
            ("map", false) if matches!(peer, "multiprocessing.Pool" | "mpire") => {
                (4_000_000, 400_000, 200)
            }
            ("map", false) => (10_000, 1_500, 50),
            ("trip" | "await-1", true) => (20_000, 3_000, 100),
            ("trip", false) => (3_000, 600, 50),
            ("await-2", _) => (40_000, 6_000, 100),
            ("await-64" | "await-1000", _) => (200_000, 40_000, 2_000),
            // The p99 needs many round trips. The slow peers have no goal for it.
            ("loaded", true) => (3_000, 300, 3),
            ("loaded", false) => (300, 60, 3),
            ("echo", true) => (400, 60, 2),
            ("echo", false) => (60, 12, 2),
            ("large", _) => (5, 2, 1),
            ("shared", _) => (20, 5, 1),
            ("first", _) => (5, 2, 1),
            ("cpu", _) => (400, 60, 4),
            ("uneven", _) => (400, 100, 10),
            ("grid", _) => (200_000, 20_000, 100),
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
            "window" => request.in_flight = 256,
            "await-1" => request.in_flight = 1,
            "await-2" => request.in_flight = 2,
            "await-64" => request.in_flight = 64,
            "await-1000" => request.in_flight = 1_000,
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
    /// What the table shows in the row of the peer that the goal is about: the demanded ratio.
    pub(crate) demanded: Option<Demanded>,
    /// The least value to reach if more is better, otherwise the most.
    pub(crate) bound: f64,
    pub(crate) value: f64,
    pub(crate) more_is_better: bool,
}

pub(crate) struct Demanded {
    pub(crate) peer: &'static str,
    pub(crate) figure: String,
    pub(crate) ratio: String,
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
    goals.at_least("burst", "tasks/s", 4.0, "rayon");
    goals.at_least("burst", "tasks/s", 40.0, "*");
    goals.at_least("window", "tasks/s", 0.9, OWN_BURST);
    goals.at_least("window", "tasks/s", 1.0, "rayon");
    goals.at_least("callbacks", "tasks/s", 0.8, OWN_BURST);
    goals.at_least("on_done", "tasks/s", 0.8, OWN_BURST);
    goals.at_least("as_completed", "tasks/s", 0.8, OWN_BURST);
    goals.at_least("map", "items/s", 3.0, "multiprocessing.Pool");
    goals.at_most("trip", "p50 µs", 0.25, "rayon");
    goals.at_most("trip", "p99 µs", 0.5, "*");
    goals.at_most("loaded", "p50 µs", 1.3, "socket");
    goals.at_most("loaded", "p99 µs", 1.5, "socket");
    goals.at_most("await-1", "p50 µs", 0.8, "spawn_blocking");
    goals.at_most("await-1", "p50 µs", 0.5, "bare chain");
    goals.at_least("await-2", "awaits/s", 1.2, "spawn_blocking");
    goals.at_most("await-2", "p50 µs", 1.0, "spawn_blocking");
    goals.at_least("await-64", "awaits/s", 6.0, "spawn_blocking");
    goals.fixed("await-64", "p99 µs", 470.0, "470 µs", false);
    goals.at_least("await-1000", "awaits/s", 8.0, "spawn_blocking");
    goals.at_least("echo", "1 KiB MB/s", 2.0, "*");
    goals.at_least("echo", "64 KiB MB/s", 2.5, "*");
    goals.at_least("echo", "1024 KiB MB/s", 8.0, "*");
    goals.at_least("large", "65536 KiB MB/s", 0.7, "four copies");
    goals.at_least("shared", "65536 KiB MB/s", 0.25, "warm memcpy");
    goals.made_anew(0.3);
    goals.at_most("first", "ms", 1.5, "two children");
    goals.at_most("first", "ms", 1.0, "ProcessPoolExecutor");
    if let Some(rayon) = goals.results.median("cpu", "rayon", "speed-up") {
        goals.fixed("cpu", "speed-up", rayon - 0.01, "rayon's - 0.01", true);
    }
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
    fn at_least(&mut self, workload: &'static str, figure: &str, factor: f64, peer: &'static str) {
        self.relative(workload, figure, factor, peer, true);
    }

    fn at_most(&mut self, workload: &'static str, figure: &str, factor: f64, peer: &'static str) {
        self.relative(workload, figure, factor, peer, false);
    }

    /// Adds a goal relative to a peer. `*` means the best process peer, `**` the best of all peers.
    fn relative(
        &mut self,
        workload: &'static str,
        figure: &str,
        factor: f64,
        peer: &'static str,
        more: bool,
    ) {
        let best = |among: &mut dyn Iterator<Item = &&'static str>| {
            among
                .filter_map(|&peer| Some((peer, self.results.median(workload, peer, figure)?)))
                .reduce(|a, b| if (b.1 > a.1) == more { b } else { a })
        };
        let found = match peer {
            "*" => best(&mut PROCESS_PEERS.iter()),
            "**" => best(&mut POOLS.iter().filter(|peer| **peer != "executor")),
            peer => best(&mut [peer].iter()),
        };
        let Some((best, value)) = found else { return };
        let against = match peer {
            "*" => format!("the best process peer ({best})"),
            "**" => format!("the best peer ({best})"),
            peer => peer.to_owned(),
        };
        self.against(workload, figure, factor, (best, figure, value), &against, more);
    }

    /// Adds the goal for `SharedBytes` that are made anew. The memcpy beside them has its figure
    /// under the name of the size.
    fn made_anew(&mut self, factor: f64) {
        let (peer, figure) = ("warm memcpy", "65536 KiB MB/s");
        if let Some(value) = self.results.median("shared", peer, figure) {
            let against = (peer, figure, value);
            self.against("shared", "made anew, MB/s", factor, against, peer, true);
        }
    }

    /// Adds a goal relative to a figure of a peer: its name, its figure, and the value.
    fn against(
        &mut self,
        workload: &'static str,
        figure: &str,
        factor: f64,
        (peer, its, value): (&'static str, &str, f64),
        text: &str,
        more: bool,
    ) {
        let before = self.goals.len();
        self.fixed(workload, figure, factor * value, &format!("{factor} x {text}"), more);
        for goal in &mut self.goals[before..] {
            let ratio = format!("{} {factor}", sign(more));
            let ratio = if its == figure { ratio } else { format!("{ratio} ({figure})") };
            goal.demanded = Some(Demanded { peer, figure: its.to_owned(), ratio });
        }
    }

    fn fixed(&mut self, workload: &'static str, figure: &str, bound: f64, text: &str, more: bool) {
        if let Some(value) = self.results.median(workload, "executor", figure) {
            let text = format!("{} {text}", sign(more));
            let figure = figure.to_owned();
            let demanded = None;
            self.goals.push(Goal {
                workload,
                figure,
                text,
                demanded,
                bound,
                value,
                more_is_better: more,
            });
        }
    }
}

fn sign(more_is_better: bool) -> &'static str {
    if more_is_better { "≥" } else { "≤" }
}

impl Request {
    /// The number of tasks in flight, which the workload needs.
    pub(crate) fn in_flight(&self) -> Result<usize, String> {
        match self.in_flight {
            0 => Err(format!("{} needs the field in_flight", self.workload)),
            number => Ok(number as usize),
        }
    }
}

/// One figure with its name.
pub(crate) fn figure(name: impl Into<String>, value: f64) -> (String, Value) {
    (name.into(), json!(value))
}
