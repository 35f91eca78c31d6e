//! Handles inside other objects, and sent to other processes.

use std::thread;

use executor::{
    Connection,
    manager::{
        Any, Array, Barrier, BoundedSemaphore, Condition, Dict, Event, JoinableQueue, List, Lock,
        Manager, ManagerError, Namespace, Queue, RLock, Semaphore, Set, Value,
    },
    pipe,
    prelude::*,
};
use serde::{Deserialize, Serialize};

use super::{Done, has_objects, start};
use crate::support::{LONG, pool, watchdog};

#[task]
fn get_and_put(by_name: Dict<String, Queue<String>>, all: List<Queue<String>>) -> Done {
    let asks = by_name.get("asks")?.expect("it was inserted");
    let answers = all.get(0)?.expect("it was pushed");
    let text = asks.get()?;
    answers.put(text.to_uppercase().as_str())
}

#[test]
fn mg07_a_queue_inside_a_dict_or_list_works() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let queues = [0; 2].map(|_| manager.queue(None).unwrap());
    let by_name = manager.dict([("asks".to_owned(), queues[0].clone())]).unwrap();
    let all = manager.list([queues[1].clone()]).unwrap();
    drop(queues);
    by_name.get("asks").unwrap().unwrap().put("a question").unwrap();
    start(get_and_put::task(by_name.clone(), all.clone())).join().unwrap();
    let answers = all.iter().next().unwrap().unwrap();
    assert_eq!(answers.get().unwrap(), "A QUESTION");
    assert!(by_name.get("asks").unwrap().unwrap().is_empty().unwrap());
    assert_eq!(manager.objects().unwrap(), 4);
    drop((by_name, all, answers));
    has_objects(&manager, 0);
}

#[derive(Serialize, Deserialize)]
pub(super) struct Everything {
    dict: Dict<u8, u8>,
    list: Vec<List<u8>>,
    set: Option<Set<u8>>,
    value: (Value<u8>, Array<u8>),
    namespace: Namespace,
    queues: (Queue<u8>, JoinableQueue<u8>),
    locks: (Lock, RLock, Condition),
    semaphores: (Semaphore, BoundedSemaphore),
    event: Event,
    barrier: Barrier,
}

pub(super) fn everything(manager: &Manager) -> Result<Everything, ManagerError> {
    Ok(Everything {
        dict: manager.dict([(1, 1)])?,
        list: vec![manager.list([1])?, manager.list([2])?],
        set: Some(manager.set([1])?),
        value: (manager.value(1)?, manager.array([1])?),
        namespace: manager.namespace()?,
        queues: (manager.queue(None)?, manager.joinable_queue(Some(1))?),
        locks: (manager.lock()?, manager.rlock()?, manager.condition()?),
        semaphores: (manager.semaphore(1)?, manager.bounded_semaphore(1)?),
        event: manager.event()?,
        barrier: manager.barrier(1)?,
    })
}

/// The objects in `Everything`; the condition has a lock of its own.
pub(super) const ALL: u64 = 17;

fn use_all(all: &Everything) -> Done {
    all.dict.insert(&2, &2)?;
    all.list.iter().try_for_each(|list| list.push(&3))?;
    all.set.as_ref().expect("it is there").insert(&4)?;
    all.value.0.set(&5)?;
    all.value.1.set(0, &6)?;
    all.namespace.set("x", &7)?;
    all.queues.0.put(&8)?;
    all.queues.1.put(&9)?;
    drop((all.locks.0.acquire()?, all.locks.1.acquire()?));
    let guard = all.locks.2.acquire()?;
    all.locks.2.notify_all(&guard)?;
    drop((all.semaphores.0.acquire()?, all.semaphores.1.acquire()?));
    all.event.set()?;
    assert_eq!(all.barrier.wait()?, Ok(0));
    Ok(())
}

#[track_caller]
pub(super) fn assert_used(all: &Everything) {
    assert_eq!(all.dict.keys().unwrap(), [1, 2]);
    assert_eq!(all.list[1].snapshot().unwrap(), [2, 3]);
    assert_eq!(all.set.as_ref().unwrap().snapshot().unwrap(), [1, 4]);
    assert_eq!((all.value.0.get().unwrap(), all.value.1.get(0).unwrap()), (5, Some(6)));
    assert_eq!(all.namespace.get::<u8>("x").unwrap(), Some(7));
    assert_eq!((all.queues.0.get().unwrap(), all.queues.1.get().unwrap()), (8, 9));
    assert!(all.event.is_set().unwrap() && !all.locks.2.get_lock().is_locked().unwrap());
}

#[task]
pub(super) fn use_and_return(all: Everything) -> Result<Everything, ManagerError> {
    use_all(&all)?;
    Ok(all)
}

#[test]
fn every_object_travels_in_an_argument_and_a_result() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let pool = pool(1);
    let future = pool.submit(use_and_return::task(everything(&manager).unwrap()));
    // The sender's handles are gone already.
    let back = future.result().unwrap();
    assert_used(&back);
    assert_eq!(manager.objects().unwrap(), ALL);
    drop(back);
    has_objects(&manager, 0);
}

#[test]
fn every_object_can_be_stored_in_another_one() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let shelf = manager.dict::<String, _>([]).unwrap();
    let queue = manager.queue(None).unwrap();
    shelf.insert("all", &everything(&manager).unwrap()).unwrap();
    assert_eq!(manager.objects().unwrap(), ALL + 2);
    let all: Everything = shelf.remove("all").unwrap().unwrap();
    use_all(&all).unwrap();
    queue.put(&all).unwrap();
    drop(all);
    let all = queue.get().unwrap();
    assert_used(&all);
    queue.put(&all).unwrap();
    drop(all);
    assert_eq!(manager.objects().unwrap(), ALL + 2);
    // The item goes with its queue.
    drop(queue);
    has_objects(&manager, 1);
}

#[task]
fn send_through(
    queue: executor::Queue<List<u32>>,
    connection: Connection<List<u32>, u8>,
    lists: Queue<List<u32>>,
) -> Result<List<u32>, ManagerError> {
    // Each list is made in this process, by the manager's own child's child, and dropped at once.
    let list = lists.get()?;
    list.push(&1)?;
    queue.put(list).expect("the queue is open");
    let list = lists.get()?;
    list.push(&2)?;
    connection.send(&list).expect("the other side is there");
    drop(list);
    let list = lists.get()?;
    list.push(&3)?;
    Ok(list)
}

#[test]
fn an_object_lives_on_its_way_although_its_sender_has_ended() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let queue = executor::Queue::unbounded().unwrap();
    let (ours, theirs) = pipe::<u8, List<u32>>().unwrap();
    let lists = manager.queue(None).unwrap();
    for number in 0..3 {
        lists.put(&manager.list([10 * number]).unwrap()).unwrap();
    }
    let child = start(send_through::task(queue.clone(), theirs, lists.clone()));
    let result = child.join().unwrap();
    drop((child, lists));
    // The process has ended, and nothing but the messages refers to two of the lists.
    has_objects(&manager, 3);
    let sent = queue.get_timeout(LONG).unwrap();
    assert_eq!(sent.snapshot().unwrap(), [0, 1]);
    assert_eq!(ours.recv().unwrap().snapshot().unwrap(), [10, 2]);
    assert_eq!(result.snapshot().unwrap(), [20, 3]);
    drop((sent, result));
    has_objects(&manager, 0);
}

#[test]
fn a_message_that_is_never_received_keeps_its_object_only_while_it_can_be() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let queue = executor::Queue::unbounded().unwrap();
    queue.put(manager.list([1]).unwrap()).unwrap();
    let (ours, theirs) = pipe::<List<i32>, ()>().unwrap();
    ours.send(&manager.list([2]).unwrap()).unwrap();
    assert_eq!(manager.objects().unwrap(), 2);
    drop((ours, theirs));
    has_objects(&manager, 1);
    drop(queue);
    has_objects(&manager, 0);
}

#[test]
fn objects_that_were_removed_from_others_are_gone() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let make = || manager.list([1]).unwrap();
    let made = [0; 4].map(|_| make());
    let list = manager.list([made[0].clone(), made[1].clone()]).unwrap();
    let dict = manager.dict([(1, made[2].clone()), (2, made[3].clone())]).unwrap();
    let value = manager.value(make()).unwrap();
    drop(made);
    has_objects(&manager, 8);
    drop(list.set(0, &make()).unwrap());
    list.splice(1..2, []).unwrap();
    dict.insert(&1, &dict.get(&2).unwrap().unwrap()).unwrap();
    drop(dict.compare_exchange(&2, None, None).unwrap());
    drop(dict.pop().unwrap());
    drop(value.swap(&list.get(0).unwrap().unwrap()).unwrap());
    assert_eq!(value.get().unwrap(), list.get(0).unwrap().unwrap());
    has_objects(&manager, 5);
    list.clear().unwrap();
    dict.clear().unwrap();
    has_objects(&manager, 4);
    drop((list, dict));
    has_objects(&manager, 2);
    drop(value);
    has_objects(&manager, 0);
}

#[task]
fn use_in_many_threads(list: List<u32>) -> Done {
    thread::scope(|scope| {
        let pushes: Vec<_> = (0..8)
            .map(|number| (list.clone(), number))
            .map(|(list, number)| scope.spawn(move || list.push(&number)))
            .collect();
        pushes.into_iter().try_for_each(|push| push.join().expect("no panic"))
    })
}

#[test]
fn one_handle_serves_many_threads_and_many_processes() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([]).unwrap();
    let children = [0; 3].map(|_| start(use_in_many_threads::task(list.clone())));
    children.iter().for_each(|child| child.join().unwrap());
    let mut items = list.snapshot().unwrap();
    items.sort_unstable();
    assert!(items.into_iter().eq((0..24).map(|number| number / 3)));
    drop((children, list));
    has_objects(&manager, 0);
}

#[task]
fn count_of(lists: Vec<List<u32>>) -> Result<u32, ManagerError> {
    let mut sum = 0;
    for list in &lists {
        sum += list.get(0)?.expect("one item");
    }
    Ok(sum)
}

#[test]
fn hundreds_of_handles_are_sent_in_one_argument() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    // No more descriptors than the system takes in one message.
    let lists: Vec<_> = (0..200).map(|number| manager.list([number]).unwrap()).collect();
    let sum = start(count_of::task(lists.clone())).join().unwrap();
    assert_eq!(sum, (0..200).sum::<u32>());
    // The same inside one object takes no descriptor for each of them.
    let shelf = manager.list(lists.clone()).unwrap();
    drop(lists);
    assert_eq!(start(count_all::task(shelf.clone())).join().unwrap(), (0..200).sum::<u32>());
    drop(shelf);
    has_objects(&manager, 0);
}

#[task]
fn count_all(lists: List<List<u32>>) -> Result<u32, ManagerError> {
    lists.iter().map(|list| Ok(list?.get(0)?.expect("one item"))).sum()
}

#[test]
fn an_object_of_one_manager_cannot_be_stored_in_another_one() {
    let (one, other) = (Manager::start().unwrap(), Manager::start().unwrap());
    let list = one.list([1]).unwrap();
    let error = other.list([list.clone()]).unwrap_err();
    let ManagerError::Encode(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("an object of one manager cannot be stored in another"), "{text}");
    assert_ne!(other.list([1]).unwrap(), list);
    assert_eq!(list.clone(), list);
}

#[test]
fn what_belongs_to_processes_cannot_be_stored() {
    let manager = Manager::start().unwrap();
    let queue = manager.queue::<executor::Queue<u8>>(None).unwrap();
    let error = queue.put(&executor::Queue::<u8>::unbounded().unwrap()).unwrap_err();
    let ManagerError::Encode(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("belongs to processes"), "{text}");
    assert!(queue.is_empty().unwrap());
}

#[test]
fn debug_names_the_kind_and_the_object() {
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    let debug = format!("{list:?}");
    assert!(debug.starts_with("List(") && debug.contains("object: "), "{debug}");
    assert_eq!(debug, format!("{:?}", list.clone()));
    assert_ne!(debug, format!("{:?}", manager.list([1]).unwrap()));
    // Who knows the whole number of an object may use it.
    let number = debug.split("object: ").nth(1).unwrap();
    assert_eq!(number.find(|c: char| !c.is_ascii_hexdigit()), Some(5), "{debug}");
}

/// The reply brings the previous value, which nobody reads.
#[test]
fn an_object_that_a_value_had_is_gone_when_the_value_is_set() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let value = manager.value(manager.list([1]).unwrap()).unwrap();
    let other = manager.list([2]).unwrap();
    value.set(&other).unwrap();
    has_objects(&manager, 2);
}

#[test]
fn an_object_that_a_namespace_had_is_gone_when_the_field_is_set_or_removed() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let space = manager.namespace().unwrap();
    for _ in 0..2 {
        let list = manager.list([1]).unwrap();
        space.set("list", &list).unwrap();
    }
    space.remove("list").unwrap();
    has_objects(&manager, 1);
}

#[test]
fn a_handle_as_a_key_works_or_is_an_encode_error() {
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    let by_list = manager.dict::<List<i32>, Any>([]).unwrap();
    match by_list.insert(&list, &Any::from(1)) {
        Ok(_) => assert_eq!(by_list.get(&list).unwrap(), Some(Any::from(1))),
        Err(error) => assert!(matches!(error, ManagerError::Encode(_)), "{error:?}"),
    }
}

#[task]
fn count_items(
    lists: Vec<List<u32>>,
    inside: List<List<u32>>,
) -> Result<(usize, usize), ManagerError> {
    let inside = inside.snapshot()?;
    Ok((
        lists.iter().map(List::len).sum::<Result<usize, _>>()?,
        inside.iter().map(List::len).sum::<Result<usize, _>>()?,
    ))
}

#[test]
fn as_many_handles_as_descriptors_travel_at_once_and_more_inside_a_list() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let lists: Vec<_> = (0..300).map(|n| manager.list([n]).unwrap()).collect();
    let inside = manager.list(lists.iter().cloned()).unwrap();
    // One descriptor is for the server, and one for each handle.
    let some = lists[..251].to_vec();
    let child = start(count_items::task(some, inside.clone()));
    assert_eq!(child.join().unwrap(), (251, 300));
    let error = executor::Process::new(count_items::task(lists.clone(), inside.clone()))
        .start()
        .unwrap_err();
    let text = format!("{error} {:?}", std::error::Error::source(&error));
    assert!(text.contains("a managed object: the handles in one message"), "{text}");
    assert!(text.contains("items of one managed list"), "{text}");
    // Handles that were received one by one share the descriptor, too.
    let queue = executor::SimpleQueue::new().unwrap();
    let received = lists[..252].iter().map(|list| {
        queue.put(vec![list.clone()]).unwrap();
        queue.get().unwrap().pop().unwrap()
    });
    let received: Vec<List<u32>> = received.collect();
    queue.put(received).unwrap();
    assert_eq!(queue.get().unwrap(), lists[..252]);
}

/// The handle is dropped as soon as it is encoded, before the request is sent. Its release must not
/// reach the server first.
#[test]
fn a_handle_given_away_to_a_new_dict_is_stored() {
    let manager = Manager::start().unwrap();
    let dict = manager.dict([(1, manager.queue::<u8>(None).unwrap())]).unwrap();
    assert!(dict.get(&1).unwrap().unwrap().is_empty().unwrap());
}

#[test]
fn a_handle_given_away_to_a_list_is_stored() {
    let manager = Manager::start().unwrap();
    let make = || manager.list([1]).unwrap();
    let list = manager.list([make()]).unwrap();
    list.extend([make()]).unwrap();
    list.splice(0..0, [make()]).unwrap();
    assert_eq!(list.len().unwrap(), 3);
}
