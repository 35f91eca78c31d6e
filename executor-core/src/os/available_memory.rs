//! How much memory is available.
//!
//! The system does not refuse shared memory that is too large. It hands out page after page, and
//! then kills any process. So code that needs much shared memory checks first.

use std::{fs, path::Path};

/// Requests up to this size are not checked. With a higher value, more memory may be requested in
/// vain. With a lower value, the check (about 30 µs) costs as much as filling the pages.
const UNASKED: u64 = 1 << 20;

/// Whether `bytes` of memory are available now, as far as the system tells. It considers the
/// machine's available memory, and the limits of this process's control groups of either version.
/// It leaves a little memory for others.
pub(crate) fn has_memory_for(bytes: u64) -> bool {
    if bytes <= UNASKED {
        return true;
    }
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = available_in_groups(Path::new("/sys/fs/cgroup"), &membership);
    machine
        .into_iter()
        .chain(groups)
        .min()
        .is_none_or(|available| bytes <= available - available / 32)
}

/// Returns the smallest amount of memory available in any group of a process with this
/// `/proc/self/cgroup`.
///
/// In a container, only the container's own group and those below may be mounted, while the file
/// gives the full path. So directories that do not exist are skipped, and the mounted root is
/// always checked.
fn available_in_groups(mounted: &Path, membership: &str) -> Option<u64> {
    let of = |root: &Path, group: &str, available_in: fn(&Path) -> Option<u64>| {
        let path = root.join(group.trim_start_matches('/'));
        path.ancestors().take_while(|path| path.starts_with(root)).filter_map(available_in).min()
    };
    let amounts = membership.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, group) = line.split_once(':')?;
        match controllers {
            // Version 2, alone or beside version 1 (where it has no memory controller).
            "" => of(mounted, group, available_in_v2)
                .into_iter()
                .chain(of(&mounted.join("unified"), group, available_in_v2))
                .min(),
            _ if controllers.split(',').any(|name| name == "memory") => {
                let path = [controllers, "memory"].map(|name| mounted.join(name));
                path.iter().filter_map(|root| of(root, group, available_in_v1)).min()
            }
            _ => None,
        }
    });
    amounts.min()
}

fn available(meminfo: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(field("MemAvailable:")?.saturating_add(field("SwapFree:").unwrap_or(0)))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Returns the memory available in a group of version 2. The limit `max` is not a number, and means
/// no limit.
fn available_in_v2(group: &Path) -> Option<u64> {
    Some(number(&group.join("memory.max"))?.saturating_sub(number(&group.join("memory.current"))?))
}

/// Returns the memory available in a group of version 1. There, no limit is a number beyond any
/// machine's memory: the largest multiple of a page.
fn available_in_v1(group: &Path) -> Option<u64> {
    let limit = number(&group.join("memory.limit_in_bytes")).filter(|limit| *limit < 1 << 62)?;
    Some(limit.saturating_sub(number(&group.join("memory.usage_in_bytes"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_has_not_is_refused() {
        assert!(has_memory_for(0) && has_memory_for(2 << 20));
        assert!(!has_memory_for(1 << 50) && !has_memory_for(u64::MAX));
        let text = "MemTotal:  100 kB\nMemAvailable:    50 kB\nSwapFree:   7 kB\n";
        assert_eq!(available(text), Some(57 * 1024));
        assert_eq!(available("nothing of it"), None);
    }

    /// Creates a tree of groups from file names and contents.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    #[test]
    fn the_least_available_memory_of_the_groups_of_version_2_counts() {
        let root = tree(&[
            ("a/memory.max", "1000"),
            ("a/memory.current", "900"),
            ("a/b/memory.max", "500"),
            ("a/b/memory.current", "100"),
            ("a/b/c/memory.max", "max"),
            ("a/b/c/memory.current", "100"),
        ]);
        let available = |membership| available_in_groups(root.path(), membership);
        assert_eq!(available("0::/a/b/c\n"), Some(100));
        assert_eq!(available("0::/a\n"), Some(100));
        assert_eq!(available("0::/\n"), None);
        assert_eq!(available(""), None);
        assert_eq!(available("nonsense\n0:\n"), None);
    }

    #[test]
    fn the_groups_of_version_1_count_too() {
        let unlimited = "9223372036854771712";
        let root = tree(&[
            ("memory/memory.limit_in_bytes", unlimited),
            ("memory/memory.usage_in_bytes", "5000"),
            ("memory/docker/x/memory.limit_in_bytes", "1000"),
            ("memory/docker/x/memory.usage_in_bytes", "300"),
            ("cpu,memory/memory.limit_in_bytes", "77"),
            ("cpu,memory/memory.usage_in_bytes", "7"),
        ]);
        let available = |membership| available_in_groups(root.path(), membership);
        assert_eq!(available("5:cpuset:/\n4:memory:/docker/x\n0::/docker/x\n"), Some(700));
        assert_eq!(available("4:memory:/\n"), None, "no limit");
        assert_eq!(available("4:cpu,memory:/docker/x\n"), Some(70), "mounted together");
        assert_eq!(available("4:pids:/docker/x\n"), None);
        // In a container where the group itself is mounted, its path does not exist.
        let inside =
            tree(&[("memory/memory.limit_in_bytes", "50"), ("memory/memory.usage_in_bytes", "60")]);
        assert_eq!(available_in_groups(inside.path(), "4:memory:/docker/0123\n"), Some(0));
    }
}
