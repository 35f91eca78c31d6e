//! Values, arrays, memory and lists that processes share, used by tasks.

use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

use bytemuck::{Pod, Zeroable};
use executor::{
    Array, Barrier, Event, ListItem, Lock, RawArray, RawValue, RecvError, ShareableList,
    SharedMemory, SharedMemoryScope, TooLarge, Value, prelude::*,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::support::{
    LONG, descriptors, eventually, memory_to_spare, named_file, pool, watchdog, watchdog_of,
};

const SHORT: Duration = Duration::from_millis(20);

#[task]
fn add_often(value: Value<u64>, times: u32) {
    for _ in 0..times {
        value.update(|value| *value += 1);
    }
}

#[task]
fn fetch_add_often(value: RawValue<u64>, times: u32) {
    for _ in 0..times {
        value.fetch_add(1);
    }
}

#[test]
fn sv10_the_sum_is_exact_when_many_processes_add() {
    let _watchdog = watchdog();
    let pool = pool(10);
    let (value, raw) = (Value::new(0_u64).unwrap(), RawValue::new(0_u64).unwrap());
    let locked: Vec<_> =
        (0..10).map(|_| pool.submit(add_often::task(value.clone(), 1000))).collect();
    let atomic: Vec<_> =
        (0..10).map(|_| pool.submit(fetch_add_often::task(raw.clone(), 1000))).collect();
    for future in locked.into_iter().chain(atomic) {
        future.result().unwrap();
    }
    assert_eq!(value.get(), 10_000);
    assert_eq!(raw.get(), 10_000);
}

#[task]
fn give_back(values: Vec<(Value<i32>, Lock)>) -> Vec<(Value<i32>, Lock)> {
    values
}

#[test]
fn objects_that_come_back_from_a_task_are_the_same_objects() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let shared = Lock::new().unwrap();
    let values: Vec<_> =
        (0..100).map(|i| (Value::with_lock(i, &shared).unwrap(), shared.clone())).collect();
    let back = pool.submit(give_back::task(values.clone())).result().unwrap();
    assert_eq!(back, values);
    assert!(values[0] != values[1]);
}

/// Kills this process with SIGKILL, as another process would.
fn die() -> ! {
    // SAFETY: only sends a signal to this process itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("it was killed")
}

// ---- values -------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Particle {
    position: [f64; 3],
    kind: u32,
    alive: u32,
}

const STILL: Particle = Particle { position: [1.0, 2.0, 3.0], kind: 4, alive: 1 };
const MOVED: Particle = Particle { position: [9.0, 8.0, 7.0], kind: 6, alive: 0 };

type Raw =
    (RawValue<i32>, RawValue<f64>, RawValue<i16>, RawValue<i64>, RawValue<u8>, RawValue<Particle>);

#[task]
fn change_all(
    (a, b, c, d): (Value<i32>, Value<f64>, Value<i16>, Value<i64>),
    byte: Value<u8>,
    particle: Value<Particle>,
    raw: Raw,
) {
    a.set(-7);
    b.set(2.5);
    *c.lock().unwrap() = -300;
    d.update(|value| *value = value.checked_sub(1).expect("more than the least"));
    byte.set(255);
    particle.set(MOVED);
    raw.0.set(-7);
    raw.1.set(2.5);
    raw.2.set(-300);
    raw.3.fetch_add(-1);
    raw.4.set(255);
    raw.5.set(MOVED);
}

#[test]
fn sv01_a_task_changes_values_of_all_types() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let locked = (
        Value::new(7_i32).unwrap(),
        Value::new(3.5_f64).unwrap(),
        Value::new(-232_i16).unwrap(),
        Value::new(i64::MIN).unwrap(),
    );
    let (byte, particle) = (Value::new(b'x').unwrap(), Value::new(STILL).unwrap());
    let raw = (
        RawValue::new(7_i32).unwrap(),
        RawValue::new(3.5_f64).unwrap(),
        RawValue::new(-232_i16).unwrap(),
        RawValue::new(i64::MIN).unwrap(),
        RawValue::new(b'x').unwrap(),
        RawValue::new(STILL).unwrap(),
    );
    assert_eq!(
        (locked.0.get(), locked.1.get(), locked.2.get(), locked.3.get()),
        (7, 3.5, -232, i64::MIN)
    );
    assert_eq!((byte.get(), particle.get(), raw.4.get(), raw.5.get()), (b'x', STILL, b'x', STILL));
    let task = change_all::task(locked.clone(), byte.clone(), particle.clone(), raw.clone());
    // The value is the least number, so `update` panics in the worker and changes nothing.
    assert!(pool.submit(task).result().is_err());
    assert_eq!(locked.3.get(), i64::MIN);
    locked.3.set(0);
    raw.3.set(0);
    let task = change_all::task(locked.clone(), byte.clone(), particle.clone(), raw.clone());
    pool.submit(task).result().unwrap();
    assert_eq!(
        (locked.0.get(), locked.1.get(), locked.2.get(), locked.3.get()),
        (-7, 2.5, -300, -1)
    );
    assert_eq!((byte.get(), particle.get()), (255, MOVED));
    assert_eq!((raw.0.get(), raw.1.get(), raw.2.get(), raw.3.get()), (-7, 2.5, -300, -1));
    assert_eq!((raw.4.get(), raw.5.get()), (255, MOVED));
}

/// Runs a closure in another thread.
fn elsewhere<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn sv02_a_value_has_its_own_lock_or_the_given_one() {
    let (own, other) = (Value::new(1_u32).unwrap(), Value::new(1_u32).unwrap());
    assert_eq!(own.get_lock(), own.clone().get_lock());
    assert_ne!(own.get_lock(), other.get_lock());
    let guard = own.lock().unwrap();
    assert!(
        own.get_lock().is_locked() && own.try_lock().is_none() && !other.get_lock().is_locked()
    );
    assert!(own.lock_timeout(Duration::from_millis(5)).is_none());
    drop(guard);
    let shared = Lock::new().unwrap();
    let (a, b) =
        (Value::with_lock(1_u32, &shared).unwrap(), Value::with_lock(2_u32, &shared).unwrap());
    assert!(*a.get_lock() == shared && a.get_lock() == b.get_lock() && a != b);
    let guard = a.lock().unwrap();
    assert!(shared.is_locked() && elsewhere(|| b.try_lock().is_none()));
    drop(guard);
    // A `RawValue` has no lock: there is no method to ask it for one.
}

#[test]
fn sv07_a_copy_of_a_struct_does_not_change_with_the_original() {
    let value = Value::new(STILL).unwrap();
    let copy = Value::new(value.get()).unwrap();
    value.lock().unwrap().position[0] = 5.0;
    assert_eq!(copy.get(), STILL);
    assert_eq!(value.get(), Particle { position: [5.0, 2.0, 3.0], ..STILL });
}

#[test]
fn freed_blocks_are_zero_when_they_are_used_again() {
    for round in 0..100 {
        let arrays: Vec<_> = (0..20).map(|_| RawArray::<u64>::zeroed(50).unwrap()).collect();
        for array in &arrays {
            assert_eq!(array.copy_to_vec(), [0; 50], "{round}");
            array.copy_from_slice(0, &[u64::MAX; 50]);
        }
    }
}

#[test]
fn sv09_threads_that_make_and_drop_objects_do_not_block_each_other() {
    let _watchdog = watchdog();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for len in 0..2_000_usize {
                    let values =
                        (Value::new(len).unwrap(), RawArray::<u8>::zeroed(len % 300).unwrap());
                    assert_eq!((values.0.get(), values.1.copy_to_vec()), (len, vec![0; len % 300]));
                }
            });
        }
    });
}

// ---- arrays -------------------------------------------------------------------------------------

#[task]
fn change_array(array: Array<i32>, raw: RawArray<i32>) -> (Vec<i32>, Vec<i32>) {
    let before = (array.copy_to_vec(), raw.copy_to_vec());
    array.write().unwrap()[2..4].copy_from_slice(&[50, 60]);
    array.set(9, -1);
    raw.copy_from_slice(2, &[50, 60]);
    raw.set(9, -1);
    before
}

#[test]
fn sv03_parent_and_task_see_the_same_array() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let numbers: Vec<i32> = (0..10).map(|i| i * i).collect();
    let (array, raw) =
        (Array::from_slice(&numbers).unwrap(), RawArray::from_slice(&numbers).unwrap());
    assert_eq!(
        (array.len(), array.get(3), &array.read().unwrap()[4..7]),
        (10, 9, &[16, 25, 36][..])
    );
    array.set(0, 7);
    array.write().unwrap()[5..].sort_by_key(|number| -number);
    raw.copy_from_slice(0, &array.copy_to_vec());
    let expected = [7, 1, 4, 9, 16, 81, 64, 49, 36, 25];
    let before = pool.submit(change_array::task(array.clone(), raw.clone())).result().unwrap();
    assert_eq!(before, (expected.to_vec(), expected.to_vec()));
    let expected = [7, 1, 50, 60, 16, 81, 64, 49, 36, -1];
    assert_eq!((array.copy_to_vec(), raw.copy_to_vec()), (expected.to_vec(), expected.to_vec()));
    assert_eq!((raw.get(9), raw.len()), (-1, 10));
    assert!(Array::<u8>::zeroed(0).unwrap().is_empty());
    assert_eq!(Array::<f64>::zeroed(usize::MAX).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
}

#[test]
fn an_index_out_of_range_panics() {
    let (array, raw) = (Array::<u8>::zeroed(3).unwrap(), RawArray::<u8>::zeroed(3).unwrap());
    let panics =
        |act: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_err();
    assert!(panics(&|| _ = array.get(3)) && panics(&|| array.set(3, 1)));
    assert!(panics(&|| _ = raw.get(3)) && panics(&|| raw.set(3, 1)));
    assert!(
        panics(&|| raw.copy_from_slice(2, &[1, 2]))
            && panics(&|| raw.copy_from_slice(usize::MAX, &[1]))
    );
}

#[test]
fn sv05_an_array_has_its_own_lock_or_the_given_one() {
    let own = Array::<u8>::zeroed(5).unwrap();
    let guard = own.write().unwrap();
    assert!(own.get_lock().is_locked() && own.try_read().is_none() && own.try_write().is_none());
    drop(guard);
    let shared = Lock::new().unwrap();
    let (a, b) = (
        Array::<u8>::zeroed_with_lock(5, &shared).unwrap(),
        Array::<u8>::zeroed_with_lock(5, &shared).unwrap(),
    );
    assert!(*a.get_lock() == shared && a.get_lock() == b.get_lock() && a != b);
    let guard = a.write().unwrap();
    assert!(shared.is_locked() && elsewhere(|| b.try_read().is_none()));
    drop(guard);
}

#[task]
fn read_together(array: Array<u64>, together: Barrier) -> u64 {
    let guard = array.read().unwrap();
    // All readers are here at the same time, or the barrier never opens.
    together.wait_timeout(LONG).unwrap();
    guard.iter().sum()
}

#[task]
fn read_and_die(array: Array<u64>, reading: Event) {
    let _guard = array.read().unwrap();
    reading.set();
    thread::sleep(Duration::from_millis(50));
    die();
}

#[task]
fn write_and_die(array: Array<u64>) {
    array.write().unwrap()[0] = 1;
    let mut guard = array.write().unwrap();
    guard[1] = 1;
    die();
}

#[test]
fn many_processes_read_or_one_writes_and_a_death_blocks_no_other() {
    let _watchdog = watchdog();
    let pool = pool(3);
    let (array, together) = (Array::from_slice(&[1_u64; 1000]).unwrap(), Barrier::new(4).unwrap());
    let sums: Vec<_> =
        (0..3).map(|_| pool.submit(read_together::task(array.clone(), together.clone()))).collect();
    assert_eq!(read_together(array.clone(), together), 1000);
    for sum in sums {
        assert_eq!(sum.result().unwrap(), 1000);
    }
    let guard = array.read().unwrap();
    assert!(array.try_write().is_none() && array.write_timeout(Duration::from_millis(5)).is_none());
    assert!(array.try_read().is_some());
    drop(guard);
    let reading = Event::new().unwrap();
    let dies = pool.submit(read_and_die::task(array.clone(), reading.clone()));
    assert!(reading.wait_timeout(LONG));
    array.set(0, 5);
    assert!(dies.result().is_err());
    assert!(pool.submit(write_and_die::task(array.clone())).result().is_err());
    assert_eq!(array.get(1), 1);
    assert!(array.read().is_err() && array.write().is_err());
    assert_eq!(array.copy_to_vec()[..3], [1, 1, 1]);
    drop(array.read().unwrap_err().into_guard());
    drop((array.read().unwrap(), array.read().unwrap()));
    drop(array.write().unwrap());
}

/// Returns this process's proportional share of the memory of shared objects, in bytes.
fn pss() -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut ours, mut sum) = (false, 0);
    for line in maps.lines() {
        if line.contains(" rw-s ")
            || line.contains(" r--s ")
            || line.contains("p ") && line.contains('-')
        {
            ours = line.contains("memfd:executor-object ");
        }
        if let Some(rest) = line.strip_prefix("Pss:")
            && ours
        {
            sum += rest.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024;
        }
    }
    sum
}

#[task]
fn sum_and_pss(array: Array<u64>, together: Barrier) -> (u64, u64) {
    let guard = array.read().unwrap();
    let sum = guard.iter().sum();
    // All eight workers have mapped and touched the whole array.
    together.wait_timeout(LONG).unwrap();
    let pss = pss();
    together.wait_timeout(LONG).unwrap();
    (sum, pss)
}

#[test]
fn a_large_array_shared_by_eight_tasks_is_in_memory_once() {
    let _watchdog = watchdog_of(Duration::from_secs(600));
    let leave = memory_to_spare(4);
    let bytes = if leave.is_some() { 1_usize << 30 } else { 64 << 20 };
    let pool = pool(8);
    let (array, together) = (Array::<u64>::zeroed(bytes / 8).unwrap(), Barrier::new(9).unwrap());
    array.write().unwrap().fill(3);
    let tasks: Vec<_> =
        (0..8).map(|_| pool.submit(sum_and_pss::task(array.clone(), together.clone()))).collect();
    together.wait_timeout(LONG).unwrap();
    let mut all = pss();
    together.wait_timeout(LONG).unwrap();
    for task in tasks {
        let (sum, pss) = task.result().unwrap();
        assert_eq!(sum, 3 * bytes as u64 / 8);
        assert!(pss < bytes as u64 / 4, "{pss} of {bytes}");
        all += pss;
    }
    println!("{bytes} bytes, in nine processes {all}");
    // The shared objects of other tests in this program are small.
    assert!(all >= bytes as u64 / 10 * 9 && all <= bytes as u64 / 10 * 12, "{all} of {bytes}");
}

#[cfg(feature = "ndarray")]
#[test]
fn an_array_is_viewed_as_a_matrix_in_place() {
    let array = Array::<f64>::zeroed(6).unwrap();
    let mut guard = array.write().unwrap();
    guard.view_mut((2, 3)).unwrap()[[1, 0]] = 5.0;
    assert!(guard.view((7,)).is_err());
    drop(guard);
    let guard = array.read().unwrap();
    let matrix = guard.view((2, 3)).unwrap();
    assert_eq!((matrix.row(0).sum(), matrix.row(1).sum()), (0.0, 5.0));
    assert_eq!(matrix.as_ptr(), array.as_ptr().cast_const());
}

// ---- memory -------------------------------------------------------------------------------------

/// Returns a name for this test. It contains the pid, because a file of an earlier run may still
/// exist.
fn name(what: &str) -> String {
    format!("test-{}-{what}", std::process::id())
}

fn there_is(name: &str) -> bool {
    named_file(name).is_some()
}

#[test]
fn sh01_an_invalid_name_is_rejected() {
    let kind = |result: io::Result<SharedMemory>| result.unwrap_err().kind();
    for bad in ["a\0b", "a/b", "", &"x".repeat(300)] {
        assert_eq!(
            kind(SharedMemory::create_named(bad, 10)),
            io::ErrorKind::InvalidInput,
            "{bad:?}"
        );
        assert_eq!(kind(SharedMemory::attach(bad)), io::ErrorKind::InvalidInput, "{bad:?}");
    }
}

#[test]
fn sh02_a_handle_attached_by_name_sees_what_another_handle_writes() {
    let name = name("sh02");
    let memory = SharedMemory::create_named(&name, 1000).unwrap();
    assert!(memory.len() >= 1000);
    let attached = SharedMemory::attach(&name).unwrap();
    assert_eq!((attached.len(), attached.name(), &attached), (memory.len(), Some(name), &memory));
    memory.write(3, b"hello, you");
    let mut bytes = [0; 12];
    attached.read(2, &mut bytes);
    assert_eq!(&bytes, b"\0hello, you\0");
    attached.write(4, b"a");
    memory.read(3, &mut bytes[..5]);
    assert_eq!(&bytes[..5], b"hallo");
    // SAFETY: the range is within the memory, and nothing writes to it meanwhile.
    assert_eq!(unsafe { std::slice::from_raw_parts(memory.as_ptr().add(3), 5) }, b"hallo");
    assert!(memory.as_ptr().cast::<[u64; 8]>().is_aligned());
}

#[test]
fn sh03_a_name_can_only_be_created_once_and_removed_once() {
    let name = name("sh03");
    let memory = SharedMemory::create_named(&name, 1).unwrap();
    let kind = |result: io::Result<SharedMemory>| result.unwrap_err().kind();
    assert_eq!(kind(SharedMemory::create_named(&name, 1)), io::ErrorKind::AlreadyExists);
    memory.unlink().unwrap();
    assert_eq!(memory.unlink().unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(kind(SharedMemory::attach(&name)), io::ErrorKind::NotFound);
    // The name is free for other memory, which the first handle does not remove.
    let second = SharedMemory::create_named(&name, 1).unwrap();
    assert_eq!(memory.unlink().unwrap_err().kind(), io::ErrorKind::NotFound);
    drop(memory);
    assert_eq!(SharedMemory::attach(&name).unwrap(), second);
    drop(second);
    assert!(!there_is(&name));
    assert_eq!(
        SharedMemory::create(1).unwrap().unlink().unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}

#[test]
fn sh05_a_size_of_zero_a_huge_size_and_an_empty_name_are_rejected() {
    let kind = |result: io::Result<SharedMemory>| result.unwrap_err().kind();
    assert_eq!(kind(SharedMemory::create(0)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(SharedMemory::create(usize::MAX)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(SharedMemory::create_named(&name("sh05"), 0)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(SharedMemory::create_named("", 1)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(SharedMemory::attach("")), io::ErrorKind::InvalidInput);
    // A size beyond the machine's memory is an error here, and no process is killed for it.
    assert_eq!(kind(SharedMemory::create(1 << 50)), io::ErrorKind::OutOfMemory);
    assert_eq!(
        kind(SharedMemory::create_named(&name("sh05"), 1 << 50)),
        io::ErrorKind::OutOfMemory
    );
}

#[task]
fn write_by_name(name: &str, at: usize) -> io::Result<()> {
    SharedMemory::attach(name)?.write(at, b"child");
    Ok(())
}

#[task]
fn write_by_handle(memory: SharedMemory, at: usize) {
    memory.write(at, b"child");
}

#[test]
fn sh07_a_task_writes_to_memory_by_name_or_by_handle() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let name = name("sh07");
    let (named, unnamed) =
        (SharedMemory::create_named(&name, 100).unwrap(), SharedMemory::create(100).unwrap());
    pool.submit(write_by_name::task(&name, 10)).result().unwrap();
    pool.submit(write_by_handle::task(named.clone(), 20)).result().unwrap();
    pool.submit(write_by_handle::task(unnamed.clone(), 10)).result().unwrap();
    assert_eq!(&named.read_to_vec()[10..25], b"child\0\0\0\0\0child");
    assert_eq!(&unnamed.read_to_vec()[10..15], b"child");
    // A handle carries the memory itself, and not only its name.
    named.unlink().unwrap();
    pool.submit(write_by_handle::task(named.clone(), 30)).result().unwrap();
    assert_eq!(&named.read_to_vec()[30..35], b"child");
    let error = pool.submit(write_by_name::task(&name, 0)).result().unwrap_err().to_string();
    assert!(error.contains("entity not found"), "{error}");
}

#[test]
fn sh09_a_scope_removes_all_its_names() {
    let mut scope = SharedMemoryScope::new();
    let memories: Vec<_> = (0..3).map(|_| scope.create(100).unwrap()).collect();
    let list = scope.list([1, 2, 3]).unwrap();
    memories[0].unlink().unwrap();
    let names: Vec<_> =
        memories.iter().map(SharedMemory::name).chain([list.name()]).flatten().collect();
    assert_eq!(names.len(), 4);
    assert!(names[1..].iter().all(|name| there_is(name)));
    assert_eq!(ShareableList::attach(&names[3]).unwrap(), list);
    drop(scope);
    assert!(!names.iter().any(|name| there_is(name)));
    // The shared memory itself still exists.
    assert_eq!(list.get(1), Some(2.into()));
}

#[task]
fn attach_and_own(name: &str, owned: Event, release: Event) {
    let memory = SharedMemory::attach(name).unwrap();
    memory.own().unwrap();
    owned.set();
    assert!(release.wait_timeout(LONG));
}

#[test]
fn sh17_owned_memory_loses_its_name_when_its_last_owner_ends() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let name = name("sh17");
    let (owned, release) = (Event::new().unwrap(), Event::new().unwrap());
    let memory = SharedMemory::create_named(&name, 1).unwrap();
    let owns = pool.submit(attach_and_own::task(&name, owned.clone(), release.clone()));
    assert!(owned.wait_timeout(LONG));
    drop(memory);
    assert!(there_is(&name), "the child owns it");
    release.set();
    owns.result().unwrap();
    assert!(!there_is(&name));
}

#[task]
fn make_names_and_die(names: Vec<String>) {
    let memories: Vec<_> =
        names.iter().map(|name| SharedMemory::create_named(name, 1).unwrap()).collect();
    memories[0].unlink().unwrap();
    let _persistent = memories[2].clone().persistent().unwrap();
    die();
}

#[test]
fn rt01_the_names_of_a_killed_process_are_removed_by_attach_or_sweep() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let names: Vec<_> = ["removed", "left", "persistent"].map(name).into();
    assert!(pool.submit(make_names_and_die::task(names.clone())).result().is_err());
    let exist = || names.iter().map(|name| there_is(name)).collect::<Vec<_>>();
    // The kernel releases a dead process's locks before the process can be reaped. Other tests
    // sweep as well.
    assert_eq!(SharedMemory::attach(&names[1]).unwrap_err().kind(), io::ErrorKind::NotFound);
    SharedMemory::sweep();
    assert_eq!(exist(), [false, false, true]);
    let persistent = SharedMemory::attach(&names[2]).unwrap();
    persistent.unlink().unwrap();
    assert_eq!(exist(), [false; 3]);
}

#[test]
fn rt04_a_name_that_is_too_long_is_an_error() {
    let error = SharedMemory::create_named(&"n".repeat(250), 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

// ---- lists --------------------------------------------------------------------------------------

fn items() -> Vec<ListItem> {
    vec![
        "howdy".into(),
        b"bytes"[..].into(),
        (-273.15).into(),
        100.into(),
        ().into(),
        true.into(),
        42_i64.into(),
    ]
}

#[task]
fn change_list(list: ShareableList) -> Vec<String> {
    list.set(0, "hello").unwrap();
    list.to_vec().iter().map(|item| format!("{item:?}")).collect()
}

#[test]
fn sh13_a_copied_list_is_independent_and_another_handle_is_not() {
    let _watchdog = watchdog();
    let (first, second) = (name("sh13-first"), name("sh13-second"));
    let list = ShareableList::create_named(&first, items()).unwrap();
    assert_eq!((list.to_vec(), list.len()), (items(), 7));
    assert_eq!(list.format(), "8s 8p d q x ? q");
    assert_eq!(
        (list.count("howdy"), list.count(7), list.index(-273.15), list.index(7)),
        (1, 0, Some(2), None)
    );
    let (copy, other) = (list.copy_named(&second).unwrap(), ShareableList::attach(&first).unwrap());
    list.set(3, "text").unwrap();
    assert_eq!((other.get(3), copy.get(3)), (Some("text".into()), Some(100.into())));
    assert_eq!(list.set(3, "more than 8"), Err(TooLarge { len: 11, capacity: 8 }));
    list.set(0, ListItem::None).unwrap();
    assert_eq!(list.format(), "x 8p d 8s x ? q");
    assert_eq!(other.get(7), None);
    let pool = pool(1);
    let seen = pool.submit(change_list::task(list.clone())).result().unwrap();
    assert_eq!(seen[..2], [r#"Str("hello")"#, "Bytes([98, 121, 116, 101, 115])"]);
    assert_eq!(list.get(0), Some("hello".into()));
    let unnamed = copy.copy().unwrap();
    pool.submit(change_list::task(unnamed.clone())).result().unwrap();
    assert_eq!(unnamed.get(0), Some("hello".into()));
    assert_eq!(copy.get(0), Some("howdy".into()));
    let empty = ShareableList::new(Vec::<ListItem>::new()).unwrap();
    assert!(
        empty.is_empty()
            && empty.get(0).is_none()
            && empty.format().is_empty()
            && empty.count(1) == 0
    );
}

#[test]
fn sh14_only_the_name_of_a_named_list_is_serialized() {
    let sizes = [10, 400].map(|len| {
        let list = ShareableList::create_named(&name(&format!("sh14-{len:03}")), 0..len).unwrap();
        let text = serde_json::to_string(&list).unwrap();
        let again: ShareableList = serde_json::from_str(&text).unwrap();
        assert_eq!((&again, again.len()), (&list, len as usize));
        text.len()
    });
    assert_eq!(sizes[0], sizes[1]);
}

// ---- all of them --------------------------------------------------------------------------------

fn refused<T: Serialize + DeserializeOwned>(object: &T, what: &str) {
    let error = serde_json::to_string(object).unwrap_err().to_string();
    assert!(
        error.contains(what) && error.contains("arguments and results of tasks only"),
        "{error}"
    );
}

#[test]
fn another_serializer_rejects_shared_objects_with_a_reason() {
    refused(&Value::new(1).unwrap(), "a Value");
    refused(&RawValue::new(1).unwrap(), "a RawValue");
    refused(&Array::from_slice(&[1]).unwrap(), "an Array");
    refused(&RawArray::from_slice(&[1]).unwrap(), "a RawArray");
    refused(&SharedMemory::create(1).unwrap(), "a SharedMemory");
    refused(&ShareableList::new([1]).unwrap(), "a ShareableList");
}

#[task]
fn make(times: u64) -> Vec<(Value<u64>, Array<u64>)> {
    let make = |i| (Value::new(i).unwrap(), Array::from_slice(&[i; 3]).unwrap());
    (0..times).map(make).collect()
}

#[test]
fn objects_made_by_a_task_outlive_its_worker() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let made = pool.submit(make::task(100)).result().unwrap();
    pool.shutdown(true);
    let started = Instant::now();
    for (i, (value, array)) in (0..).zip(&made) {
        assert_eq!((value.get(), array.copy_to_vec()), (i, vec![i; 3]));
        value.set(1);
    }
    assert!(started.elapsed() < LONG);
}

#[task]
fn descriptors_after(objects: Vec<(Value<u64>, Array<u64>)>) -> (usize, usize) {
    let with = descriptors();
    drop(objects);
    (with, descriptors())
}

#[test]
fn objects_received_one_by_one_share_descriptors_and_release_them() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let before = pool.submit(descriptors_after::task(Vec::new())).result().unwrap().1;
    let objects: Vec<_> =
        (0..300).flat_map(|_| pool.submit(make::task(1)).result().unwrap()).collect();
    let (with, after) = pool.submit(descriptors_after::task(objects)).result().unwrap();
    // These are the worker's descriptors. It received 600 objects in segments of 64 KiB.
    assert!(with < before + 20, "{before}, {with}, {after}");
    eventually("all but the current segment is gone", || {
        pool.submit(descriptors_after::task(Vec::new())).result().unwrap().1 <= before + 2
    });
}

/// Sends a handle through a pipe, and receives it as a handle of another type.
fn arrives_as<A: Serialize, B: DeserializeOwned>(sent: &A) -> Result<B, RecvError> {
    let (a, b) = executor::pipe::<(), ()>().unwrap();
    a.with_types::<A, ()>().send(sent).unwrap();
    b.with_types::<(), B>().recv()
}

#[track_caller]
fn assert_is_refused<A: Serialize, B: DeserializeOwned>(sent: &A) {
    let error = arrives_as::<A, B>(sent).map(drop).unwrap_err();
    assert!(error.to_string().contains("something else"), "{error}");
}

#[test]
fn memory_does_not_arrive_as_an_object_with_another_type_of_access() {
    let raw = RawArray::<u64>::zeroed(4).unwrap();
    assert_is_refused::<_, RawArray<[u8; 8]>>(&raw);
    assert_is_refused::<_, RawArray<[u32; 2]>>(&raw);
    // The same total length and alignment, but elements of another size.
    let raw = RawArray::<u32>::zeroed(4).unwrap();
    assert_is_refused::<_, RawArray<u64>>(&raw);
    assert_is_refused::<_, RawArray<[u32; 2]>>(&raw);
    let array = Array::<u64>::zeroed(4).unwrap();
    assert_is_refused::<_, Array<[u8; 8]>>(&array);
    assert_is_refused::<_, Array<[u16; 4]>>(&array);
    let value = Value::new(7_u64).unwrap();
    assert_is_refused::<_, Value<[u8; 8]>>(&value);
    let raw_value = RawValue::new(7_u64).unwrap();
    assert_is_refused::<_, RawValue<[u32; 2]>>(&raw_value);
    // The same in a process that does not have this memory yet.
    let pool = pool(1);
    for other in [
        pool.submit(takes_bytes::task(Mistaken(RawArray::<u64>::zeroed(4).unwrap()))),
        pool.submit(takes_bytes::task(Mistaken(RawArray::<u64>::zeroed(4000).unwrap()))),
    ] {
        let error = other.result().unwrap_err();
        assert!(error.to_string().contains("something else"), "{error}");
    }
    // Different kinds of objects are rejected, too.
    let memory = SharedMemory::create(64).unwrap();
    assert_is_refused::<_, ShareableList>(&memory);
    // Raw parts of an object are sent in the place of the object. The receiver must check what the
    // memory contains.
    let raw_number = RawValue::new(7_u64).unwrap();
    assert_is_refused::<_, Value<u64>>(&(None::<Lock>, &raw_number));
    assert_is_refused::<_, Value<u64>>(&(None::<Lock>, Lock::new().unwrap()));
    assert_is_refused::<_, Array<u64>>(&(None::<Lock>, &raw_number, 1_u64));
    assert_is_refused::<_, RawArray<u64>>(&(&raw_number, 1_u64));
    assert_is_refused::<_, Lock>(&raw_number);
    // Types with the same kind of access share the memory.
    let other = arrives_as::<_, Array<u64>>(&array).unwrap();
    other.set(3, 8);
    assert_eq!((array.get(3), other.len()), (8, 4));
    let other = arrives_as::<_, Value<u64>>(&value).unwrap();
    other.set(9);
    assert_eq!(value.get(), 9);
    pool.submit(adds_one::task(array.clone(), value.clone())).result().unwrap();
    assert_eq!((array.get(3), value.get()), (9, 10));
    let floats =
        arrives_as::<_, RawArray<f32>>(&RawArray::from_slice(&[1.5_f32.to_bits()]).unwrap())
            .unwrap();
    assert_eq!(floats.get(0), 1.5);
}

/// Runs `act` on another thread and returns whether it panicked. Fails if it hangs.
#[track_caller]
fn panics_soon(what: &str, act: impl FnOnce() + Send + 'static) -> bool {
    let (sender, ended) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        sender.send(ended.is_err()).unwrap();
    });
    ended.recv_timeout(LONG / 3).unwrap_or_else(|_| panic!("it waits for itself: {what}"))
}

#[test]
fn the_thread_that_holds_a_values_lock_can_use_the_value() {
    let own = Value::new(0_i32).unwrap();
    let given = Value::with_lock(0_i32, &Lock::new().unwrap()).unwrap();
    for value in [own, given] {
        let panicked = panics_soon("value", move || {
            let guard = value.get_lock().acquire().unwrap();
            value.set(value.get() + 1);
            assert_eq!(value.fetch_add(1), 1);
            // Also within an update, and with a guard of its own.
            value.update(|number| *number += value.get());
            *value.lock().unwrap() += 1;
            assert_eq!(value.get(), 5);
            assert!(value.get_lock().is_locked());
            let other = value.clone();
            assert!(thread::spawn(move || other.try_lock().is_none()).join().unwrap());
            drop(guard);
            assert!(!value.get_lock().is_locked());
        });
        assert!(!panicked);
    }
}

#[test]
fn a_values_lock_is_reentrant_and_free_when_all_its_guards_are_gone() {
    let value = Value::new(0_u64).unwrap();
    let panicked = panics_soon("lock", move || {
        let outer = value.get_lock().acquire().unwrap();
        let inner = value.get_lock().acquire_timeout(LONG).unwrap().unwrap();
        let last = value.get_lock().try_acquire().unwrap().unwrap();
        drop(outer);
        let other = value.clone();
        let is_free = move || other.get_lock().try_acquire().is_some();
        // A guard can be dropped on another thread. The lock is released with the last guard.
        thread::scope(|scope| {
            scope.spawn(move || drop(inner));
        });
        assert!(!thread::spawn(is_free.clone()).join().unwrap());
        drop(last);
        assert!(thread::spawn(is_free).join().unwrap());
    });
    assert!(!panicked);
}

#[test]
fn a_thread_that_has_a_guard_of_a_value_panics_instead_of_waiting_for_itself() {
    let acts: [fn(&Value<u32>); 5] = [
        |value| _ = value.get(),
        |value| value.set(1),
        |value| value.update(|number| *number += 1),
        |value| drop(value.lock()),
        |value| value.update(|_| std::mem::forget(value.lock())),
    ];
    for (number, act) in acts.into_iter().enumerate() {
        let value = Value::new(0_u32).unwrap();
        let panicked = panics_soon("value", move || {
            let guard = (number < 4).then(|| value.lock().unwrap());
            act(&value);
            drop(guard);
        });
        assert!(panicked, "act {number}");
    }
    let value = Value::new(0_u32).unwrap();
    let panicked = panics_soon("value", move || {
        let guard = value.lock().unwrap();
        assert!(value.try_lock().is_none() && value.lock_timeout(LONG * 10).is_none());
        drop(guard);
        value.set(1);
    });
    assert!(!panicked);
}

#[test]
fn the_thread_that_holds_an_arrays_lock_can_read_and_write_the_array() {
    let own = Array::<u32>::zeroed(3).unwrap();
    let given = Array::<u32>::zeroed_with_lock(3, &Lock::new().unwrap()).unwrap();
    for array in [own, given] {
        let panicked = panics_soon("array", move || {
            let guard = array.get_lock().acquire().unwrap();
            array.set(0, array.get(0) + 1);
            array.update(1, |element| *element = array.get(0));
            array.write().unwrap()[2] = 1;
            assert_eq!(*array.read().unwrap(), [1, 1, 1]);
            assert_eq!(array.copy_to_vec(), [1, 1, 1]);
            drop(guard);
            assert!(!array.get_lock().is_locked());
        });
        assert!(!panicked);
    }
}

#[test]
fn a_thread_that_has_a_guard_of_an_array_panics_instead_of_waiting_for_itself() {
    let acts: [fn(&Array<u32>); 8] = [
        |array| drop((array.write().unwrap(), array.get(0))),
        |array| drop((array.write().unwrap(), array.set(0, 1))),
        |array| drop((array.write().unwrap(), array.read().is_ok())),
        |array| drop((array.write().unwrap(), array.write().is_ok())),
        |array| drop((array.write().unwrap(), array.copy_to_vec())),
        |array| drop((array.read().unwrap(), array.write().is_ok())),
        |array| drop((array.read().unwrap(), array.set(0, 1))),
        |array| array.update(0, |_| std::mem::forget(array.read())),
    ];
    for (number, act) in acts.into_iter().enumerate() {
        let array = Array::zeroed(2).unwrap();
        assert!(panics_soon("array", move || act(&array)), "act {number}");
    }
    let array = Array::<u32>::zeroed(2).unwrap();
    let panicked = panics_soon("array", move || {
        let reads = array.read().unwrap();
        assert!(
            array.try_write().is_none() && array.write_timeout(Duration::from_millis(5)).is_none()
        );
        drop(reads);
        drop(array.write().unwrap());
    });
    assert!(!panicked);
}

#[test]
fn a_thread_that_reads_can_read_again_while_another_one_waits_to_write() {
    let _watchdog = watchdog();
    let array = Array::<u32>::zeroed(2).unwrap();
    let reads = array.read().unwrap();
    let other = array.clone();
    let writes = thread::spawn(move || other.set(0, 7));
    eventually("it waits to write", || array.get_lock().is_locked());
    let again = [
        array.read().unwrap(),
        array.try_read().unwrap().unwrap(),
        array.read_timeout(LONG).unwrap().unwrap(),
    ];
    drop(reads);
    assert!(!writes.is_finished());
    assert_eq!(again[2][0], 0);
    drop(again);
    writes.join().unwrap();
    assert_eq!(array.get(0), 7);
}

#[test]
fn tasks_on_one_thread_exclude_each_other_and_can_use_the_value_they_locked() {
    let _watchdog = watchdog();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let value = Value::new(0_u32).unwrap();
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let value = value.clone();
                tokio::spawn(async move {
                    for _ in 0..10 {
                        let guard = value.get_lock().acquire_async().await.unwrap();
                        let before = value.get();
                        tokio::task::yield_now().await;
                        value.set(before + 1);
                        drop(guard);
                        let mut guard = value.lock_async().await.unwrap();
                        let before = *guard;
                        tokio::task::yield_now().await;
                        *guard = before + 1;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        // The future passed to `block_on` is not a spawned task.
        let guard = value.get_lock().acquire_async().await.unwrap();
        value.set(value.get() + 1);
        drop(guard);
        assert_eq!(value.get(), 201);
    });
}

#[test]
fn tasks_can_await_an_array_as_readers_and_as_writers() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let array = Array::from_slice(&[1_u64, 2]).unwrap();
    runtime.block_on(async {
        let one = array.read_async().await.unwrap();
        // A cancelled writer keeps nobody out.
        assert!(tokio::time::timeout(SHORT, array.write_async()).await.is_err());
        let other = {
            let array = array.clone();
            tokio::spawn(async move { array.read_async().await.unwrap()[1] })
        };
        assert_eq!(other.await.unwrap(), 2);
        let mut writes = Box::pin(array.write_async());
        assert!(futures::poll!(&mut writes).is_pending());
        // The writer goes before those that read later, except for one that reads already.
        assert!(pool.submit(reads_now::task(array.clone())).result().unwrap().is_none());
        let again = array.read_async().await.unwrap();
        drop(one);
        assert!(futures::poll!(&mut writes).is_pending());
        drop(again);
        let mut guard = writes.await.unwrap();
        guard[0] = 3;
        let mut reads = Box::pin(array.read_async());
        assert!(futures::poll!(&mut reads).is_pending());
        drop(guard);
        assert_eq!(reads.await.unwrap()[0], 3);
    });
    let later = pool.submit(reads_now::task(array));
    assert_eq!(later.result().unwrap(), Some(3));
}

#[task]
fn reads_now(array: Array<u64>) -> Option<u64> {
    array.try_read().map(|guard| guard.unwrap()[0])
}

#[test]
fn a_task_that_awaits_an_array_does_not_share_it_with_its_own_blocking_guard() {
    let _watchdog = watchdog();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let task = tokio::spawn(async {
            let array = Array::from_slice(&[0_u64]).unwrap();
            // A guard of another thread: this task does not count as its reader.
            let reader =
                thread::scope(|scope| scope.spawn(|| array.read().unwrap()).join().unwrap());
            let mut writes = Box::pin(array.write_async());
            // It has the lock, and waits for the reader.
            assert!(futures::poll!(&mut writes).is_pending());
            drop(reader);
            // The same task may acquire the lock once more.
            let guard = array.write().unwrap();
            assert!(futures::poll!(&mut writes).is_pending());
            drop(guard);
            drop(writes.await.unwrap());
        });
        task.await.unwrap();
    });
}

#[test]
fn the_branches_of_one_task_exclude_each_other() {
    let _watchdog = watchdog();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let branches = async || {
        let value = Value::new(0_u32).unwrap();
        let by_lock = async || {
            let guard = value.get_lock().acquire_async().await.unwrap();
            let before = value.get();
            tokio::task::yield_now().await;
            value.set(before + 1);
            drop(guard);
        };
        let by_value = async || {
            let mut guard = value.lock_async().await.unwrap();
            let before = *guard;
            tokio::task::yield_now().await;
            *guard = before + 1;
        };
        futures::join!(by_lock(), by_lock(), by_value(), by_value());
        assert_eq!(value.get(), 4);
    };
    runtime.block_on(async {
        branches().await;
        tokio::task::LocalSet::new()
            .run_until(async { tokio::task::spawn_local(branches()).await })
            .await
            .unwrap();
    });
}

#[test]
fn a_given_lock_can_be_held_while_its_value_and_array_are_used_in_all_forms() {
    let _watchdog = watchdog();
    let lock = Lock::new().unwrap();
    let value = Value::with_lock(0_u32, &lock).unwrap();
    let array = Array::<u32>::zeroed_with_lock(1, &lock).unwrap();
    let _held = lock.acquire().unwrap();
    assert!(lock.try_acquire().is_none(), "of itself it is not re-entrant");
    *value.lock().unwrap() += 1;
    *value.try_lock().unwrap().unwrap() += 1;
    *value.lock_timeout(LONG).unwrap().unwrap() += 1;
    assert_eq!(value.get(), 3);
    array.write().unwrap()[0] += 1;
    array.try_write().unwrap().unwrap()[0] += 1;
    array.write_timeout(LONG).unwrap().unwrap()[0] += 1;
    assert_eq!(array.read().unwrap()[0], 3);
    assert_eq!(array.try_read().unwrap().unwrap()[0], 3);
    assert_eq!(array.read_timeout(LONG).unwrap().unwrap()[0], 3);
}

#[task]
fn use_lock(lock: Lock) {
    drop(lock.acquire().unwrap());
}

/// Returns whether a second guard is refused in each form. The array is in another file than the
/// lock.
#[task]
fn second_guards_are_refused(lock: Lock, array: Array<u64>) -> [bool; 4] {
    let refused =
        |again: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(again)).is_err();
    let _guard = array.write().unwrap();
    assert_eq!(array.get_lock(), &lock);
    [
        refused(&|| drop(array.write())),
        refused(&|| array.set(0, 1)),
        array.try_write().is_none(),
        array.read_timeout(LONG).is_none(),
    ]
}

#[test]
fn a_guard_excludes_its_own_thread_when_lock_and_array_are_in_different_memory() {
    let _watchdog = watchdog();
    let lock = Lock::new().unwrap();
    // Too large to share a segment with other objects.
    let array = Array::<u64>::zeroed_with_lock(4096, &lock).unwrap();
    // In the next process, the lock's memory has had one user more than the array's memory.
    pool(1).submit(use_lock::task(lock.clone())).result().unwrap();
    let refused = pool(1).submit(second_guards_are_refused::task(lock, array)).result().unwrap();
    assert_eq!(refused, [true; 4]);
}

#[test]
fn a_guard_made_and_kept_in_an_update_belongs_to_its_task_only() {
    let _watchdog = watchdog();
    let value: &'static Value<u32> = Box::leak(Box::new(Value::new(0).unwrap()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let excluded = runtime.block_on(async {
        let has = tokio::spawn(async {
            let mut kept = None;
            value.update(|_| kept = Some(value.get_lock().acquire().unwrap()));
            tokio::task::yield_now().await;
            // For the task that holds the lock, it is reentrant.
            value.set(7);
            drop(kept);
        });
        let has_not = tokio::spawn(async { value.get_lock().try_acquire().is_none() });
        has.await.unwrap();
        has_not.await.unwrap()
    });
    assert!(excluded, "two tasks of one thread hold the lock");
    assert_eq!(value.get(), 7);
    assert!(!value.get_lock().is_locked());
}

/// Serializes as a `RawArray<u64>` and deserializes as a `RawArray` of another element type.
#[derive(Clone)]
struct Mistaken(RawArray<u64>);

impl Serialize for Mistaken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Mistaken {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = RawArray::<[u8; 8]>::deserialize(deserializer)?;
        panic!("it arrived, with {} elements", bytes.len())
    }
}

#[task]
fn takes_bytes(bytes: Mistaken) -> usize {
    bytes.0.len()
}

#[task]
fn adds_one(array: Array<u64>, value: Value<u64>) {
    array.set(3, array.get(3) + 1);
    value.set(value.get() + 1);
}

#[test]
fn a_list_rejects_an_item_whose_length_does_not_fit_in_its_field() {
    // Zeros that were never touched use no memory.
    let error = ShareableList::new([vec![0_u8; 4 << 30]]).unwrap_err().to_string();
    assert!(error.contains("item 0 has 4294967296 bytes"), "{error}");
}
