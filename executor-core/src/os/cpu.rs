//! Number of CPUs that this process may use.

use std::{
    io::Read,
    num::{NonZeroU64, NonZeroUsize},
    sync::OnceLock,
};

use super::setting::Setting;

/// Lowers the result of [`usable_cpus`]: `EXECUTOR_CPU_COUNT=1 cargo run …`.
static OVERRIDE: Setting<NonZeroUsize> =
    Setting::new("EXECUTOR_CPU_COUNT", "a positive number", |text| text.parse().ok());

/// Returns how many CPUs this process may use. This is the default number of workers.
///
/// The result is the smallest of the number of CPUs in the affinity mask, the quota of the cgroup,
/// and the environment variable `EXECUTOR_CPU_COUNT`. It is at least 1.
///
/// The quota is `cpu.max` of cgroup v2 or `cpu.cfs_quota_us` of v1, of the group itself or of any
/// group above it. It is rounded up. For example, a quota of one and a half CPUs gives two workers,
/// because with one worker half a CPU would never be used.
///
/// `EXECUTOR_CPU_COUNT` may be unset or empty. If it is anything other than a positive number, this
/// function ignores it and logs a warning, once per process. Building an executor whose number of
/// workers depends on the variable fails instead
/// ([`BuildError::Invalid`](crate::BuildError::Invalid)).
///
/// ```
/// assert!(executor::usable_cpus() >= 1);
/// ```
pub fn usable_cpus() -> usize {
    usable_cpus_within(quota_of_groups())
}

/// As [`usable_cpus`], but an invalid override is an error.
pub(crate) fn usable_cpus_or_error() -> Result<usize, String> {
    Ok(smaller(available(), OVERRIDE.read()?))
}

/// As [`usable_cpus`], but the quota counts only if it is given. Reading the quota takes a fifth of
/// a millisecond.
pub(crate) fn usable_cpus_within(quota: Option<usize>) -> usize {
    smaller(available_within(quota), OVERRIDE.read_or_warn())
}

/// Returns how many CPUs the control groups of this process allow, if they set a limit.
pub(crate) fn quota_of_groups() -> Option<usize> {
    quota(&File)
}

static SEVERAL: OnceLock<bool> = OnceLock::new();

/// Whether two threads can run at the same time. The answer is computed once per process, because
/// each sleep asks for it. It logs nothing: locks call it, and a logger may use those locks.
#[inline]
pub(crate) fn several_usable() -> bool {
    *SEVERAL.get_or_init(|| smaller(available(), OVERRIDE.read().unwrap_or_default()) > 1)
}

/// Sets the answer of [`several_usable`] in a child to the one that its parent has computed.
pub(crate) fn adopt_several(several: bool) {
    let _ = SEVERAL.set(several);
}

fn available() -> usize {
    available_within(quota_of_groups())
}

fn available_within(quota: Option<usize>) -> usize {
    quota.unwrap_or(usize::MAX).min(affinity()).max(1)
}

/// Returns on how many CPUs this thread may run.
fn affinity() -> usize {
    // The call fails if the machine has more CPUs than the mask has room for, or if the call does
    // not exist. Then use std, which has other ways to find out.
    let asked = rustix::thread::sched_getaffinity(None).map(|set| set.count() as usize);
    asked.unwrap_or_else(|_| std::thread::available_parallelism().map_or(1, NonZeroUsize::get))
}

/// The files that describe control groups: those of the system, or a test's fake ones.
trait Files {
    fn read(&self, path: &str) -> Option<String>;
}

struct File;

impl Files for File {
    fn read(&self, path: &str) -> Option<String> {
        // These files report a length of 0, and a larger buffer saves system calls.
        let mut text = String::with_capacity(4096);
        std::fs::File::open(path).ok()?.read_to_string(&mut text).ok()?;
        Some(text)
    }
}

/// Returns how many CPUs the control groups of this process allow, rounded up. Returns `None` if
/// they set no limit.
fn quota(files: &impl Files) -> Option<usize> {
    let mounts = files.read("/proc/self/mountinfo")?;
    let groups = files.read("/proc/self/cgroup")?;
    let quotas = groups.lines().filter_map(|line| {
        // `0::/path` in v2, `4:cpu,cpuacct:/path` in v1.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let version = match controllers {
            "" => Version::Two,
            some if some.split(',').any(|name| name == "cpu") => Version::One,
            _ => return None,
        };
        let (root, point) = mounts.lines().find_map(|mount| version.mounted(mount))?;
        // In a container the path may begin with the mounted root, or lead out of it.
        let below =
            path.strip_prefix(root).filter(|_| root != "/").unwrap_or(path).trim_matches('/');
        let below = if below.split('/').any(|part| part == "..") { "" } else { below };
        let parts: Vec<_> = below.split('/').filter(|part| !part.is_empty()).collect();
        let of = |depth: usize| {
            let directory = std::iter::once(point).chain(parts[..depth].iter().copied());
            version.quota(files, &directory.collect::<Vec<_>>().join("/"))
        };
        // The quota of each group above applies as well, so take the smallest.
        (0..=parts.len()).filter_map(of).min()
    });
    quotas.min()
}

#[derive(Clone, Copy, PartialEq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// If cgroups of this version are mounted by this line of `mountinfo`, returns which group is
    /// mounted and where.
    fn mounted(self, line: &str) -> Option<(&str, &str)> {
        // `36 35 98:0 /root /mount/point rw,noatime … - type source options`
        let (mount, kind) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut kind = kind.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
        let found = match self {
            Version::Two => kind == "cgroup2",
            Version::One => kind == "cgroup" && options.split(',').any(|name| name == "cpu"),
        };
        found.then_some((root, point))
    }

    /// Returns the quota of the group in this directory.
    fn quota(self, files: &impl Files, directory: &str) -> Option<usize> {
        match self {
            Version::Two => {
                let text = files.read(&format!("{directory}/cpu.max"))?;
                let (quota, period) = text.trim().split_once(' ')?;
                rounded_up(quota, period)
            }
            Version::One => {
                let quota = files.read(&format!("{directory}/cpu.cfs_quota_us"))?;
                let period = files.read(&format!("{directory}/cpu.cfs_period_us"))?;
                rounded_up(quota.trim(), period.trim())
            }
        }
    }
}

/// Returns the quota in CPUs, rounded up. `max` and `-1` mean that there is no quota.
fn rounded_up(quota: &str, period: &str) -> Option<usize> {
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<NonZeroU64>().ok()?);
    usize::try_from(quota.div_ceil(period.get())).ok().map(|cpus| cpus.max(1))
}

/// Returns how many CPUs the machine has.
pub(crate) fn configured() -> usize {
    // SAFETY: `sysconf` only returns a number.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }).unwrap_or(1)
}

fn smaller(available: usize, over: Option<NonZeroUsize>) -> usize {
    over.map_or(available, |over| available.min(over.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_counts_if_it_is_smaller() {
        assert_eq!(smaller(8, None), 8);
        assert_eq!(smaller(8, NonZeroUsize::new(3)), 3);
        assert_eq!(smaller(2, NonZeroUsize::new(64)), 2);
    }

    struct Fake(Vec<(&'static str, &'static str)>);

    impl Files for Fake {
        fn read(&self, path: &str) -> Option<String> {
            self.0.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
        }
    }

    const V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";

    fn v2(path: &'static str, limits: &[(&'static str, &'static str)]) -> Option<usize> {
        let mut files = vec![("/proc/self/mountinfo", V2), ("/proc/self/cgroup", path)];
        files.extend(limits);
        quota(&Fake(files))
    }

    #[test]
    fn a_fraction_of_a_quota_is_rounded_up() {
        for (text, cpus) in [
            ("150000 100000\n", Some(2)),
            ("50000 100000", Some(1)),
            ("200000 100000", Some(2)),
            ("200001 100000", Some(3)),
            ("1 100000", Some(1)),
            ("max 100000", None),
            ("150000 0", None),
            ("nonsense", None),
        ] {
            let limits = [("/sys/fs/cgroup/app/cpu.max", text)];
            assert_eq!(v2("0::/app\n", &limits), cpus, "{text:?}");
        }
    }

    #[test]
    fn the_smallest_quota_of_the_groups_above_counts() {
        let limits = [
            ("/sys/fs/cgroup/a/cpu.max", "250000 100000"),
            ("/sys/fs/cgroup/a/b/cpu.max", "max 100000"),
        ];
        assert_eq!(v2("0::/a/b\n", &limits), Some(3));
        assert_eq!(v2("0::/\n", &limits), None);
        // In a container's own namespace the path may lead out of the mounted part.
        let limits = [("/sys/fs/cgroup/cpu.max", "150000 100000")];
        assert_eq!(v2("0::/../../elsewhere\n", &limits), Some(2));
    }

    #[test]
    fn a_quota_of_the_first_version_counts_as_well() {
        let with = |quota| {
            let files = vec![
                ("/proc/self/mountinfo", V1),
                ("/proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n0::/\n"),
                ("/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", quota),
                ("/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n"),
            ];
            super::quota(&Fake(files))
        };
        assert_eq!((with("150000\n"), with("-1\n"), with("50000")), (Some(2), None, Some(1)));
        assert_eq!(super::quota(&Fake(Vec::new())), None);
    }
}
