//! How much memory there is to be had.
//!
//! Shared memory that is too much is not refused by the system: it gives page after page and then kills somebody, anybody.
//! So whoever wants much of it asks first.

use std::{fs, path::Path};

/// Requests up to this size are not checked. Larger: more may be asked for in vain. Smaller: the check (about 30 µs) costs as
/// much as filling the pages.
const UNASKED: u64 = 1 << 20;

/// Whether there is room for so many bytes now, as far as the system says: the machine's available memory, and the limits
/// of this process's control groups, of either version. A little is left for others.
pub(crate) fn has_room_for(bytes: u64) -> bool {
    if bytes <= UNASKED {
        return true;
    }
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups_room(Path::new("/sys/fs/cgroup"), &membership);
    machine.into_iter().chain(groups).min().is_none_or(|room| bytes <= room - room / 32)
}

/// The least room that one of the groups has in which a process with this `/proc/self/cgroup` is.
///
/// In a container the groups may be mounted from its own group on, while the file names the whole path: what is not there is
/// passed over, and the mounted root is asked in any case.
fn groups_room(mounted: &Path, membership: &str) -> Option<u64> {
    let of = |root: &Path, group: &str, room: fn(&Path) -> Option<u64>| {
        let path = root.join(group.trim_start_matches('/'));
        path.ancestors().take_while(|path| path.starts_with(root)).filter_map(room).min()
    };
    let rooms = membership.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, group) = line.split_once(':')?;
        match controllers {
            // Version 2, alone or beside version 1 (where it has no memory controller).
            "" => of(mounted, group, room_in_v2)
                .into_iter()
                .chain(of(&mounted.join("unified"), group, room_in_v2))
                .min(),
            _ if controllers.split(',').any(|name| name == "memory") => {
                let path = [controllers, "memory"].map(|name| mounted.join(name));
                path.iter().filter_map(|root| of(root, group, room_in_v1)).min()
            }
            _ => None,
        }
    });
    rooms.min()
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

/// `max` is no number: no limit.
fn room_in_v2(group: &Path) -> Option<u64> {
    Some(number(&group.join("memory.max"))?.saturating_sub(number(&group.join("memory.current"))?))
}

/// No limit is a number that no machine has: the largest multiple of a page.
fn room_in_v1(group: &Path) -> Option<u64> {
    let limit = number(&group.join("memory.limit_in_bytes")).filter(|limit| *limit < 1 << 62)?;
    Some(limit.saturating_sub(number(&group.join("memory.usage_in_bytes"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_has_not_is_refused() {
        assert!(has_room_for(0) && has_room_for(2 << 20));
        assert!(!has_room_for(1 << 50) && !has_room_for(u64::MAX));
        let text = "MemTotal:  100 kB\nMemAvailable:    50 kB\nSwapFree:   7 kB\n";
        assert_eq!(available(text), Some(57 * 1024));
        assert_eq!(available("nothing of it"), None);
    }

    /// A tree of groups: files and what is in them.
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
    fn the_least_room_of_the_groups_of_version_2_counts() {
        let root = tree(&[
            ("a/memory.max", "1000"),
            ("a/memory.current", "900"),
            ("a/b/memory.max", "500"),
            ("a/b/memory.current", "100"),
            ("a/b/c/memory.max", "max"),
            ("a/b/c/memory.current", "100"),
        ]);
        let room = |membership| groups_room(root.path(), membership);
        assert_eq!(room("0::/a/b/c\n"), Some(100));
        assert_eq!(room("0::/a\n"), Some(100));
        assert_eq!(room("0::/\n"), None);
        assert_eq!(room(""), None);
        assert_eq!(room("nonsense\n0:\n"), None);
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
        let room = |membership| groups_room(root.path(), membership);
        assert_eq!(room("5:cpuset:/\n4:memory:/docker/x\n0::/docker/x\n"), Some(700));
        assert_eq!(room("4:memory:/\n"), None, "no limit");
        assert_eq!(room("4:cpu,memory:/docker/x\n"), Some(70), "mounted together");
        assert_eq!(room("4:pids:/docker/x\n"), None);
        // In a container, where the group itself is mounted: its path is not there.
        let inside = tree(&[("memory/memory.limit_in_bytes", "50"), ("memory/memory.usage_in_bytes", "60")]);
        assert_eq!(groups_room(inside.path(), "4:memory:/docker/0123\n"), Some(0));
    }
}
