//! Workers that leave although nothing is wrong.

use super::*;

#[test]
fn an_idle_pool_shrinks_to_its_minimum_and_grows_again_on_demand() {
    const IDLE: Duration = Duration::from_secs(5);
    for workers_min in 0..=4 {
        let lifespan = Lifespan { idle_timeout: Some(IDLE), ..Lifespan::default() };
        let config = Config { workers_min, lifespan, ..small(4, Duration::from_secs(10)) };
        let mut world = World::of(config);
        for _ in 0..5 {
            let tasks = world.calls(5, 4);
            world.until_all_end();
            assert!(world.all_return(&tasks));
            assert_eq!(world.processes.len(), 4);
            world.pass(IDLE - Duration::from_secs(1));
            assert_eq!(world.processes.len(), 4, "they have been idle for less than that");
            // One that does not leave when it is asked to is killed after this time.
            world.pass(IDLE + STOP_GRACE + Duration::from_secs(1));
            assert_eq!(world.processes.len(), workers_min, "{}", world.describe());
            let events = world.events;
            world.pass(20 * IDLE);
            assert_eq!(world.processes.len(), workers_min);
            assert_eq!(world.events, events, "nothing wakes the driver any more");
        }
    }
}

#[test]
fn a_worker_that_is_busy_now_and_then_is_not_idle_for_long() {
    const IDLE: Duration = Duration::from_secs(5);
    let lifespan = Lifespan { idle_timeout: Some(IDLE), ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(2, Duration::from_secs(10)) });
    world.calls(5, 2);
    world.until_all_end();
    let events = world.events;
    for _ in 0..100 {
        world.calls(0, 1);
        world.pass(IDLE / 5);
    }
    // The one that was busy last gets the next task, and the other one leaves.
    assert_eq!(world.processes.len(), 1);
    // A submission, its reply, and seldom a tick: the timeout is not set anew with each task.
    let ticks = world.counts["tick: due"];
    assert!(ticks < 60, "{ticks} ticks for {} events", world.events - events);
}

#[test]
fn an_old_worker_ends_its_task_and_leaves_what_was_sent_ahead_to_others() {
    let lifespan = Lifespan { lifetime_max: Some(A_MOMENT), ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(1, Duration::from_secs(10)) });
    let first = world.calls(0, 1);
    world.until_all_end();
    assert!(world.all_return(&first));
    let tasks = world.calls(0, 5);
    world.on_work(WorkerId(0)); // claims the first
    assert_eq!(world.holding(0), 5);
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!((world.holding(0), world.processes[&WorkerId(0)].stop_sent), (1, None));
    world.until_all_end();
    assert!(world.all_return(&tasks));
    assert!(world.story(tasks[1]).begun.unwrap().0 != WorkerId(0));
    // An idle worker leaves as well when it is old, and nobody needs another one.
    world.pass(2 * (A_MOMENT + STOP_GRACE));
    assert!(world.processes.is_empty());
}

#[test]
fn a_worker_that_is_old_at_once_keeps_its_first_task() {
    let lifetime_max = Some(Duration::from_nanos(1));
    let lifespan = Lifespan { lifetime_max, ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(1, Duration::from_secs(10)) });
    let tasks = world.calls(0, 3);
    while world.processes.values().all(|process| !process.ready) {
        assert!(world.any_turn());
    }
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!(world.holding(0), 1, "it has not begun it, and nobody takes it away");
    world.until_all_end();
    let ran_by = |task: &TaskId| world.stories[task.as_u64() as usize - 1].begun.unwrap().0;
    assert_eq!(tasks.iter().map(ran_by).collect::<Vec<_>>(), [0, 1, 2].map(WorkerId));
}

#[test]
fn a_worker_that_is_old_after_the_task_of_a_broadcast_gets_a_first_task() {
    let lifetime_max = Some(Duration::from_nanos(1));
    let lifespan = Lifespan { lifetime_max, ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(1, Duration::from_secs(10)) });
    let tasks = world.calls(0, 3);
    let mut broadcasts = 0;
    while world.unresolved() > 0 {
        // As `broadcast_and_later` does.
        if let Some((&id, _)) = world.processes.iter().next_back()
            && id.0 >= broadcasts
        {
            broadcasts += 1;
            world.broadcast_to(id, 1, None, Conduct::Returns);
        }
        assert!(broadcasts <= 3, "one worker for each task: {}", world.describe());
        world.any_step();
    }
    assert!(world.all_return(&tasks));
    let ran_by = |task: &TaskId| world.stories[task.as_u64() as usize - 1].begun.unwrap().0;
    assert_eq!(tasks.iter().map(ran_by).collect::<Vec<_>>(), [0, 1, 2].map(WorkerId));
}

#[test]
fn a_worker_gets_nothing_at_the_moment_at_which_it_is_too_old() {
    let lifespan = Lifespan { lifetime_max: Some(A_MOMENT), ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(1, Duration::from_secs(10)) });
    world.retries = 1;
    let tasks = [(); 3].map(|()| world.submit(0, None, Conduct::Fails));
    world.retries = 0;
    while world.undecided.len() < tasks.len() {
        assert!(world.any_turn() || world.wait(), "all of them fail");
    }
    for task in std::mem::take(&mut world.undecided) {
        world.later.push((task, world.now + A_MOMENT));
        world.event(|scheduler, now, claims, out| {
            scheduler.on_retry(now, task, A_MOMENT, claims, out)
        });
    }
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!(world.holding(0), 0, "they are due, and are for the next worker");
    assert!(world.processes[&WorkerId(0)].stop_sent.is_some());
    world.until_all_end();
    assert!(world.all_return(&tasks));
}

#[test]
fn what_a_worker_keeps_for_too_long_while_it_leaves_goes_to_others() {
    // The function takes a second, which nobody knows yet.
    const ITEMS: usize = 20;
    let lifetime_max = Some(Duration::from_nanos(1));
    let lifespan = Lifespan { lifetime_max, ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(2, Duration::from_secs(10)) });
    world.submit_chunk(5, None, &[Conduct::Returns; ITEMS]);
    while world.processes.values().all(|process| !process.ready) {
        assert!(world.any_turn());
    }
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!(world.holding(0), ITEMS, "it is old, and keeps its first chunk");
    world.pass(5 * (START_COST + SLOW_START));
    assert_eq!(world.holding(0), 1, "it has begun one, and the others went elsewhere");
    assert_eq!(world.processes.len(), 2, "another worker was started for them");
    world.until_all_end();
    let ends = world.stories.iter().map(|story| story.ending);
    assert!(ends.into_iter().all(|ending| ending == Some(Ending::Value)));
}

#[test]
fn ticks_for_other_reasons_do_not_put_off_the_end_of_an_old_worker() {
    let lifespan = Lifespan { lifetime_max: Some(A_MOMENT), ..Lifespan::default() };
    let mut world = World::of(Config { lifespan, ..small(1, Duration::from_secs(10)) });
    let first = world.calls(0, 1);
    world.until_all_end();
    assert!(world.all_return(&first));
    let since = world.now;
    while world.processes[&WorkerId(0)].stop_sent.is_none() {
        // The driver is woken for other reasons, ten times in a millisecond.
        world.advance(Duration::from_micros(100));
        world.tick();
        assert!(world.now - since < 2 * A_MOMENT, "it is far too old");
    }
}

#[test]
fn workers_that_are_kept_are_replaced_when_they_are_old_at_different_times() {
    let lifetime_max = Some(Duration::from_secs(100));
    let lifespan = Lifespan { lifetime_max, ..Lifespan::default() };
    let config = Config { workers_min: 4, lifespan, ..small(4, Duration::from_secs(10)) };
    let mut world = World::of(config);
    world.pass(Duration::from_secs(80));
    assert_eq!(world.ids(), [0, 1, 2, 3].map(WorkerId));
    let mut left = Vec::new();
    for _ in 0..21 {
        world.pass(Duration::from_secs(1));
        assert_eq!(world.processes.len(), 4, "each is replaced at once");
        left.push((0..4).filter(|id| !world.processes.contains_key(&WorkerId(*id))).count());
    }
    assert_eq!((left[9], left[20]), (0, 4), "after nine tenths of the time at the earliest");
    assert!((1..4).all(|some| left.contains(&some)), "one after the other: {left:?}");
}

#[test]
fn a_shrinking_pool_loses_no_task_and_keeps_the_workers_with_the_most_to_do() {
    let mut world = World::ready_for(4, 5);
    let long = world.calls(5, 2);
    let busy: Vec<_> = world.ids().into_iter().filter(|id| world.holding(id.0) == 1).collect();
    assert_eq!(busy.len(), 2, "one for each of the long ones");
    world.resize(2);
    assert_eq!(world.staying(), 2, "those that run nothing are asked at once");
    let waiting = world.quick(40);
    world.until_all_end();
    world.pass(STOP_GRACE);
    assert_eq!(world.ids(), busy);
    assert!(world.all_return(&long) && world.all_return(&waiting));

    // Both run a task, so one of them leaves after it. It stays if it is wanted again before that.
    let long = world.calls(5, 2);
    for id in &busy {
        world.on_work(*id);
    }
    world.resize(1);
    assert_eq!(world.staying(), 2);
    let next = world.calls(5, 2);
    world.resize(2);
    world.until_all_end();
    assert!(world.all_return(&long) && world.all_return(&next));
    assert_eq!(world.ids(), busy);
}
