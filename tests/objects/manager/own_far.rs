//! Objects of types of one's own, used by clients that came by an address.
#![allow(unreachable_pub, reason = "only public methods can be called")]

use std::{path::Path, pin::pin, thread};

use executor::{
    manager::{List, ManagerError},
    prelude::*,
};
use futures::executor::block_on;
use rustix::process::Signal;

use super::{
    Done, ends_killed,
    far::{Site, Way},
    has_objects,
    own::{CounterProxy, SharedNames, Words, begin},
    start,
};
use crate::support::{Gate, eventually, rounds, signal, watchdog};

#[task]
fn add_by_name(way: Way, times: u64) -> Done {
    let counter: CounterProxy = way.connect()?.published("counter")?.expect("it is published");
    for _ in 0..times {
        counter.add(1)?;
        counter.get()?;
    }
    Ok(())
}

#[test]
fn mg10_far_clients_call_the_methods_of_an_object_that_one_of_them_has_made() {
    let _watchdog = watchdog();
    let site = Site::new();
    for way in &site.ways {
        let words = Words::new("words");
        let client = way.connect().unwrap();
        let counter = CounterProxy::with_last_words(&client, 5, &words.path).unwrap();
        client.publish("counter", &counter).unwrap();
        drop((counter, client));
        // The client is gone, and the object stays. Others add to it, from all sides.
        let times = rounds() as u64 / 40;
        let children = site
            .ways
            .each_ref()
            .map(|way| [1, 2].map(|_| start(add_by_name::task(way.clone(), times))));
        let near: CounterProxy = site.manager.published("counter").unwrap().unwrap();
        for _ in 0..times {
            near.add(1).unwrap();
        }
        children.iter().flatten().for_each(|child| child.join().unwrap());
        assert_eq!(near.get().unwrap(), 5 + 5 * times, "{way:?}");
        drop(near);
        assert_eq!(words.read(), "");
        assert!(site.manager.unpublish("counter").unwrap());
        eventually("it is dropped", || words.read() == "dropped\n");
        has_objects(&site.manager, 0);
    }
}

#[test]
fn mg10_values_errors_and_panics_of_methods_come_back_over_every_way() {
    let _watchdog = watchdog();
    let site = Site::new();
    for way in &site.ways {
        let client = way.connect().unwrap();
        let counter = CounterProxy::parsed(&client, "5").unwrap();
        let error = CounterProxy::parsed(&client, "x").unwrap_err();
        assert!(error.remote().unwrap().message().contains("invalid digit"), "{error}");
        let error = counter.checked_add(6, 10).unwrap_err();
        assert_eq!(error.remote().unwrap().message(), "11 is too much");
        let error = counter.half_done(7).unwrap_err();
        assert!(matches!(error, ManagerError::Failed(TaskError::Panicked(_))), "{error:?}");
        assert_eq!(counter.get().unwrap(), 7);
        // More than one message of the link in both directions.
        let (text, bytes) = ("x".repeat(3_000_000), vec![1; 2_000_000]);
        let lengths = counter.lengths(&text, &bytes, &[2; 100_000]).unwrap();
        assert_eq!(lengths, (3_000_000, 2_000_000, 100_000));
        counter.add(400_000).unwrap();
        assert!(counter.below().unwrap().eq(0..400_007), "{way:?}");
        block_on(async {
            let names = SharedNames::new_async(&client).await.unwrap();
            names.add_async("Ann".to_owned()).await.unwrap();
            assert_eq!(names.get_async().await.unwrap(), ["Ann"]);
            let both = futures::join!(counter.meet_async(2), counter.meet_async(2));
            assert!(both.0.is_ok() && both.1.is_ok());
        });
        // A handle is an argument, whichever way it came.
        let list: List<u32> = client.list([1]).unwrap();
        assert_eq!(counter.length(list).unwrap(), 400_008);
        assert_eq!(counter.get().unwrap(), 400_007);
        drop(counter);
        has_objects(&site.manager, 0);
    }
}

#[task]
fn wait_by_name(way: Way, gate: &Path) -> Result<u64, ManagerError> {
    let counter: CounterProxy = way.connect()?.published("counter")?.expect("it is published");
    counter.wait_at(gate)
}

#[task]
fn make_at_the_gate(way: Way, gate: &Path, words: &Path) -> Done {
    CounterProxy::at_the_gate(&way.connect()?, gate, words).map(drop)
}

#[test]
fn mg10_what_a_far_client_had_begun_when_it_was_killed_ends_and_leaves_nothing() {
    let _watchdog = watchdog();
    let site = Site::new();
    let manager = &site.manager;
    for way in &site.ways {
        let counter = CounterProxy::new(manager, 1).unwrap();
        manager.publish("counter", &counter).unwrap();
        let (calls, makes, words) = (Gate::new(), Gate::new(), Words::new("words"));
        let caller = start(wait_by_name::task(way.clone(), calls.path()));
        let maker = start(make_at_the_gate::task(way.clone(), makes.path(), &words.path));
        calls.wait_for(1);
        makes.wait_for(1);
        caller.kill().unwrap();
        maker.kill().unwrap();
        ends_killed(&caller);
        ends_killed(&maker);
        calls.open();
        // In line behind the call.
        assert_eq!(counter.get().unwrap(), 2, "{way:?}");
        assert_eq!(words.read(), "");
        makes.open();
        eventually("it is dropped", || words.read() == "dropped\n");
        assert!(manager.unpublish("counter").unwrap());
        drop(counter);
        has_objects(manager, 0);
    }
}

#[test]
fn mg10_a_method_that_a_far_client_waits_for_holds_up_only_its_object() {
    let _watchdog = watchdog();
    let site = Site::new();
    let gate = Gate::new();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (at, way) in site.ways.iter().enumerate() {
            let client = way.connect().unwrap();
            let [stuck, free] = [1, 2].map(|start| CounterProxy::new(&client, start).unwrap());
            let (path, hangs, waits) = (gate.path(), stuck.clone(), stuck.clone());
            threads.push(scope.spawn(move || hangs.wait_at(path).unwrap_err()));
            gate.wait_for(at + 1);
            threads.push(scope.spawn(move || waits.get().unwrap_err()));
            for sum in 3..50 {
                assert_eq!(free.add(1).unwrap(), sum);
            }
            // A call in line can be given up.
            begin(pin!(stuck.add_async(1)));
        }
        signal(site.manager.pid(), Signal::KILL);
        for thread in threads {
            let error = thread.join().unwrap();
            assert!(matches!(error, ManagerError::Gone(_)), "{error:?}");
        }
    });
}

/// An object whose methods use others of its own server.
struct Agent(Way);

#[managed]
impl Agent {
    pub fn new(way: Way) -> Self {
        Agent(way)
    }

    pub fn add(&mut self, n: u64) -> Result<u64, ManagerError> {
        let counter: CounterProxy =
            self.0.connect()?.published("counter")?.expect("it is published");
        counter.add(n)
    }
}

#[test]
fn mg10_a_method_can_connect_to_its_own_server_and_call_another_object() {
    let _watchdog = watchdog();
    let site = Site::new();
    for way in &site.ways {
        let client = way.connect().unwrap();
        let counter = CounterProxy::new(&client, 1).unwrap();
        client.publish("counter", &counter).unwrap();
        let agents = [1, 2].map(|_| AgentProxy::new(&client, way.clone()).unwrap());
        thread::scope(|scope| {
            for agent in &agents {
                scope.spawn(|| (0..20).for_each(|_| assert!(agent.add(1).unwrap() > 1)));
            }
        });
        assert_eq!(counter.get().unwrap(), 41, "{way:?}");
        assert!(client.unpublish("counter").unwrap());
        drop((agents, counter));
        has_objects(&site.manager, 0);
    }
}
