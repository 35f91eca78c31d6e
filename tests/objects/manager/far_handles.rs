//! Handles of a manager that was reached over TCP, in arguments, results, queues and connections.

use std::pin::pin;

use executor::{
    Address, Client, Connection, Listener, SendError,
    manager::{Dict, List, Manager, ManagerError, Queue},
    pipe,
    prelude::*,
};
use futures::executor::block_on;

use super::{
    Done, die, ends_killed,
    far::{Site, Way},
    handles::{self, Everything},
    has_objects,
    own::{CounterProxy, begin},
    start,
};
use crate::support::{LONG, pool, watchdog};

#[test]
fn every_far_object_travels_in_an_argument_and_a_result() {
    let _watchdog = watchdog();
    let site = Site::new();
    let far = site.tcp().connect().unwrap();
    let pool = pool(1);
    for _ in 0..2 {
        let all = handles::everything(&far).unwrap();
        let future = pool.submit(handles::use_and_return::task(all));
        // The sender's handles are gone already.
        let back: Everything = future.result().unwrap();
        handles::assert_used(&back);
        assert_eq!(site.manager.objects().unwrap(), handles::ALL);
        drop(back);
        // The worker's are gone, too. It keeps its connection.
        has_objects(&site.manager, 0);
    }
}

#[task]
fn push(list: List<u32>, item: u32) -> Result<u32, ManagerError> {
    list.push(&item)?;
    Ok(std::process::id())
}

#[task]
fn add_one(counter: CounterProxy) -> Result<u64, ManagerError> {
    block_on(counter.add_async(1))
}

#[test]
fn a_process_that_gets_many_far_handles_connects_once() {
    let _watchdog = watchdog();
    // This process twice, as the owner and over TCP, and one worker.
    let site = Site::of(Manager::builder().clients_max(3));
    let far = site.tcp().connect().unwrap();
    let list = far.list([]).unwrap();
    let pool = pool(1);
    for item in 0..20 {
        let worker = pool.submit(push::task(list.clone(), item)).result().unwrap();
        assert_ne!(worker, std::process::id());
    }
    assert_eq!(list.snapshot().unwrap(), (0..20).collect::<Vec<_>>());
    let counter = CounterProxy::new(&far, 1).unwrap();
    assert_eq!(pool.submit(add_one::task(counter.clone())).result().unwrap(), 2);
    // One that comes back uses the connection that this process has.
    let (one, other) = pipe::<List<u32>, List<u32>>().unwrap();
    one.send(&list).unwrap();
    let same = other.recv().unwrap();
    assert_eq!(same, list);
    assert_eq!(same.len().unwrap(), 20);
}

#[task]
fn put_into(
    queue: executor::Queue<List<u32>>,
    connection: Connection<List<u32>, u8>,
    by_name: Dict<String, List<u32>>,
) -> Done {
    let list = queue.get_timeout(LONG).expect("it was put");
    list.push(&2)?;
    // Nested into another object of the same manager.
    by_name.insert("list", &list)?;
    connection.send(&list).expect("the other side is there");
    // The parent tells when it has used it.
    assert_eq!(connection.recv().expect("the other side is there"), 1);
    Ok(())
}

#[test]
fn a_far_object_lives_on_its_way_through_queues_and_connections() {
    let _watchdog = watchdog();
    let site = Site::new();
    let far = site.tcp().connect().unwrap();
    let queue = executor::Queue::unbounded().unwrap();
    queue.put(far.list([1]).unwrap()).unwrap();
    let by_name = far.dict([]).unwrap();
    // Nobody but the message has the list.
    has_objects(&site.manager, 2);
    let (ours, theirs) = pipe::<u8, List<u32>>().unwrap();
    let child = start(put_into::task(queue.clone(), theirs, by_name.clone()));
    let list = ours.recv().unwrap();
    assert_eq!(list.snapshot().unwrap(), [1, 2]);
    ours.send(&1).unwrap();
    child.join().unwrap();
    assert_eq!(by_name.remove("list").unwrap(), Some(list.clone()));
    drop((child, list));
    has_objects(&site.manager, 1);
    // A message that nobody receives keeps its object only while it can be received.
    queue.put(far.list([3]).unwrap()).unwrap();
    has_objects(&site.manager, 2);
    drop(queue);
    has_objects(&site.manager, 1);
    // The handles in messages keep the connection, without the manager.
    let queue = executor::Queue::unbounded().unwrap();
    queue.put(far.list([4_u32]).unwrap()).unwrap();
    drop((far, by_name));
    has_objects(&site.manager, 1);
    assert_eq!(queue.get().unwrap().snapshot().unwrap(), [4]);
    has_objects(&site.manager, 0);
}

#[task]
fn pass_on(queue: executor::Queue<List<u32>>) {
    // It is not used here, so this process does not even connect.
    queue.put(queue.get_timeout(LONG).expect("it was put")).expect("the queue is open");
}

#[test]
fn a_far_handle_that_is_passed_on_unused_is_kept_by_its_first_sender() {
    let _watchdog = watchdog();
    let site = Site::new();
    let far = site.tcp().connect().unwrap();
    let queue = executor::Queue::unbounded().unwrap();
    queue.put(far.list([5]).unwrap()).unwrap();
    for _ in 0..2 {
        start(pass_on::task(queue.clone())).join().unwrap();
    }
    assert_eq!(site.manager.objects().unwrap(), 1);
    assert_eq!(queue.get().unwrap().snapshot().unwrap(), [5]);
    has_objects(&site.manager, 0);
}

#[task]
fn put_and_die(way: Way, queue: executor::Queue<List<u32>>) -> Done {
    let far = way.connect()?;
    far.publish("kept", &far.list([7_u32])?)?;
    queue.put(far.published("kept")?.expect("just published")).expect("the queue is open");
    queue.put(far.list([8])?).expect("the queue is open");
    die()
}

#[test]
fn mg26_a_far_object_that_only_the_message_of_a_dead_process_has_is_gone() {
    let _watchdog = watchdog();
    let site = Site::new();
    let queue = executor::Queue::unbounded().unwrap();
    ends_killed(&start(put_and_die::task(site.tcp().clone(), queue.clone())));
    has_objects(&site.manager, 1);
    // Somebody else keeps the first one.
    assert_eq!(queue.get().unwrap().snapshot().unwrap(), [7]);
    for _ in 0..2 {
        let gone = queue.try_get();
        let Ok(gone) = gone else { break };
        assert!(matches!(gone.len(), Err(ManagerError::NoObject)), "{:?}", gone.len());
    }
    assert!(site.manager.unpublish("kept").unwrap());
    has_objects(&site.manager, 0);
}

#[task]
fn wait_for_an_item(queue: Queue<u32>) -> Result<u32, ManagerError> {
    queue.get()
}

#[test]
fn mg26_a_process_that_was_given_a_far_handle_and_is_killed_leaves_nothing() {
    let _watchdog = watchdog();
    let site = Site::new();
    let far = site.tcp().connect().unwrap();
    let queue = far.queue::<u32>(None).unwrap();
    let child = start(wait_for_an_item::task(queue.clone()));
    child.kill().unwrap();
    ends_killed(&child);
    queue.put(&1).unwrap();
    // Whether it was waiting or had not come so far: it takes nothing.
    assert_eq!(queue.get_timeout(LONG).unwrap(), Some(1));
    drop((child, queue));
    has_objects(&site.manager, 0);
}

#[test]
fn a_far_handle_goes_nowhere_where_the_key_must_not_go() {
    let _watchdog = watchdog();
    let (site, other) = (Site::new(), Manager::start().unwrap());
    let far = site.tcp().connect().unwrap();
    let list = far.list([1]).unwrap();
    // To a peer at an address: another program may be there.
    let folder = tempfile::tempdir().unwrap();
    let path: Address = folder.path().join("socket").into();
    let name: Address = format!("@executor-far-{}", std::process::id()).parse().unwrap();
    for address in [path, name, "127.0.0.1:0".parse().unwrap()] {
        let listener = Listener::bind(&address).unwrap();
        let client: Connection<List<u32>, List<u32>> =
            Client::connect(listener.address(), None).unwrap();
        let accepted: Connection<List<u32>, List<u32>> = listener.accept().unwrap();
        for end in [&client, &accepted] {
            let error = end.send(&list).unwrap_err();
            assert!(matches!(error, SendError::Encode(_)), "{address}: {error:?}");
        }
        // A handle that is near brings no key.
        if !matches!(address, Address::Tcp(..)) {
            client.send(&other.list([2]).unwrap()).unwrap();
            assert_eq!(accepted.recv().unwrap().snapshot().unwrap(), [2]);
        }
    }
    // Into another manager, and into the workers of one.
    let error = other.list([list.clone()]).unwrap_err();
    assert!(matches!(error, ManagerError::Encode(_)), "{error:?}");
    let workers = far.pool(1).unwrap();
    let error = workers.apply(push::task(list.clone(), 1)).unwrap_err();
    assert!(matches!(error, ManagerError::Encode(_)), "{error:?}");
    assert_eq!(list.len().unwrap(), 1);
}

#[task]
fn len_of(list: List<u32>) -> Result<usize, String> {
    list.len().map_err(|error| format!("{error:?}"))
}

#[test]
fn a_far_handle_of_a_server_that_is_gone_says_so_where_it_is_used() {
    let _watchdog = watchdog();
    let site = Site::new();
    let far = site.tcp().connect().unwrap();
    let list = far.list([1]).unwrap();
    let queue = executor::Queue::unbounded().unwrap();
    queue.put(list.clone()).unwrap();
    drop(site);
    let child = start(len_of::task(queue.get().unwrap()));
    let text = child.join().unwrap_err().to_string();
    assert!(text.contains("127.0.0.1"), "{text}");
}

#[test]
fn a_far_handle_can_be_awaited_where_it_comes_to() {
    let _watchdog = watchdog();
    let site = Site::new();
    let far = site.tcp().connect().unwrap();
    let queue = far.queue::<u32>(None).unwrap();
    let sent = executor::Queue::unbounded().unwrap();
    sent.put(queue.clone()).unwrap();
    let received: Queue<u32> = sent.get().unwrap();
    let mut get = pin!(received.get_async());
    begin(get.as_mut());
    queue.put(&5).unwrap();
    assert_eq!(block_on(get).unwrap(), 5);
}
