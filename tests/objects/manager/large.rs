//! Large values: through a lane in parts, from buffers that are kept for the next ones, and in
//! segments of shared memory.

use std::{fs, os::unix::fs::MetadataExt, thread};

use executor::{
    Limits, Process,
    manager::{Event, List, Manager, ManagerError, Value},
    prelude::*,
};
use serde_bytes::ByteBuf;

use super::{Done, ends_killed, start};
use crate::support::{LONG, eventually, stop, watchdog};

/// Bytes of a value that fills the rings many times. glibc gives a block above 32 MiB back to the
/// system at once, so the server's memory tells what it keeps.
const LARGE: usize = 40 << 20;

/// Returns the resident memory of a process, in bytes.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

fn bytes(len: usize, seed: u8) -> ByteBuf {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed)
        .collect::<Vec<_>>()
        .into()
}

#[test]
fn values_around_every_limit_come_back_equal_whoever_sets_them() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(ByteBuf::new()).unwrap();
    // A tail, a part, a buffer that is kept, the ring.
    let limits = [16 << 10, 32 << 10, 48 << 10, 64 << 10, 128 << 10, 2 << 20];
    let mut before = ByteBuf::new();
    for limit in limits {
        // Headers and lengths have some ten bytes.
        for len in (limit - 40..=limit + 8).step_by(8).chain([limit - 3, limit - 27, limit + 1]) {
            let set = bytes(len, len as u8);
            // In turn by a request with a reply that has the previous value, and by one without.
            match len % 2 {
                0 => value.set(&set).unwrap(),
                _ => assert!(value.swap(&set).unwrap() == before, "{len}"),
            }
            assert!(value.get().unwrap() == set, "{len}");
            before = set;
        }
    }
}

/// The longest value that goes through the ring, encoded.
const SEGMENT_FROM: usize = 48 << 10;

/// Returns how much memory each client's segments have in a server, in bytes.
fn segments(pid: u32) -> Vec<u64> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // One may be closed meanwhile.
    let memory = files.filter_map(|file| {
        let path = file.ok()?.path();
        let name = fs::read_link(&path).ok()?;
        let is_one = name.to_str()?.contains("executor-values");
        is_one.then(|| Some(fs::metadata(&path).ok()?.blocks() * 512))?
    });
    memory.collect()
}

/// Returns how many descriptors a process has.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn values_around_the_limit_of_segments_come_back_equal_from_every_object() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(ByteBuf::new()).unwrap();
    let dict = manager.dict([(0, ByteBuf::new())]).unwrap();
    let list = manager.list([ByteBuf::new()]).unwrap();
    let queue = manager.queue::<(ByteBuf, List<ByteBuf>)>(Some(3)).unwrap();
    let namespace = manager.namespace().unwrap();
    assert_eq!(segments(manager.pid()), [] as [u64; 0], "nobody has asked for them");
    for len in [2 << 20].into_iter().chain(SEGMENT_FROM - 5..=SEGMENT_FROM + 2).chain([3 << 20, 7])
    {
        let set = bytes(len, len as u8);
        value.set(&set).unwrap();
        assert!(value.get().unwrap() == set, "{len}");
        assert!(value.swap(&ByteBuf::new()).unwrap() == set, "{len}");
        value.compare_exchange(&ByteBuf::new(), &set).unwrap().unwrap();
        assert!(manager.value(set.clone()).unwrap().get().unwrap() == set, "{len}");
        dict.insert(&0, &set).unwrap();
        assert!(dict.get_or_insert(&len, &set).unwrap() == set, "{len}");
        assert!(dict.values().unwrap().iter().all(|value| *value == set), "{len}");
        dict.remove(&len).unwrap();
        list.set(0, &set).unwrap();
        list.push(&set).unwrap();
        list.insert(1, &set).unwrap();
        assert!(list.snapshot().unwrap().iter().all(|item| *item == set), "{len}");
        list.pop().unwrap();
        list.pop().unwrap();
        namespace.set("large", &set).unwrap();
        assert!(namespace.get::<ByteBuf>("large").unwrap().unwrap() == set, "{len}");
        // With the handle of an object, which the server counts.
        queue.put(&(set.clone(), list.clone())).unwrap();
        let (item, named) = queue.get().unwrap();
        assert!(item == set && named.get(0).unwrap().unwrap() == set, "{len}");
        assert_eq!(manager.objects().unwrap(), 5, "{len}");
    }
    assert_eq!(segments(manager.pid()).len(), 1, "this process has them");
}

#[test]
fn values_that_are_no_bytes_and_those_that_cannot_be_encoded_use_segments_as_well() {
    #[derive(serde::Deserialize)]
    struct Half(ByteBuf);
    impl serde::Serialize for Half {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeTupleStruct;
            let mut fields = serializer.serialize_tuple_struct("Half", 2)?;
            fields.serialize_field(&self.0)?;
            Err(serde::ser::Error::custom("the other half"))
        }
    }
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let numbers: Vec<u64> = (0..200_000).map(|n| n * n).collect();
    let value = manager.value(numbers.clone()).unwrap();
    value.set(&numbers).unwrap();
    let halves = manager.list::<Half>([]).unwrap();
    for _ in 0..100 {
        // Each would take a segment of 64.
        let error = halves.push(&Half(bytes(1 << 20, 1))).unwrap_err();
        assert!(error.to_string().contains("the other half"), "{error}");
    }
    assert_eq!(segments(manager.pid()).len(), 1);
    let again: Vec<u64> = numbers.iter().map(|n| n + 1).collect();
    value.set(&again).unwrap();
    assert!(value.get().unwrap() == again);
    assert_eq!(halves.len().unwrap(), 0);
}

#[task]
fn sets_without_segments(len: usize) -> Done {
    // The server inherits this process's limit, and cannot make a file with room for segments.
    let manager = Manager::start()?;
    let value = manager.value(ByteBuf::new())?;
    for seed in 0..5 {
        let set = bytes(len, seed);
        value.set(&set)?;
        assert!(value.get()? == set);
    }
    assert_eq!(segments(manager.pid()).len(), 0);
    Ok(())
}

#[test]
fn without_segments_large_values_go_through_the_ring() {
    let _watchdog = watchdog();
    let limits = Limits::default().file_size(16 << 20);
    let task = sets_without_segments::task(2 << 20);
    Process::new(task).limits(limits).start().unwrap().join().unwrap();
}

/// Sets a value for which the server has no memory. Returns what the error says, and the value that
/// is read after that.
#[task]
fn sets_too_much(value: Value<ByteBuf>) -> Result<(String, ByteBuf), ManagerError> {
    let error = value.set(&bytes(300 << 20, 1)).unwrap_err();
    Ok((error.to_string(), value.get()?))
}

#[task]
fn one_of_two_clients_sets_too_much() -> Done {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let manager = Manager::start()?;
    let value = manager.value(bytes(10, 2))?;
    let status = fs::read_to_string(format!("/proc/{}/status", manager.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let has = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
    let limit = Some(has + (100 << 20));
    let server = Pid::from_raw(manager.pid() as i32);
    prlimit(server, Resource::As, Rlimit { current: limit, maximum: limit }).unwrap();
    for _ in 0..3 {
        let client = Process::new(sets_too_much::task(value.clone())).start().unwrap();
        let (error, read) = client.join().unwrap();
        assert!(error.contains("no memory in the server"), "{error}");
        assert!(read == bytes(10, 2), "by the same connection");
    }
    assert!(value.get()? == bytes(10, 2));
    Ok(())
}

#[test]
fn a_message_that_the_server_has_no_memory_for_is_refused_and_the_next_one_is_not() {
    let _watchdog = watchdog();
    // So it goes through the ring.
    let limits = Limits::default().file_size(16 << 20);
    let task = one_of_two_clients_sets_too_much::task();
    Process::new(task).limits(limits).start().unwrap().join().unwrap();
}

#[test]
fn segments_that_are_not_used_give_back_their_memory_and_can_be_used_again() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(ByteBuf::new()).unwrap();
    for round in 0..3 {
        let set = bytes(8 << 20, round);
        value.set(&set).unwrap();
        value.set(&set).unwrap();
        assert!(value.get().unwrap() == set);
        eventually("the memory of the segments is given back", || {
            segments(manager.pid()) == [4096]
        });
    }
    assert_eq!(value.get().unwrap().len(), 8 << 20, "the value is somewhere else");
}

#[test]
fn a_large_value_may_be_anywhere_in_an_answer() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let items: Vec<ByteBuf> =
        [3, 300_000, 0, 20_000, 20_000, 7, 100_000].map(|len| bytes(len, 1)).into();
    let list = manager.list(items.clone()).unwrap();
    assert!(list.snapshot().unwrap() == items);
    assert!(list.range(1..4).unwrap().unwrap() == items[1..4]);
    let dict = manager.dict(items.iter().cloned().enumerate()).unwrap();
    assert!(
        dict.get_many([&6, &9, &1, &0]).unwrap()
            == [Some(items[6].clone()), None, Some(items[1].clone()), Some(items[0].clone())]
    );
    let (_, last) = dict.pop().unwrap().unwrap();
    assert!(last == items[6]);
    let namespace = manager.namespace().unwrap();
    namespace.set("large", &items[1]).unwrap();
    namespace.set("large", &items[6]).unwrap();
    assert!(namespace.get::<ByteBuf>("large").unwrap().unwrap() == items[6]);
}

#[test]
fn threads_of_a_process_that_share_a_connection_get_their_own_large_values() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    thread::scope(|scope| {
        for seed in 0..4 {
            let value = manager.value(ByteBuf::new()).unwrap();
            scope.spawn(move || {
                for round in 0..20 {
                    let set = bytes(40_000 << (round % 5), seed ^ round);
                    value.set(&set).unwrap();
                    assert!(value.get().unwrap() == set, "{seed}, {round}");
                }
            });
        }
    });
}

#[task]
fn set_and_get_for_ever(value: Value<ByteBuf>, begun: Event) -> Done {
    let mine = bytes(LARGE, 7);
    value.set(&mine)?;
    begun.set()?;
    loop {
        value.set(&mine)?;
        assert!(value.get()? == mine);
    }
}

#[test]
fn memory_of_clients_that_are_killed_or_stopped_within_large_calls_comes_back() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(ByteBuf::new()).unwrap();
    let (before, whole) = (resident(manager.pid()), bytes(LARGE, 7));
    let files = descriptors(manager.pid());
    for round in 0..12 {
        let begun = manager.event().unwrap();
        let child = start(set_and_get_for_ever::task(value.clone(), begun.clone()));
        assert!(begun.wait_timeout(LONG).unwrap());
        if round % 3 == 0 {
            // The server serves others meanwhile.
            stop(child.pid());
            assert_eq!(value.get().unwrap().len(), LARGE);
        }
        child.kill().unwrap();
        ends_killed(&child);
        assert!(value.get().unwrap() == whole, "a whole one");
    }
    value.set(&ByteBuf::new()).unwrap();
    // Not that of twelve clients. The allocator may keep some of what it got in smaller blocks.
    eventually("the server has given back its memory", || {
        resident(manager.pid()) < before + 3 * LARGE
    });
    eventually("the server has closed the segments of the dead", || {
        // This process has segments, and has sent a handle.
        segments(manager.pid()).len() <= 1 && descriptors(manager.pid()) <= files + 2
    });
}

#[test]
fn a_server_with_nothing_to_do_keeps_no_memory_of_large_values() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(ByteBuf::new()).unwrap();
    let before = resident(manager.pid());
    // The allocator keeps the smaller ones, unless it is told not to.
    for len in [LARGE, LARGE / 2, LARGE / 4] {
        let idle = resident(manager.pid());
        for _ in 0..3 {
            value.set(&bytes(len, 1)).unwrap();
            value.get().unwrap();
        }
        assert!(resident(manager.pid()) >= idle + len / 2, "it has the value");
        value.set(&ByteBuf::new()).unwrap();
        eventually("the server has given back its memory", || {
            resident(manager.pid()) < before + (LARGE / 8)
        });
    }
}

/// Sets a large value again and again, in two threads, and counts how often.
#[task]
fn hog(value: Value<ByteBuf>, count: executor::Value<u64>) -> Done {
    let large = bytes(LARGE, 3);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while value.set(&large).is_ok() {
                    count.fetch_add(1);
                }
            });
        }
    });
    Ok(())
}

#[test]
fn a_client_that_sets_large_values_holds_up_no_other_for_more_than_a_few_of_them() {
    const CALLS: u64 = 20;
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (value, list) = (manager.value(ByteBuf::new()).unwrap(), manager.list([1]).unwrap());
    let count = executor::Value::new(0_u64).unwrap();
    let child = start(hog::task(value, count.clone()));
    let mut during = 0;
    for _ in 0..CALLS {
        // This process sleeps meanwhile, so the server has to look for its next call.
        let before = count.get();
        eventually("the others go on", || count.get() >= before + 2);
        let begun = count.get();
        assert_eq!(list.len().unwrap(), 1);
        during += count.get() - begun;
    }
    assert!(during < CALLS * 8, "{during} sets during {CALLS} calls");
    child.kill().unwrap();
    ends_killed(&child);
}

/// Uses up its descriptors, and then sends and receives large values.
#[task]
fn uses_large_values_without_a_descriptor(value: Value<ByteBuf>) -> Done {
    value.set(&ByteBuf::new())?;
    let mut held = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        held.push(file);
    }
    for seed in 0..5 {
        let set = bytes(200_000, seed);
        value.set(&set)?;
        assert!(value.get()? == set);
    }
    Ok(())
}

#[test]
fn a_client_without_a_descriptor_for_segments_keeps_its_connection() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(ByteBuf::new()).unwrap();
    let task = uses_large_values_without_a_descriptor::task(value.clone());
    let limits = Limits::default().open_files(40);
    Process::new(task).limits(limits).start().unwrap().join().unwrap();
    assert_eq!(value.get().unwrap().len(), 200_000);
}
