//! On which CPUs this process runs, and how urgently.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Once,
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{asked::Asked, cpu};

/// Returns the numbers of the CPUs on which this thread may run.
pub(crate) fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None).asked("on which CPUs it may run (sched_getaffinity)")?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Lets this thread, and threads that it starts later, run on these CPUs only.
pub(crate) fn bind(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU) {
        set.set(*cpu);
    }
    sched_setaffinity(None, &set)?;
    // The system leaves out the CPUs that it does not have or that its groups do not allow.
    match sched_getaffinity(None)? == set {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not all of them are allowed")),
    }
}

/// Sets the nice value of this thread, and of threads that it starts later.
pub(crate) fn set_nice(nice: i32) -> io::Result<()> {
    Ok(rustix::process::setpriority_process(None, nice)?)
}

/// Returns these CPUs in the order in which to use them: one of each core first.
///
/// The second CPU of a core shares its units with the first. Two workers on one core are slower
/// than on two.
pub(crate) fn by_core(cpus: &[usize]) -> Vec<usize> {
    by_core_of(cpus, siblings)
}

fn by_core_of(cpus: &[usize], core_of: impl Fn(usize) -> Option<String>) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let place = |cpu: &usize| {
        // A CPU whose core is not known counts as a core of its own.
        let core = core_of(*cpu).unwrap_or_else(|| format!("CPU {cpu}"));
        let before = seen.entry(core).or_default();
        *before += 1;
        (*before, *cpu)
    };
    let mut places: Vec<_> = cpus.iter().map(place).collect();
    places.sort_unstable();
    places.into_iter().map(|(_, cpu)| cpu).collect()
}

/// Returns which CPUs are on one core with this one. The text is the same for all of them.
fn siblings(cpu: usize) -> Option<String> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    std::fs::read_to_string(path).ok()
}

/// Returns how many physical cores this process may use. A core with two hardware threads counts
/// once.
///
/// The result is the number of cores of the CPUs in the affinity mask, or
/// [`usable_cpus`](crate::usable_cpus) if that is smaller. Use it as `max_workers` for tasks that
/// keep the arithmetic units of a core busy: a second worker on the same core gains little then. If
/// the system does not tell which CPUs share a core (no `/sys`), each counts as a core, and a
/// warning is logged.
///
/// ```
/// let cores = executor::physical_cpus();
/// assert!(1 <= cores && cores <= executor::usable_cpus());
/// ```
pub fn physical_cpus() -> usize {
    let usable = cpu::usable_cpus();
    let Ok(cpus) = allowed() else { return usable };
    let (cores, known) = cores_of(&cpus, siblings);
    if !known {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| {
            tracing::warn!("the system does not tell which CPUs share a core: each counts as one");
        });
    }
    usable.min(cores.max(1))
}

/// Returns how many cores these CPUs are on, and whether the core of each is known.
fn cores_of(cpus: &[usize], core_of: impl Fn(usize) -> Option<String>) -> (usize, bool) {
    let known: Vec<_> = cpus.iter().filter_map(|cpu| core_of(*cpu)).collect();
    let unknown = cpus.len() - known.len();
    let cores: HashSet<_> = known.into_iter().collect();
    (cores.len() + unknown, unknown == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cpu_of_each_core_comes_first() {
        let pairs = |cpu: usize| Some(format!("{}-{}", cpu / 2 * 2, cpu / 2 * 2 + 1));
        assert_eq!(by_core_of(&[0, 1, 2, 3, 5], pairs), [0, 2, 5, 1, 3]);
        let halves = |cpu: usize| Some(format!("{},{}", cpu % 2, cpu % 2 + 2));
        assert_eq!(by_core_of(&[0, 1, 2, 3], halves), [0, 1, 2, 3]);
        assert_eq!(by_core_of(&[4, 1, 2], |_| None), [1, 2, 4]);
    }

    #[test]
    fn mx08_without_a_topology_each_cpu_counts_as_a_core() {
        assert_eq!(cores_of(&[0, 1, 2, 3, 5], |cpu| Some((cpu / 2).to_string())), (3, true));
        assert_eq!(cores_of(&[0, 1, 2, 3, 5], |_| None), (5, false));
        let first = |cpu: usize| (cpu < 2).then(|| "0-1".to_owned());
        assert_eq!(cores_of(&[0, 1, 2], first), (2, false));
    }

    #[test]
    fn cpus_that_do_not_exist_are_refused_and_others_are_set() {
        let allowed = allowed().unwrap();
        std::thread::spawn(move || {
            let last = *allowed.last().unwrap();
            bind(&[last]).unwrap();
            assert_eq!(super::allowed().unwrap(), [last]);
            let beyond = cpu::configured() + 1;
            assert!(bind(&[beyond]).is_err());
            assert!(bind(&[last, beyond]).is_err());
            bind(&allowed).unwrap();
        })
        .join()
        .unwrap();
    }
}
