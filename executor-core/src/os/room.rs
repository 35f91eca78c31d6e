//! How much memory there is to be had.
//!
//! Shared memory that is too much is not refused by the system: it gives page after page and then kills somebody, anybody.
//! So whoever wants much of it asks first.

use std::{fs, path::Path};

/// What is asked for without asking first. More: so much may be wanted in vain. Less: the look (some 30 µs) takes long beside
/// the filling of the pages.
const UNASKED: u64 = 1 << 20;

/// Whether there is room for so many bytes now, as far as the system says: the machine's available memory, and the limits
/// of this process's control groups (v2). A little is left for others.
pub(crate) fn has_room_for(bytes: u64) -> bool {
    if bytes <= UNASKED {
        return true;
    }
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        let path = Path::new("/sys/fs/cgroup").join(group);
        path.ancestors().take_while(|path| path.starts_with("/sys/fs/cgroup")).filter_map(group_room).min()
    });
    machine.into_iter().chain(groups).min().is_none_or(|room| bytes <= room - room / 32)
}

fn available(meminfo: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(field("MemAvailable:")?.saturating_add(field("SwapFree:").unwrap_or(0)))
}

fn group_room(group: &Path) -> Option<u64> {
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
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
}
