//! Objects of types of one's own.
#![allow(unreachable_pub, reason = "only public methods can be called")]

use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Condvar, Mutex},
    task::{Context, Waker},
    thread,
    time::Duration,
};

use executor::{
    Fork,
    manager::{Event, List, Manager, ManagerError, Value},
    prelude::*,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use futures::executor::block_on;

use super::{Done, SHORT, ends_killed, has_objects, start};
use crate::support::{Gate, LONG, come_to, eventually, rounds, watchdog};

/// Appends a line to a file when it is dropped.
struct LastWords(PathBuf);

impl Drop for LastWords {
    fn drop(&mut self) {
        let before = std::fs::read_to_string(&self.0).unwrap_or_default();
        std::fs::write(&self.0, before + "dropped\n").expect("a note");
        assert!(!self.0.ends_with("unlucky"), "as asked for");
    }
}

#[derive(Default)]
struct Counter {
    n: u64,
    _last_words: Option<LastWords>,
    /// How many calls have come to [`meet`](Counter::meet).
    met: Mutex<u32>,
    changed: Condvar,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct TooMuch {
    n: u64,
}

impl std::fmt::Display for TooMuch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is too much", self.n)
    }
}

impl std::error::Error for TooMuch {}

#[managed]
impl Counter {
    pub fn new(start: u64) -> Self {
        Counter { n: start, ..Counter::default() }
    }

    pub fn with_last_words(start: u64, path: &Path) -> Counter {
        let _last_words = Some(LastWords(path.to_owned()));
        Counter { n: start, _last_words, ..Counter::default() }
    }

    pub fn at_the_gate(gate: &Path, path: &Path) -> Self {
        come_to(gate);
        Counter::with_last_words(1, path)
    }

    pub fn parsed(text: &str) -> Result<Self, std::num::ParseIntError> {
        assert_ne!(text, "panic", "as asked for");
        Ok(Counter::new(text.parse()?))
    }

    /// Adds, and returns the sum.
    pub fn add(&mut self, n: u64) -> u64 {
        self.n += n;
        self.n
    }

    pub fn get(&self) -> u64 {
        self.n
    }

    pub fn checked_add(&mut self, n: u64, max: u64) -> Result<u64, TooMuch> {
        let sum = self.n + n;
        if sum > max {
            return Err(TooMuch { n: sum });
        }
        self.n = sum;
        Ok(sum)
    }

    pub fn half_done(&mut self, n: u64) {
        self.n = n;
        panic!("half done with {n}");
    }

    pub fn below(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.n).filter(|n| *n < self.n)
    }

    pub fn lengths<'a>(
        &'a self,
        text: &'a str,
        bytes: &[u8],
        numbers: &[u64],
    ) -> (usize, usize, usize) {
        (text.len(), bytes.len(), numbers.len())
    }

    /// Returns when so many calls of it have come.
    pub fn meet(&self, parties: u32) {
        let mut met = self.met.lock().unwrap();
        *met += 1;
        self.changed.notify_all();
        while *met < parties {
            met = self.changed.wait(met).unwrap();
        }
    }

    pub fn wait_at(&mut self, gate: &Path) -> u64 {
        come_to(gate);
        self.n += 1;
        self.n
    }

    pub fn look_at(&self, gate: &Path) -> u64 {
        come_to(gate);
        self.n
    }

    pub const LENGTH: usize = 4;

    pub fn first_bytes(&self, bytes: [u8; Self::LENGTH]) -> Option<[u8; Self::LENGTH]> {
        bytes.first().map(|first| [*first; Self::LENGTH])
    }

    pub fn length(&self, list: List<u32>) -> usize {
        list.len().map_or(0, |len| len + self.n as usize)
    }

    pub(crate) fn not_for_others(&self) -> u64 {
        self.n
    }

    fn private(&self) -> u64 {
        self.not_for_others()
    }
}

/// Another type, whose methods have the same names.
struct Names(Vec<String>);

#[managed(name = "SharedNames")]
impl Names {
    pub fn new() -> Self {
        Names(Vec::new())
    }

    pub fn add(&mut self, name: String) {
        self.0.push(name);
    }

    pub fn get(&self) -> Vec<String> {
        self.0.clone()
    }
}

#[test]
fn mg10_methods_of_ones_own_type_are_called_through_its_proxy() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let counter = CounterProxy::new(&manager, 5).unwrap();
    assert_eq!(counter.add(2).unwrap(), 7);
    assert_eq!(counter.get().unwrap(), 7);
    assert_eq!(counter.lengths("four", b"12345", &[6; 6]).unwrap(), (4, 5, 6));
    let other = CounterProxy::parsed(&manager, "100").unwrap();
    assert_eq!(other.add(1).unwrap(), 101);
    assert_eq!(counter.get().unwrap(), 7);
    let names = SharedNames::new(&manager).unwrap();
    names.add("Ann".to_owned()).unwrap();
    assert_eq!(names.get().unwrap(), ["Ann"]);
    assert_eq!(manager.objects().unwrap(), 3);
    assert_eq!(counter, counter.clone());
    assert_ne!(counter, other);
    assert!(format!("{counter:?}").starts_with("CounterProxy("), "{counter:?}");
    drop((counter, other, names));
    has_objects(&manager, 0);
    // What is not `pub` belongs to the type alone.
    assert_eq!(Counter::new(3).private(), 3);
}

#[test]
fn mg10_a_method_that_returns_an_iterator_can_be_iterated_by_the_client() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let counter = CounterProxy::new(&manager, 5).unwrap();
    let items = counter.below().unwrap();
    counter.add(1).unwrap();
    // They are those of the moment of the call.
    assert_eq!(items.collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let many = CounterProxy::new(&manager, 200_000).unwrap();
    assert_eq!(many.below().unwrap().next_back(), Some(199_999));
}

#[test]
fn mg10_methods_that_change_nothing_run_side_by_side() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    // As many as run at the same time.
    for parties in [2, 32] {
        let counter = CounterProxy::new(&manager, 1).unwrap();
        thread::scope(|scope| {
            (0..parties).for_each(|_| drop(scope.spawn(|| counter.meet(parties).unwrap())));
        });
        assert_eq!(counter.get().unwrap(), 1);
    }
}

/// Polls a future once, so that its call is sent.
pub(super) fn begin<T>(call: std::pin::Pin<&mut impl Future<Output = T>>) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(call.poll(&mut context).is_pending());
}

#[test]
fn mg10_a_call_that_changes_the_object_waits_for_others_and_is_not_overtaken() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gates = [Gate::new(), Gate::new()];
    let counter = CounterProxy::new(&manager, 1).unwrap();
    thread::scope(|scope| {
        let reads =
            gates.each_ref().map(|gate| scope.spawn(|| counter.look_at(gate.path()).unwrap()));
        gates.iter().for_each(|gate| drop(gate.wait_for(1)));
        let mut add = pin!(counter.add_async(10));
        begin(add.as_mut());
        // Sent later, through the same connection.
        let later = scope.spawn(|| counter.get().unwrap());
        let other = CounterProxy::new(&manager, 1).unwrap();
        assert_eq!(other.add(1).unwrap(), 2);
        assert!(!later.is_finished());
        gates[0].open();
        gates[1].open();
        assert_eq!(reads.map(|read| read.join().unwrap()), [1, 1]);
        assert_eq!(later.join().unwrap(), 11);
        assert_eq!(futures::executor::block_on(add).unwrap(), 11);
    });
}

#[test]
fn mg10_a_method_that_never_ends_holds_up_only_its_object() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let [stuck, free] = [1, 2].map(|start| CounterProxy::new(&manager, start).unwrap());
    thread::scope(|scope| {
        let hangs = scope.spawn(|| stuck.wait_at(gate.path()).unwrap_err());
        gate.wait_for(1);
        let waits = scope.spawn(|| stuck.get().unwrap_err());
        for sum in 3..100 {
            assert_eq!(free.add(1).unwrap(), sum);
        }
        // A call in line can be given up.
        begin(pin!(stuck.add_async(1)));
        assert!(!waits.is_finished() && !hangs.is_finished());
        manager.shutdown();
        for error in [hangs.join().unwrap(), waits.join().unwrap()] {
            assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
        }
    });
    eventually("it has ended", || manager.exit_status().is_some());
    assert!(matches!(free.get(), Err(ManagerError::Gone(_))));
    assert!(matches!(CounterProxy::new(&manager, 1), Err(ManagerError::Gone(_))));
}

#[task]
fn add_one(value: u64) -> u64 {
    value + 1
}

#[test]
fn mg10_a_method_that_takes_too_long_is_left() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let counter = CounterProxy::new(&manager, 1).unwrap();
    let hasty = counter.with_timeout(SHORT);
    assert_eq!(hasty, counter);
    assert_eq!(counter.with_timeout(LONG).add(1).unwrap(), 2);
    assert_eq!(counter.with_timeout(Duration::MAX).get().unwrap(), 2);
    assert_eq!(block_on(counter.with_timeout(LONG).get_async()).unwrap(), 2);
    let timed_out = |error: ManagerError| {
        assert!(matches!(error, ManagerError::TimedOut), "{error:?}");
    };
    timed_out(hasty.wait_at(gate.path()).unwrap_err());
    // Those in line behind it are not run any more.
    gate.wait_for(1);
    timed_out(hasty.add(10).unwrap_err());
    timed_out(block_on(hasty.add_async(100)).unwrap_err());
    timed_out(hasty.clone().get().unwrap_err());
    assert_eq!(manager.list([1]).unwrap().len().unwrap(), 1);
    // The one that runs goes on.
    gate.open();
    assert_eq!(counter.get().unwrap(), 3);
}

#[test]
fn mg10_a_server_that_runs_as_many_functions_as_it_may_serves_what_needs_none() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let counters: Vec<_> = (0..8).map(|_| CounterProxy::new(&manager, 1).unwrap()).collect();
    let value = manager.value(1_u64).unwrap();
    let mut calls: Vec<_> = counters
        .iter()
        .flat_map(|counter| (0..32).map(|_| Box::pin(counter.look_at_async(gate.path()))))
        .collect();
    calls.iter_mut().for_each(|call| begin(call.as_mut()));
    gate.wait_for(calls.len());
    let mut update = pin!(value.update_async(add_one::with()));
    begin(update.as_mut());
    let mut creation = pin!(CounterProxy::new_async(&manager, 7));
    begin(creation.as_mut());
    // The value waits for its function, and nothing else does.
    let list = manager.list([1]).unwrap();
    assert_eq!(start(length_of::task(list)).join().unwrap(), 1);
    assert_eq!(manager.objects().unwrap(), 9);
    begin(update.as_mut());
    // What a client has asked for that is gone before it began is not done any more.
    let (other, asked) = (manager.value(1_u64).unwrap(), manager.event().unwrap());
    let child = start(begin_an_update::task(other.clone(), asked.clone()));
    asked.wait().unwrap();
    child.kill().unwrap();
    ends_killed(&child);
    assert_eq!(manager.objects().unwrap(), 11, "the server knows of the death");
    assert_eq!(other.get().unwrap(), 1, "no function has to end before");
    gate.open();
    assert_eq!(futures::executor::block_on(update).unwrap(), 2);
    assert_eq!(other.get().unwrap(), 1);
    assert_eq!(futures::executor::block_on(creation).unwrap().get().unwrap(), 7);
    for call in calls {
        assert_eq!(futures::executor::block_on(call).unwrap(), 1);
    }
}

/// Begins an update that cannot run yet, and waits to be killed.
#[task]
fn begin_an_update(value: Value<u64>, asked: Event) -> Result<(), ManagerError> {
    // The first call of a handle is two calls.
    value.get()?;
    let mut update = pin!(value.update_async(add_one::with()));
    begin(update.as_mut());
    // Behind the update.
    asked.set()?;
    loop {
        thread::park();
    }
}

#[task]
fn length_of(list: List<u32>) -> Result<usize, ManagerError> {
    list.len()
}

#[test]
fn mg10_errors_and_panics_of_methods_come_back_as_those_of_tasks() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let counter = CounterProxy::new(&manager, 5).unwrap();
    for _ in 0..3 {
        let error = counter.checked_add(6, 10).unwrap_err();
        let ManagerError::Failed(TaskError::Failed(remote)) = &error else { panic!("{error:?}") };
        assert_eq!(remote.message(), "11 is too much");
        assert_eq!(remote.downcast::<TooMuch>().unwrap(), TooMuch { n: 11 });
        assert!(error.to_string().contains("own::Counter::checked_add"), "{error}");
        assert_eq!(counter.get().unwrap(), 5);
    }
    for n in 7..10 {
        let error = counter.half_done(n).unwrap_err();
        let ManagerError::Failed(TaskError::Panicked(remote)) = &error else { panic!("{error:?}") };
        assert_eq!(remote.message(), format!("half done with {n}"));
        assert_eq!(counter.get().unwrap(), n, "it stays as the method has left it");
    }
    assert_eq!(counter.checked_add(1, 10).unwrap(), 10);
    let error = CounterProxy::parsed(&manager, "x").unwrap_err();
    assert!(error.remote().unwrap().message().contains("invalid digit"), "{error}");
    let error = CounterProxy::parsed(&manager, "panic").unwrap_err();
    assert!(matches!(error, ManagerError::Failed(TaskError::Panicked(_))), "{error:?}");
    assert_eq!(manager.objects().unwrap(), 1);
}

/// What arrives as another type than it was sent as.
struct Disguised<A, B>(Option<A>, Option<B>);

impl<A: Serialize, B> Serialize for Disguised<A, B> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().unwrap().serialize(serializer)
    }
}

impl<'de, A, B: Deserialize<'de>> Deserialize<'de> for Disguised<A, B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Disguised(None, Some(B::deserialize(deserializer)?)))
    }
}

#[task]
fn call_others(
    names: Disguised<CounterProxy, SharedNames>,
    counter: Disguised<List<u32>, CounterProxy>,
    list: Disguised<CounterProxy, List<u32>>,
) -> [String; 3] {
    let (names, counter, list) = (names.1.unwrap(), counter.1.unwrap(), list.1.unwrap());
    [
        names.get().unwrap_err().to_string(),
        counter.get().unwrap_err().to_string(),
        list.len().unwrap_err().to_string(),
    ]
}

#[test]
fn mg10_a_proxy_of_another_type_than_its_object_calls_nothing() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let counter = CounterProxy::new(&manager, 5).unwrap();
    let list = manager.list([1]).unwrap();
    let disguised = || Disguised(Some(counter.clone()), None);
    let task = call_others::task(
        disguised(),
        Disguised(Some(list.clone()), None),
        Disguised(Some(counter.clone()), None),
    );
    let [names, other_kind, as_list] = start(task).join().unwrap();
    assert!(names.contains("of another type than its proxy"), "{names}");
    assert!(other_kind.contains("of another kind"), "{other_kind}");
    assert!(as_list.contains("of another kind"), "{as_list}");
    assert_eq!(counter.get().unwrap(), 5);
}

#[task]
fn add_many(counter: CounterProxy, times: u64) -> Done {
    for _ in 0..times {
        counter.add(1)?;
        counter.get()?;
    }
    Ok(())
}

#[test]
fn mg10_eight_processes_that_add_lose_nothing() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let counter = CounterProxy::new(&manager, 0).unwrap();
    let times = rounds() as u64 / 8;
    let children: Vec<_> = (0..8).map(|_| start(add_many::task(counter.clone(), times))).collect();
    children.iter().for_each(|child| child.join().unwrap());
    assert_eq!(counter.get().unwrap(), 8 * times);
}

/// A file for last words.
pub(super) struct Words {
    pub(super) path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Words {
    pub(super) fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        Words { path, _folder: folder }
    }

    pub(super) fn read(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap_or_default()
    }
}

#[test]
fn mg10_a_value_is_dropped_once_after_its_last_handle_and_its_last_call() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (words, gate) = (Words::new("words"), Gate::new());
    let counter = CounterProxy::with_last_words(&manager, 1, &words.path).unwrap();
    let dict = manager.dict([("a".to_owned(), counter.clone())]).unwrap();
    drop(counter);
    let counter = dict.remove("a").unwrap().unwrap();
    assert_eq!(counter.get().unwrap(), 1);
    {
        let mut call = pin!(counter.wait_at_async(gate.path()));
        begin(call.as_mut());
        gate.wait_for(1);
    }
    drop(counter);
    has_objects(&manager, 1);
    assert_eq!(words.read(), "", "a method of it runs");
    gate.open();
    eventually("it is dropped", || words.read() == "dropped\n");
    // A drop that panics does no harm.
    let unlucky = Words::new("unlucky");
    drop(CounterProxy::with_last_words(&manager, 1, &unlucky.path).unwrap());
    eventually("it is dropped", || unlucky.read() == "dropped\n");
    for _ in 0..100 {
        CounterProxy::new(&manager, 1).unwrap().add(1).unwrap();
    }
    assert_eq!(words.read(), "dropped\n");
    has_objects(&manager, 1);
}

#[task]
fn wait_at(counter: CounterProxy, gate: &Path) -> Result<u64, ManagerError> {
    counter.wait_at(gate)
}

#[test]
fn mg10_a_call_whose_client_was_killed_runs_to_its_end() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let gate = Gate::new();
    let counter = CounterProxy::new(&manager, 1).unwrap();
    let child = start(wait_at::task(counter.clone(), gate.path()));
    gate.wait_for(1);
    child.kill().unwrap();
    ends_killed(&child);
    gate.open();
    // In line behind it.
    assert_eq!(counter.get().unwrap(), 2);
    drop(counter);
    has_objects(&manager, 0);
}

/// Has a manager of its own, and a copy of this process that is killed while it makes an object.
#[task]
fn kill_a_copy_that_makes_an_object(words: &Path) -> Result<u64, ManagerError> {
    let manager = Manager::start()?;
    let gate = Gate::new();
    // SAFETY: the copy uses only its own memory, and this process has no other thread that could
    // hold a lock of it.
    match unsafe { executor::fork() }.expect("a copy can be made") {
        Fork::Child => {
            let _ = CounterProxy::at_the_gate(&manager, gate.path(), words);
            // SAFETY: ends the copy, which should not come here.
            unsafe { libc::_exit(1) }
        }
        Fork::Parent(copy) => {
            gate.wait_for(1);
            // SAFETY: kills the copy, a child of this process that nobody has waited for.
            unsafe { libc::kill(copy as i32, libc::SIGKILL) };
            // SAFETY: waits for it.
            unsafe { libc::waitpid(copy as i32, std::ptr::null_mut(), 0) };
        }
    }
    gate.open();
    eventually("it is dropped", || {
        std::fs::read_to_string(words).is_ok_and(|words| words == "dropped\n")
    });
    manager.objects()
}

#[test]
fn mg10_a_value_whose_client_was_killed_while_it_was_made_is_dropped() {
    let _watchdog = watchdog();
    let words = Words::new("words");
    let child = start(kill_a_copy_that_makes_an_object::task(&words.path));
    assert_eq!(child.join().unwrap(), 0);
    assert_eq!(words.read(), "dropped\n");
}

#[test]
fn mg10_a_value_whose_future_was_dropped_while_it_was_made_is_dropped() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (words, gate) = (Words::new("words"), Gate::new());
    {
        let path = words.path.clone();
        let mut creation = pin!(CounterProxy::at_the_gate_async(&manager, gate.path(), &path));
        begin(creation.as_mut());
        gate.wait_for(1);
    }
    gate.open();
    eventually("it is dropped", || words.read() == "dropped\n");
    has_objects(&manager, 0);
}

#[test]
fn mg10_every_method_has_an_async_form() {
    fn is_send<F: Future + Send>(future: F) -> F {
        future
    }
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    futures::executor::block_on(async {
        let counter = is_send(CounterProxy::new_async(&manager, 5)).await.unwrap();
        assert_eq!(is_send(counter.add_async(2)).await.unwrap(), 7);
        let text = String::from("four");
        let lengths = is_send(counter.lengths_async(&text, b"1", &[])).await.unwrap();
        assert_eq!(lengths, (4, 1, 0));
        let items = counter.below_async().await.unwrap();
        assert_eq!(items.collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        let error = counter.checked_add_async(1, 1).await.unwrap_err();
        assert_eq!(error.remote().unwrap().message(), "8 is too much");
        let both = futures::join!(counter.meet_async(2), counter.meet_async(2));
        assert!(both.0.is_ok() && both.1.is_ok());
    });
}

#[test]
fn mg10_a_server_has_as_many_objects_as_it_may_have() {
    let _watchdog = watchdog();
    let manager = Manager::builder().objects_max(2).start().unwrap();
    let objects = [1, 2].map(|start| CounterProxy::new(&manager, start).unwrap());
    let error = CounterProxy::new(&manager, 3).unwrap_err();
    assert!(matches!(error, ManagerError::Limit(_)), "{error:?}");
    drop(objects);
    has_objects(&manager, 0);
    CounterProxy::new(&manager, 3).unwrap();
}
