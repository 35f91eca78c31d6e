//! Large arguments and results, and `SharedBytes`: how they are sent, when they are copied, and
//! that nothing is left behind when a worker dies.

mod support;

use std::{
    collections::HashMap,
    fs,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use executor::{Encoded, SharedBytes, TaskError, prelude::*};
use serde::{Deserialize, Serialize};
use support::{Gate, eventually, memory_to_spare, pool, watchdog, watchdog_of};

executor::test_support!();

#[task]
fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[task]
fn len(bytes: &[u8]) -> usize {
    bytes.len()
}

#[task]
fn make(len: usize, byte: u8) -> Vec<u8> {
    vec![byte; len]
}

/// Returns bytes that differ from page to page and are quickly made.
fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![7; len];
    for (i, chunk) in bytes.chunks_mut(4096).enumerate() {
        chunk[0] = i as u8;
    }
    bytes
}

fn over_ipc() -> bool {
    std::env::var("EXECUTOR_TRANSPORT").is_ok_and(|name| name == "ipc")
}

/// Returns the line of `/proc/self/maps` for the mapping that contains these bytes.
fn mapped_file(bytes: &[u8]) -> String {
    let at = bytes.as_ptr() as usize;
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        (usize::from_str_radix(start, 16).unwrap()..usize::from_str_radix(end, 16).unwrap())
            .contains(&at)
    });
    line.unwrap_or_default().to_owned()
}

#[task]
fn file_of_bytes(bytes: &[u8]) -> String {
    mapped_file(bytes)
}

#[task]
fn file_of_text(numbers: Vec<u32>, text: Option<&str>) -> (usize, String) {
    (numbers.len(), mapped_file(text.unwrap().as_bytes()))
}

#[test]
fn large_arguments_are_borrowed_in_place_and_are_read_only() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(1);
    let text = "ä".repeat(100_000);
    for _ in 0..3 {
        let file = pool.submit(file_of_bytes::task(&pattern(1 << 20))).result().unwrap();
        assert!(file.contains("memfd:executor-arguments"), "{file}");
        assert!(file.contains(" r--s "), "{file}");
        let task = file_of_text::task(vec![1, 2, 3], Some(&text));
        let (count, file) = pool.submit(task).result().unwrap();
        assert_eq!(count, 3);
        assert!(file.contains("memfd:executor-arguments"), "{file}");
    }
    let file = pool.submit(file_of_bytes::task(b"small")).result().unwrap();
    assert!(!file.contains("memfd"), "small ones take no segment: {file}");
}

/// A large value whose encoding shows how far it is, and goes on when it may.
struct Halfway {
    gate: std::path::PathBuf,
    bytes: usize,
}

impl Serialize for Halfway {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        let mut seq = serializer.serialize_seq(Some(self.bytes))?;
        for i in 0..self.bytes {
            if i == self.bytes / 2 {
                support::come_to(&self.gate);
            }
            seq.serialize_element(&(i as u8))?;
        }
        seq.end()
    }
}

impl<'de> Deserialize<'de> for Halfway {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?.len();
        Ok(Halfway { gate: "".into(), bytes })
    }
}

#[task]
fn halfway(gate: &std::path::Path, bytes: usize) -> Halfway {
    Halfway { gate: gate.to_owned(), bytes }
}

#[task]
fn size_of_halfway(value: Halfway) -> usize {
    value.bytes
}

#[test]
fn to14_a_pool_stops_while_a_large_value_is_on_its_way() {
    const LEN: usize = 8 << 20;
    let _tests = among_others();
    let _watchdog = watchdog();
    // A worker that is in the middle of a large result.
    for kill in [true, false] {
        let (pool, gate) = (pool(1), Gate::new());
        let future = pool.submit(halfway::task(gate.path(), LEN));
        let workers = gate.wait_for(1);
        match kill {
            true => pool.kill_workers(),
            false => pool.terminate_workers(),
        }
        assert!(future.result().is_err_and(|error| error.is_shutdown()));
        assert!(pool.join_timeout(Duration::from_secs(300)));
        assert!(workers.iter().all(|worker| !support::runs(*worker)));
    }
    // A caller that is in the middle of large arguments.
    let (pool, gate) = (pool(1), Gate::new());
    std::thread::scope(|scope| {
        let submits = scope.spawn(|| {
            let value = Halfway { gate: gate.path().to_owned(), bytes: LEN };
            pool.submit(size_of_halfway::task(value)).result()
        });
        gate.wait_for(1);
        pool.kill_workers();
        assert!(pool.join_timeout(Duration::from_secs(300)), "it waits for no encoding");
        gate.open();
        assert!(submits.join().unwrap().is_err_and(|error| error.is_shutdown()));
    });
}

#[test]
fn to14_many_megabytes_arrive_in_both_directions() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(2);
    for len in [0, 1, 32 << 10, (32 << 10) + 1, 100_000, 1 << 20, 64 << 20] {
        let bytes = pattern(len);
        assert!(pool.submit(echo::task(bytes.clone())).result().unwrap() == bytes, "{len} bytes");
    }
    // Several at a time, of varying sizes.
    let sizes = (0..60).map(|i| (i * 7919 * 13) % (2 << 20));
    for item in pool.map(|len| echo::task(pattern(len)), sizes.clone()).buffer_size(16).zip(sizes) {
        assert!(item.0.unwrap() == pattern(item.1), "{} bytes", item.1);
    }
}

#[test]
fn ex31_an_argument_of_2_2_gb_arrives() {
    let Some(_leave) = memory_to_spare(12) else { return };
    let _tests = among_others();
    let _watchdog = watchdog_of(Duration::from_secs(600));
    let pool = pool(1);
    let len = 2_200_000_000;
    assert_eq!(pool.submit(len::task(&vec![1; len])).result().unwrap(), len);
    let back = pool.submit(make::task(len, 3)).result().unwrap();
    assert!(back.len() == len && back[len - 1] == 3);
    let mut bytes = SharedBytes::zeroed(len);
    bytes.get_mut().unwrap()[len - 1] = 5;
    assert_eq!(pool.submit(last::task(bytes)).result().unwrap(), 5);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    title: String,
    rows: Vec<(u32, Option<f64>)>,
    by_name: HashMap<String, Vec<i64>>,
}

#[task]
fn report(report: Report) -> Report {
    report
}

#[task(codec = "messagepack")]
fn report_in_messagepack(report: Report, bytes: &[u8]) -> (Report, usize) {
    (report, bytes.len())
}

#[task(codec = "messagepack")]
fn bytes_in_messagepack(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

#[test]
fn large_values_of_all_types_are_encoded_into_a_segment() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(1);
    let large = Report {
        title: "t".repeat(50_000),
        rows: (0..200_000_u32).map(|i| (i, i.is_multiple_of(2).then_some(0.5))).collect(),
        by_name: (0..100).map(|i| (i.to_string(), vec![-1; 1000])).collect(),
    };
    assert_eq!(pool.submit(report::task(large.clone())).result().unwrap(), large);
    let task = report_in_messagepack::task(large.clone(), &[0; 100_000]);
    assert_eq!(pool.submit(task).result().unwrap(), (large, 100_000));
    for len in [40_000, 70_000] {
        assert!(
            pool.submit(bytes_in_messagepack::task(&pattern(len))).result().unwrap()
                == pattern(len)
        );
    }
}

#[test]
fn beyond_the_limit_of_segments_values_are_sent_in_parts_without_waiting() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let held = pool.submit(support::hold::task(gate.path()));
    // More large arguments than there are segments.
    let futures: Vec<_> = (0..80).map(|i| pool.submit(echo::task(pattern(40_000 + i)))).collect();
    assert!(pool.stats().segments >= 64 && pool.stats().segments <= 128, "{:?}", pool.stats());
    gate.open();
    held.result().unwrap();
    // More large results than there are segments, and none of them has been read.
    futures.iter().for_each(TaskFuture::wait);
    for (i, future) in futures.into_iter().enumerate() {
        assert!(future.result().unwrap() == pattern(40_000 + i), "{i}");
    }
}

#[test]
fn memory_is_returned_to_the_system_when_unused() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(2);
    let bytes = pattern(8 << 20);
    for _ in 0..4 {
        assert!(pool.submit(echo::task(bytes.clone())).result().unwrap() == bytes);
    }
    let stats = pool.stats();
    assert!((16 << 20..=64 << 20).contains(&stats.segment_bytes), "{stats:?}");
    // The memory is returned first. After that the segment is counted as empty.
    eventually("all is given back", || {
        let stats = pool.stats();
        (stats.segments, stats.segment_bytes) == (0, 0)
    });
    assert!(
        pool.submit(echo::task(bytes.clone())).result().unwrap() == bytes,
        "and can be used again"
    );
}

/// Tests that count the descriptors of this process run alone.
static TESTS: RwLock<()> = RwLock::new(());

fn among_others() -> RwLockReadGuard<'static, ()> {
    TESTS.read().unwrap_or_else(PoisonError::into_inner)
}

fn alone() -> RwLockWriteGuard<'static, ()> {
    TESTS.write().unwrap_or_else(PoisonError::into_inner)
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[task]
fn die_reading(bytes: &[u8]) -> usize {
    assert_eq!(bytes.len(), 1 << 20);
    std::process::abort()
}

/// A result that kills the process while it is encoded, when part of it is already in a segment.
#[derive(Debug)]
struct DiesHalfway;

impl Serialize for DiesHalfway {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeTuple;
        let mut tuple = serializer.serialize_tuple(2)?;
        tuple.serialize_element(&vec![1_u64; 100_000])?;
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .unwrap();
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for DiesHalfway {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(DiesHalfway)
    }
}

#[task]
fn die_writing() -> DiesHalfway {
    DiesHalfway
}

#[task]
fn die_with(bytes: SharedBytes) -> SharedBytes {
    assert!(!bytes.is_empty());
    std::process::abort()
}

#[test]
fn a_worker_that_dies_while_using_a_segment_leaks_no_descriptor_or_memory() {
    let _tests = alone();
    let _watchdog = watchdog();
    let pool = pool(1);
    let bytes = pattern(1 << 20);
    // One task first, so that everything that stays open is counted in `before`.
    pool.submit(echo::task(bytes.clone())).result().unwrap();
    let before = open_descriptors();
    for _ in 0..10 {
        assert!(pool.submit(die_reading::task(&bytes)).result().unwrap_err().is_worker_lost());
        assert!(pool.submit(die_writing::task()).result().unwrap_err().is_worker_lost());
        let shared = SharedBytes::from(&bytes[..]);
        assert!(pool.submit(die_with::task(shared)).result().unwrap_err().is_worker_lost());
    }
    // The next task still works, with all segments available.
    assert!(pool.submit(echo::task(bytes.clone())).result().unwrap() == bytes);
    eventually("no descriptor is left", || open_descriptors() <= before + 1);
    eventually("no memory is left", || pool.stats().segment_bytes == 0);
}

#[test]
fn results_of_a_dead_worker_can_still_be_read() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(1);
    let future = pool.submit(make::task(1 << 20, 9));
    let shared = pool.submit(shared_of::task(1 << 20, 4));
    future.wait();
    shared.wait();
    assert!(
        pool.submit(die_reading::task(&pattern(1 << 20))).result().unwrap_err().is_worker_lost()
    );
    pool.shutdown(true);
    drop(pool);
    assert!(future.result().unwrap().iter().all(|byte| *byte == 9));
    assert!(shared.result().unwrap().iter().all(|byte| *byte == 4));
}

#[test]
fn callbacks_and_the_future_each_receive_the_value() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(1);
    let (sender, receiver) = std::sync::mpsc::channel();
    let future = pool.submit(make::task(1 << 20, 9));
    let seen = sender.clone();
    future.add_done_callback(move |outcome| seen.send(outcome.unwrap().len()).unwrap());
    assert_eq!(future.result().unwrap().len(), 1 << 20);
    let shared = pool.submit(shared_of::task(100_000, 4));
    shared.add_done_callback(move |outcome| sender.send(outcome.unwrap().len()).unwrap());
    assert_eq!(shared.result().unwrap().len(), 100_000);
    pool.shutdown(true);
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [1 << 20, 100_000]);
}

#[task]
fn panic_with(bytes: &[u8]) {
    panic!("with {} bytes", bytes.len())
}

#[task]
fn fail_with(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    Err(String::from_utf8(bytes).unwrap())
}

#[test]
fn failed_and_cancelled_tasks_return_their_segments() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(1);
    for _ in 0..100 {
        let panicked = pool.submit(panic_with::task(&[0; 100_000])).result();
        assert!(matches!(panicked, Err(TaskError::Panicked(_))));
    }
    let Err(TaskError::Failed(error)) = pool.submit(fail_with::task(vec![b'x'; 100_000])).result()
    else {
        panic!("it failed")
    };
    assert_eq!(error.message().len(), 100_000);
    let futures: Vec<_> = (0..20).map(|_| pool.submit(len::task(&[0; 100_000]))).collect();
    futures.iter().for_each(|future| {
        future.cancel();
    });
    drop(futures);
    assert!(pool.stats().segments <= 64);
    eventually("all are free", || pool.stats().segment_bytes == 0);
}

// ---- SharedBytes --------------------------------------------------------------------------------

#[task]
fn shared_of(len: usize, byte: u8) -> SharedBytes {
    let mut bytes = SharedBytes::zeroed(len);
    bytes.get_mut().unwrap().fill(byte);
    bytes
}

#[task]
fn last(bytes: SharedBytes) -> u8 {
    bytes[bytes.len() - 1]
}

#[task]
fn inode_of(bytes: SharedBytes) -> String {
    mapped_file(&bytes).split_whitespace().nth(4).unwrap().to_owned()
}

#[task]
fn same(bytes: SharedBytes) -> SharedBytes {
    bytes
}

#[test]
fn shared_bytes_are_the_same_memory_in_every_process() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(2);
    let bytes = SharedBytes::from(pattern(1 << 20));
    let inode = mapped_file(&bytes).split_whitespace().nth(4).unwrap().to_owned();
    for _ in 0..20 {
        assert_eq!(pool.submit(inode_of::task(bytes.clone())).result().unwrap(), inode);
    }
    let back = pool.submit(same::task(bytes.clone())).result().unwrap();
    assert!(mapped_file(&back).contains(&inode), "also when it comes back");
    assert!(back == bytes);
    let made = pool.submit(shared_of::task(1 << 20, 5)).result().unwrap();
    assert!(made.iter().all(|byte| *byte == 5));
    assert_eq!(pool.submit(last::task(made)).result().unwrap(), 5);
    assert!(pool.submit(same::task(SharedBytes::zeroed(0))).result().unwrap().is_empty());
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Image {
    name: String,
    planes: Vec<SharedBytes>,
    mask: Option<SharedBytes>,
}

#[task]
fn mirror(image: Image, _scale: f64) -> Result<Image, String> {
    Ok(image)
}

#[task(codec = "messagepack")]
fn mirror_in_messagepack(image: Image, bytes: &[u8]) -> (Image, usize) {
    (image, bytes.len())
}

#[test]
fn shared_bytes_can_be_fields_of_other_types() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(2);
    let planes: Vec<_> = (0..3).map(|i| SharedBytes::from(vec![i; 10_000])).collect();
    let mask = Some(planes[1].clone());
    let image = Image { name: "i".repeat(100_000), planes, mask };
    for _ in 0..3 {
        assert_eq!(pool.submit(mirror::task(image.clone(), 0.5)).result().unwrap(), image);
        let task = mirror_in_messagepack::task(image.clone(), &[0; 50_000]);
        assert_eq!(pool.submit(task).result().unwrap(), (image.clone(), 50_000));
    }
    let encoded: Task<mirror, Encoded> = mirror::task(image.clone(), 2.0).encode();
    let again = encoded.clone();
    assert_eq!(pool.submit(encoded).result().unwrap(), image);
    assert_eq!(pool.submit(again).result().unwrap(), image);
}

#[test]
fn many_shared_bytes_can_wait_for_one_worker() {
    let _tests = alone();
    let _watchdog = watchdog();
    let (pool, gate) = (pool(1), Gate::new());
    let before = open_descriptors();
    let held = pool.submit(support::hold::task(gate.path()));
    let all: Vec<_> = (0..300_u32).map(|i| SharedBytes::from(i.to_le_bytes().to_vec())).collect();
    let futures: Vec<_> = all.iter().map(|bytes| pool.submit(same::task(bytes.clone()))).collect();
    // Cancel some of those that were sent ahead. Their descriptors must not be mistaken for those
    // of other tasks.
    for future in futures.iter().step_by(3) {
        future.cancel();
    }
    gate.open();
    held.result().unwrap();
    for (future, bytes) in futures.into_iter().zip(&all) {
        match future.result() {
            Ok(back) => assert!(back == *bytes),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
    }
    drop(all);
    pool.shutdown(true);
    drop(pool);
    eventually("no descriptor is left", || open_descriptors() <= before);
}

#[task]
fn keep(model: SharedBytes) {
    executor::worker_state::set(model);
}

#[task]
fn model_len() -> usize {
    executor::with_worker_state::<SharedBytes, _>(|model| model.len())
}

#[test]
fn an_initializer_may_keep_shared_bytes() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let model = SharedBytes::from(vec![1; 100_000]);
    let pool = ProcessPoolExecutor::builder()
        .max_workers(2)
        .initializer(keep::task(model))
        .build()
        .unwrap();
    for _ in 0..8 {
        assert_eq!(pool.submit(model_len::task()).result().unwrap(), 100_000);
    }
}

#[test]
fn another_serializer_rejects_shared_bytes_with_a_reason() {
    let bytes = SharedBytes::from(vec![1, 2, 3]);
    let error = serde_json::to_string(&bytes).unwrap_err().to_string();
    assert!(error.contains("arguments and results of tasks only"), "{error}");
    let error = serde_json::from_str::<SharedBytes>("0").unwrap_err().to_string();
    assert!(error.contains("did not come with these bytes"), "{error}");
}

#[task]
fn too_many() -> Vec<SharedBytes> {
    (0..254).map(|_| SharedBytes::zeroed(1)).collect()
}

#[test]
fn more_descriptors_than_a_task_can_carry_are_an_error() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(1);
    let error = pool.submit(too_many::task()).result().unwrap_err();
    assert!(
        matches!(error, TaskError::Encode(_)) && error.to_string().contains("more than 253"),
        "{error}"
    );
    assert_eq!(pool.submit(len::task(&[1])).result().unwrap(), 1);
}

/// Closes descriptors that it does not own.
#[task]
fn close_everything() {
    for descriptor in 3..200 {
        // SAFETY: none, and that is the point: this breaks the ownership of the descriptors.
        // Nothing in this worker relies on the descriptors closed here for memory safety.
        unsafe { libc::close(descriptor) };
    }
}

#[test]
fn a_worker_whose_descriptors_were_closed_is_replaced_or_works_without_them() {
    if over_ipc() {
        // With ipc-channel, the connection itself is one of the closed descriptors.
        return;
    }
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(1);
    pool.submit(close_everything::task()).result().unwrap();
    let back = pool.submit(make::task(1 << 20, 3)).result().unwrap();
    assert!(back.len() == 1 << 20 && back[77] == 3);
    let shared = SharedBytes::from(vec![8; 100_000]);
    assert_eq!(pool.submit(last::task(shared)).result().unwrap(), 8);
    assert_eq!(pool.submit(len::task(&pattern(1 << 20))).result().unwrap(), 1 << 20);
}

/// Overwrites the start of every file of results that this worker can reach.
#[task]
fn scribble_on_the_results() {
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let is_results = fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().contains("executor-results"));
        if is_results {
            let name = entry.file_name();
            let number: i32 = name.to_str().unwrap().parse().unwrap();
            let garbage = [0xff_u8; 4096];
            #[expect(
                clippy::disallowed_methods,
                reason = "plays a process that breaks the protocol"
            )]
            // SAFETY: a plain write to an open descriptor, from a live buffer of that length.
            let written =
                unsafe { libc::pwrite(number, garbage.as_ptr().cast(), garbage.len(), 0) };
            assert_eq!(written, 4096);
        }
    }
}

#[test]
fn a_worker_that_overwrites_its_results_damages_no_other_result() {
    let _tests = among_others();
    let _watchdog = watchdog();
    let pool = pool(1);
    pool.submit(make::task(1 << 20, 1)).result().unwrap();
    pool.submit(scribble_on_the_results::task()).result().unwrap();
    for byte in 0..10 {
        let back = pool.submit(make::task(1 << 20, byte)).result().unwrap();
        assert!(back.iter().all(|other| *other == byte));
        let _ = pool.stats();
    }
}
