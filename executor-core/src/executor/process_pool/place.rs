//! Options that are different for each worker, or say how a worker runs: its name, its slot, its
//! CPUs.
//!
//! ```text
//!  slots, env_of_slot, pin, nice, name, inner_threads ─► PlaceOptions ─ checked ─► Places
//! ```

use std::{ffi::OsString, fmt, sync::Arc};

use super::builder::ProcessPoolBuilder;
use crate::{
    child::environment,
    error::BuildError,
    os::affinity,
    pool::place::{Pin, Places, Variable},
};

/// The variables from which libraries take their number of threads.
const THREAD_VARIABLES: [&str; 9] = [
    "RAYON_NUM_THREADS",
    "TOKIO_WORKER_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
];

/// Maximum length of a pool's name, in bytes. `ps` shows it in each worker's line.
const NAME_BYTES_MAX: usize = 40;

type EnvOfSlot = Arc<dyn Fn(&str) -> Vec<(OsString, OsString)> + Send + Sync>;

/// The options, as the user has set them.
#[derive(Clone, Default)]
pub(super) struct PlaceOptions {
    name: Option<String>,
    slots: Option<Vec<String>>,
    env_of_slot: Option<EnvOfSlot>,
    pin: Option<Pin>,
    nice: Option<i32>,
    inner_threads: Option<usize>,
}

impl fmt::Debug for PlaceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaceOptions")
            .field("name", &self.name)
            .field("slots", &self.slots)
            .field("pin", &self.pin)
            .field("nice", &self.nice)
            .field("inner_threads", &self.inner_threads)
            .finish_non_exhaustive()
    }
}

impl PlaceOptions {
    /// Returns whether workers would have the same places. Two functions for the environment are
    /// never the same, only copies of one are.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        // Without `..`, so that no option is forgotten.
        let PlaceOptions { name, slots, env_of_slot, pin, nice, inner_threads } = self;
        let same_env = match (env_of_slot, &other.env_of_slot) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        same_env
            && *name == other.name
            && *slots == other.slots
            && *pin == other.pin
            && (nice, inner_threads) == (&other.nice, &other.inner_threads)
    }

    /// Returns the number of slots, if there are any.
    pub(super) fn slots(&self) -> Option<usize> {
        self.slots.as_ref().map(Vec::len)
    }

    /// Returns whether each slot has variables of its own.
    pub(super) fn has_env_of_slot(&self) -> bool {
        self.env_of_slot.is_some()
    }

    /// Returns whether workers are bound to CPUs.
    pub(super) fn pins(&self) -> bool {
        self.pin.is_some()
    }

    /// Returns the variables for the number of inner threads. They come before the user's own.
    pub(super) fn thread_variables(&self) -> Vec<Variable> {
        let Some(threads) = self.inner_threads else { return Vec::new() };
        let value = || Some(threads.to_string().into());
        THREAD_VARIABLES.iter().map(|name| ((*name).into(), value())).collect()
    }

    /// Checks the options for a pool of this many workers.
    pub(super) fn checked(self, workers_max: usize) -> Result<Places, BuildError> {
        let invalid = |text: String| Err(BuildError::Invalid(text));
        if let Some(name) = &self.name
            && let Some(why) = wrong_name(name)
        {
            return invalid(format!("the name `{}` of the pool {why}", name.escape_debug()));
        }
        if self.inner_threads == Some(0) {
            return invalid("inner_threads must be above 0".into());
        }
        if let Some(nice) = self.nice.filter(|nice| !(-20..=19).contains(nice)) {
            return invalid(format!("nice is {nice}, but must lie between -20 and 19"));
        }
        let some = |env: Vec<(OsString, OsString)>| {
            env.into_iter().map(|(key, value)| (key, Some(value))).collect()
        };
        let slots: Vec<(String, Vec<Variable>)> = match (self.slots, self.env_of_slot) {
            (None, Some(_)) => return invalid("env_of_slot without slots".into()),
            (None, None) => Vec::new(),
            (Some(slots), _) if slots.is_empty() => {
                return invalid("slots is empty: each worker needs one".into());
            }
            (Some(slots), _) if workers_max > slots.len() => {
                let slots = slots.len();
                return invalid(format!(
                    "max_workers is {workers_max}, but there are only {slots} slots: each worker needs one"
                ));
            }
            (Some(slots), env) => {
                let with_env = |slot: String| {
                    let variables = env.as_ref().map_or_else(Vec::new, |env| env(&slot));
                    (slot, some(variables))
                };
                slots.into_iter().map(with_env).collect()
            }
        };
        if let Some((slot, _)) = slots.iter().find(|(_, env)| !environment::is_valid(env)) {
            return invalid(format!("env_of_slot for `{slot}`: {}", environment::INVALID));
        }
        Ok(Places {
            name: self.name,
            slots,
            cpus: self.pin.map_or_else(|| Ok(Vec::new()), sets)?,
            nice: self.nice,
        })
    }
}

/// Returns what is wrong with the name of a pool, if anything is.
fn wrong_name(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("is empty".to_owned())
    } else if name.len() > NAME_BYTES_MAX {
        Some(format!("is longer than {NAME_BYTES_MAX} bytes"))
    } else if name.chars().any(char::is_control) {
        Some("has a control character".to_owned())
    } else {
        None
    }
}

/// Returns the sets of CPUs, after a check that this process may run on each of them.
fn sets(pin: Pin) -> Result<Vec<Vec<usize>>, BuildError> {
    let invalid = |text: String| Err(BuildError::Invalid(text));
    let allowed = affinity::allowed().map_err(|error| BuildError::Os {
        what: "the CPUs on which this process may run (sched_getaffinity)",
        error: Arc::new(error),
    })?;
    let sets = match pin {
        Pin::Cores => {
            return Ok(affinity::by_core(&allowed).into_iter().map(|cpu| vec![cpu]).collect());
        }
        Pin::Cpus(sets) => sets,
    };
    if sets.is_empty() || sets.iter().any(Vec::is_empty) {
        return invalid("pin: each worker needs a CPU, and a set of CPUs is empty".into());
    }
    if let Some(cpu) = sets.iter().flatten().find(|cpu| !allowed.contains(cpu)) {
        return invalid(format!("pin: there is no CPU {cpu} for this process, only {allowed:?}"));
    }
    Ok(sets)
}

impl ProcessPoolBuilder {
    /// Sets a name for the executor, at most 40 bytes. It appears in the names that `ps` and `top`
    /// show for the workers.
    ///
    /// The worker with index 3 of the program `render` is `render:3`, or `render:tiles:3` if the
    /// executor is named `tiles`. The kernel allows 15 bytes for this, so long names are
    /// shortened. The whole line (`ps -ef`) begins with `/usr/bin/render: worker 3 of tiles`.
    /// Copies of a fork server write it into the memory of their arguments.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn short_name() -> String {
    ///     std::fs::read_to_string(format!("/proc/{}/comm", std::process::id())).unwrap()
    /// }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).name("tiles").build().unwrap();
    ///     assert!(pool.submit(short_name::task()).result().unwrap().contains(":tiles:0"));
    /// }
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.place.name = Some(name.into());
        self
    }

    /// Gives each worker a slot, such as a GPU: the worker with
    /// [index](crate::worker_index) `i` has slot `i`. A task asks for it with
    /// [`executor::slot`](crate::slot). A worker that replaces another has the same slot, and never
    /// two workers have one at the same time. If two workers are to share a device, name it twice.
    ///
    /// There are as many workers as slots by default. With a larger
    /// [`max_workers`](Self::max_workers), [`build`](Self::build) fails. With
    /// [`Isolation::PerTask`](crate::Isolation::PerTask) it fails, too: there are then more workers
    /// than tasks that run.
    ///
    /// ```
    /// use executor::prelude::*;
    ///
    /// #[task]
    /// fn train(epochs: u32) -> String { format!("{epochs} epochs on {}", executor::slot().unwrap()) }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder()
    ///         .slots(["cuda:0", "cuda:1"])
    ///         .env_of_slot(|slot| [("CUDA_VISIBLE_DEVICES", slot.replace("cuda:", ""))])
    ///         .build()
    ///         .unwrap();
    ///     assert_eq!(pool.max_workers(), 2);
    ///     assert!(pool.submit(train::task(3)).result().unwrap().starts_with("3 epochs on cuda:"));
    /// }
    /// ```
    pub fn slots<S: Into<String>>(mut self, slots: impl IntoIterator<Item = S>) -> Self {
        self.place.slots = Some(slots.into_iter().map(Into::into).collect());
        self
    }

    /// Sets environment variables for the worker of each [slot](Self::slots). They take precedence
    /// over those of [`env`](Self::env). [`build`](Self::build) calls this function once for each
    /// slot.
    ///
    /// With [`StartMethod::ForkServer`](crate::StartMethod::ForkServer) it is refused: workers are
    /// then copies of one process, and what it has loaded may have read its environment already.
    pub fn env_of_slot<E, K, V>(mut self, env: impl Fn(&str) -> E + Send + Sync + 'static) -> Self
    where
        E: IntoIterator<Item = (K, V)>,
        K: Into<OsString>,
        V: Into<OsString>,
    {
        self.place.env_of_slot = Some(Arc::new(move |slot: &str| {
            env(slot).into_iter().map(|(key, value)| (key.into(), value.into())).collect()
        }));
        self
    }

    /// Binds workers to CPUs. By default they run where this process may run.
    ///
    /// It applies to all threads of a worker, and to the processes that tasks start, unless they
    /// change it. In a pinned worker [`usable_cpus`](crate::usable_cpus) is the number of its CPUs.
    /// Only threads that a constructor of the program starts before `main` are not affected.
    ///
    /// [`build`](Self::build) fails if a CPU does not exist, or if this process may not run on it.
    /// It also fails with [`Isolation::PerTask`](crate::Isolation::PerTask), because tasks that run
    /// at the same time could then get the same CPU while others are free.
    ///
    /// ```
    /// # use executor::{BuildError, Pin, prelude::*};
    /// #[task]
    /// fn cpus() -> usize { executor::usable_cpus() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().pin(Pin::Cores).build().unwrap();
    ///     assert_eq!(pool.submit(cpus::task()).result().unwrap(), 1);
    ///
    ///     let nowhere = ProcessPoolExecutor::builder().pin(Pin::Cpus(vec![vec![100_000]])).build();
    ///     assert!(matches!(nowhere, Err(BuildError::Invalid(_))));
    /// }
    /// ```
    pub fn pin(mut self, pin: Pin) -> Self {
        self.place.pin = Some(pin);
        self
    }

    /// Sets the nice value of the workers, from -20 (most urgent) to 19 (least urgent), as
    /// `ps -o ni` shows it. By default they have that of this process. With a higher value than the
    /// rest of the machine, a batch job does not slow down what people wait for.
    ///
    /// A value below that of this process needs a privilege. If the system refuses it, no worker
    /// starts, and the executor is [`Broken`](crate::TaskError::Broken) with the reason.
    pub fn nice(mut self, nice: i32) -> Self {
        self.place.nice = Some(nice);
        self
    }

    /// Limits how many threads libraries start inside of each worker. Without it, each of eight
    /// workers may start a thread for each of eight CPUs, and 64 threads share them.
    ///
    /// It sets the environment variables that these libraries read: `RAYON_NUM_THREADS`,
    /// `TOKIO_WORKER_THREADS`, `OMP_NUM_THREADS`, `OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS`,
    /// `BLIS_NUM_THREADS`, `VECLIB_MAXIMUM_THREADS`, `NUMEXPR_NUM_THREADS`, `POLARS_MAX_THREADS`. A
    /// variable that is set with [`env`](Self::env) keeps that value. Code that chooses its number
    /// of threads in another way is not affected: see [`pin`](Self::pin) for a limit that holds for
    /// all.
    ///
    /// ```
    /// # use executor::prelude::*;
    /// #[task]
    /// fn rayons() -> Option<String> { std::env::var("RAYON_NUM_THREADS").ok() }
    ///
    /// #[executor::main]
    /// fn main() {
    ///     let pool = ProcessPoolExecutor::builder().max_workers(1).inner_threads(2).build().unwrap();
    ///     assert_eq!(pool.submit(rayons::task()).result().unwrap().as_deref(), Some("2"));
    /// }
    /// ```
    pub fn inner_threads(mut self, threads: usize) -> Self {
        self.place.inner_threads = Some(threads);
        self
    }
}
