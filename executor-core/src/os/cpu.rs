//! How many CPUs this process may use.

use std::num::NonZeroUsize;

/// Overrides [`usable_cpus`] downwards: `EXECUTOR_CPU_COUNT=1 cargo run …`.
pub(crate) const OVERRIDE: &str = "EXECUTOR_CPU_COUNT";

/// How many CPUs this process may use: the smallest of its affinity mask, its cgroup's quota and the environment
/// variable `EXECUTOR_CPU_COUNT`. At least 1. This is the default number of workers.
///
/// Affinity and quota (cgroup v1 and v2) come from [`std::thread::available_parallelism`]. An override that is not a
/// positive number is ignored.
///
/// ```
/// assert!(executor::usable_cpus() >= 1);
/// ```
pub fn usable_cpus() -> usize {
    let available = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    smaller(available, std::env::var(OVERRIDE).ok().as_deref())
}

/// How many the machine has.
pub(crate) fn configured() -> usize {
    // SAFETY: a plain question.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }).unwrap_or(1)
}

fn smaller(available: usize, over: Option<&str>) -> usize {
    match over.and_then(|text| text.trim().parse::<NonZeroUsize>().ok()) {
        Some(over) => available.min(over.get()),
        None => available,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_wins_and_nonsense_is_ignored() {
        assert_eq!(smaller(8, None), 8);
        assert_eq!(smaller(8, Some("3")), 3);
        assert_eq!(smaller(8, Some(" 3\n")), 3);
        assert_eq!(smaller(2, Some("64")), 2);
        for nonsense in ["", "0", "-1", "many"] {
            assert_eq!(smaller(8, Some(nonsense)), 8, "{nonsense:?}");
        }
    }
}
