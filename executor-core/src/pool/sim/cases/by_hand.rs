//! Small cases, by hand.

use super::*;

#[test]
fn an_idle_worker_takes_over_what_was_sent_ahead_to_a_stopped_one() {
    // Five microseconds are short, but not tiny.
    let mut world = World::ready_for(2, 1);
    let tasks = world.calls(1, 12);
    assert!(world.holding(0) > 3 && world.holding(1) > 3, "sent ahead to both");
    world.process(WorkerId(0)).stopped = true;
    world.settle();
    // The first task in line might begin at any time, so it is not taken away.
    assert_eq!(world.holding(0), 1);
    assert_eq!(
        tasks
            .iter()
            .filter(|task| world.stories[task.as_u64() as usize - 1].ending.is_none())
            .count(),
        1
    );
    world.process(WorkerId(0)).stopped = false;
    world.settle();
    assert!(world.all_return(&tasks));
}

#[test]
fn tiny_tasks_go_to_a_worker_that_runs_and_leave_it_if_it_stops() {
    let mut world = World::ready(2);
    let tasks = world.quick(12);
    let busy = u32::from(world.holding(1) > 0);
    assert_eq!((world.holding(busy), world.holding(1 - busy)), (12, 0));
    world.process(WorkerId(busy)).stopped = true;
    world.settle();
    assert_eq!(world.holding(busy), 1, "it might still begin the first one");
    world.process(WorkerId(busy)).stopped = false;
    world.settle();
    assert!(world.all_return(&tasks));
}

#[test]
fn a_tiny_task_does_not_wait_behind_a_long_one_nor_a_long_one_behind_tiny_ones() {
    let mut world = World::ready(2);
    // The long function is known, too.
    world.submit(4, None, Conduct::Returns);
    world.settle();
    let long = world.submit(4, None, Conduct::Returns);
    let busy = u32::from(world.holding(1) > 0);
    let tiny = world.quick(3);
    assert_eq!((world.holding(busy), world.holding(1 - busy)), (1, 3));
    world.settle();
    assert!(world.all_return(&[long]) && world.all_return(&tiny));

    let tiny = world.quick(3);
    let busy = u32::from(world.holding(1) > 0);
    let long = world.submit(4, None, Conduct::Returns);
    assert_eq!((world.holding(busy), world.holding(1 - busy)), (3, 1));
    world.settle();
    assert!(world.all_return(&[long]) && world.all_return(&tiny));
}

#[test]
fn only_tiny_calls_are_deferred_and_only_while_a_worker_has_enough_of_them() {
    let mut world = World::ready(2);
    world.quick(15);
    assert_eq!(world.scheduler.deferred(), None);
    world.quick(1);
    assert_eq!(world.scheduler.deferred(), Some(FnId(0)));
    world.settle();
    assert_eq!(world.scheduler.deferred(), None, "nothing is left to do");

    let mut world = World::ready_for(2, 1);
    world.calls(1, 40);
    assert_eq!(world.scheduler.deferred(), None, "five microseconds are not tiny");
}

#[test]
fn a_worker_that_is_still_receiving_is_not_taken_for_a_deaf_one() {
    let mut world = World::ready(1);
    let task = world.quick(1)[0];
    // The worker begins nothing for longer than a start may last, while more of its argument
    // arrives.
    world.process(WorkerId(0)).stopped = true;
    for _ in 0..10 {
        world.process(WorkerId(0)).taken_in += 1;
        world.advance(Duration::from_secs(11));
        world.tick();
        assert!(world.processes[&WorkerId(0)].killed.is_none());
    }
    // Now nothing arrives any more.
    world.advance(Duration::from_secs(9));
    world.tick();
    assert!(world.processes[&WorkerId(0)].killed.is_none(), "it may still");
    world.advance(Duration::from_secs(2));
    world.tick();
    world.settle();
    assert!(!world.processes.contains_key(&WorkerId(0)), "it was killed");
    assert_eq!(world.ending(task), Some(Ending::Value), "and another has run the task");
}

#[test]
fn cancel_withdraws_what_was_sent_ahead_and_nothing_else() {
    let mut world = World::ready(1);
    let tasks = world.quick(4);
    world.work(0);
    assert!(!world.cancel(tasks[0]), "it runs");
    assert!(world.cancel(tasks[2]));
    world.settle();
    assert_eq!(world.ending(tasks[2]), Some(Ending::Cancelled));
    assert!(world.all_return(&[tasks[0], tasks[1], tasks[3]]));
    assert_eq!(world.story(tasks[2]).begun, None);
}

#[test]
fn a_timeout_with_the_reply_on_its_way_does_not_kill_the_next_task() {
    let mut world = World::ready(1);
    let first = world.submit(0, Some(A_MOMENT / 2), Conduct::Returns);
    let next = world.submit(0, None, Conduct::Returns);
    let last = world.submit(0, None, Conduct::Returns);
    world.work(0); // claims the first
    world.work(0); // publishes its reply, which nobody reads yet
    world.work(0); // claims the next
    world.advance(A_MOMENT);
    world.tick();
    assert_eq!(world.processes[&WorkerId(0)].killed, None);
    world.settle();
    assert!(world.all_return(&[first, next, last]));
}

#[test]
fn a_limit_on_waiting_ends_what_has_not_begun_and_nothing_else() {
    let mut world = World::ready(1);
    world.queue_timeout = Some(2 * A_MOMENT);
    let limited = world.calls(0, 3);
    world.queue_timeout = None;
    let unlimited = world.quick(1);
    world.work(0); // claims the first
    assert_eq!(world.holding(0), 4, "all are with the worker, and most have not begun");
    world.advance(A_MOMENT);
    world.tick();
    for task in &limited[1..] {
        assert_eq!(world.ending(*task), Some(Ending::TimedOut));
    }
    assert_eq!(world.ending(limited[0]), None);
    world.settle();
    assert!(world.all_return(&limited[..1]) && world.all_return(&unlimited));
}

#[test]
fn a_frame_that_kills_three_workers_ends_its_task_and_no_other() {
    let mut world = World::ready(1);
    let before = world.quick(2);
    let poison = world.submit(0, None, Conduct::Poison);
    let behind = world.quick(3);
    world.settle();
    assert_eq!(world.ending(poison), Some(Ending::Lost));
    assert_eq!(world.story(poison).first_in_line, LOST_UNBEGUN_MAX);
    assert!(world.all_return(&before) && world.all_return(&behind));
}

#[test]
fn who_waits_behind_many_crashing_tasks_is_innocent() {
    let mut world = World::ready(1);
    let crashing: Vec<_> = (0..6).map(|_| world.submit(0, None, Conduct::Crashes)).collect();
    let behind = world.quick(3);
    world.settle();
    assert!(
        crashing
            .iter()
            .all(|task| world.stories[task.as_u64() as usize - 1].ending == Some(Ending::Lost))
    );
    assert!(world.all_return(&behind));
}

#[test]
fn a_draining_pool_gets_past_frames_that_kill() {
    let mut world = World::ready(2);
    let poison: Vec<_> = (0..3).map(|_| world.submit(0, None, Conduct::Poison)).collect();
    let good = world.quick(5);
    world.shutdown(false, None);
    world.drain();
    assert!(
        poison
            .iter()
            .all(|task| world.stories[task.as_u64() as usize - 1].ending == Some(Ending::Lost))
    );
    assert!(world.all_return(&good));
    assert!(!world.broken);
}

/// Lets the only worker of a pool die idle. Then each new worker dies before its hello, `pause`
/// after the one before.
fn failing_starts(pause: Duration, count: usize) -> World {
    let mut world = World::ready(1);
    world.process(WorkerId(0)).die();
    world.on_reap(WorkerId(0));
    world.on_read(WorkerId(0), 1);
    world.quick(1);
    for _ in 0..count {
        if world.scheduler.next_deadline().is_some_and(|at| at < world.now + pause) {
            world.advance(pause);
            world.tick();
        }
        let Some((&id, _)) = world.processes.iter().next() else { break };
        world.on_starter(id);
        world.process(id).die();
        world.on_reap(id);
    }
    world
}

#[test]
fn five_failed_starts_within_the_period_break_a_pool_that_has_worked() {
    let pause = Duration::from_secs(2);
    assert!(!failing_starts(pause, START_FAILURES_MAX - 1).broken);
    assert!(failing_starts(pause, START_FAILURES_MAX).broken);
    // These are fewer than five in any ten seconds.
    assert!(!failing_starts(Duration::from_secs(3), 20).broken);
}

#[test]
fn a_refusal_of_a_worker_that_was_given_up_is_no_further_failed_start() {
    let mut world = failing_starts(Duration::from_secs(2), START_FAILURES_MAX - 1);
    let given_up = WorkerId(0);
    assert!(!world.scheduler.knows(given_up) && world.processes.is_empty());
    world.refuse_start(given_up);
    assert!(!world.broken);
}

#[test]
fn a_broken_pool_does_not_announce_another_worker() {
    // All are given up in the same tick. The fifth one breaks a pool that has worked, and the first
    // one a pool that has not.
    for has_worked in [false, true] {
        let start_timeout = Duration::from_secs(1);
        let mut world = World::new(1, small(6, start_timeout), Climate::calm());
        if has_worked {
            let task = world.submit(0, None, Conduct::Returns);
            world.until_all_end();
            assert_eq!(world.ending(task), Some(Ending::Value));
            world.process(WorkerId(0)).die();
            world.on_reap(WorkerId(0));
            world.on_read(WorkerId(0), 1);
        }
        let before = world.ids();
        let tasks = [(); 6].map(|()| world.submit(0, None, Conduct::Returns));
        let new: Vec<_> = world.ids().into_iter().filter(|id| !before.contains(id)).collect();
        assert_eq!(new.len(), 6);
        for id in new {
            world.process(id).never_starts = true;
        }
        // The world checks each announcement.
        world.settle();
        assert!(tasks.iter().all(|task| world.ending(*task) == Some(Ending::Broken)));
        assert!(world.closed);
    }
}

#[test]
fn starts_that_hang_and_cannot_be_killed_break_the_pool_in_the_end() {
    let mut world = World::new(1, small(1, Duration::from_secs(1)), Climate::calm());
    let task = world.submit(0, None, Conduct::Returns);
    world.process(WorkerId(0)).never_starts = true;
    world.settle();
    assert_eq!(world.ending(task), Some(Ending::Broken));
    assert!(world.closed);
}

#[test]
fn cancel_running_says_no_to_a_task_that_its_timeout_is_ending() {
    let mut world = World::ready(1);
    let task = world.submit(0, Some(A_MOMENT), Conduct::Hangs);
    world.work(0);
    world.process(WorkerId(0)).immortal = true;
    world.advance(2 * A_MOMENT);
    world.tick();
    assert!(!world.cancel_running(task));
    world.advance(KILL_GRACE);
    world.tick();
    assert_eq!(world.ending(task), Some(Ending::TimedOut));
}

#[test]
fn short_tasks_do_not_wait_for_a_worker_that_starts_or_leaves() {
    // With more workers than processors, short tasks wait for a worker that runs. These workers do
    // not run.
    let crowded = |tasks_max| {
        let config = Config {
            workers_max: 2,
            workers_min: 2,
            processors: 1,
            tasks_max,
            ..small(2, Duration::from_secs(10))
        };
        let mut world = World::new(1, config, Climate::calm());
        world.event(|scheduler, now, _, out| scheduler.on_open(now, out));
        world.settle();
        let first = world.submit(0, None, Conduct::Returns);
        world.settle();
        assert!(world.all_return(&[first]));
        world
    };
    let mut world = crowded(None);
    // Otherwise it would be replaced later, because it died right after it was ready.
    world.pass(YOUNG);
    world.process(WorkerId(0)).die();
    world.on_reap(WorkerId(0));
    world.on_read(WorkerId(0), 1);
    world.process(WorkerId(2)).never_starts = true;
    let tasks = world.quick(3);
    assert!(world.holding(1) > 0, "the idle one has it at once");
    let since = world.now;
    while !world.all_return(&tasks) {
        assert!((world.any_turn() || world.wait()) && world.now - since < Duration::from_secs(1));
    }

    let mut world = crowded(Some(3));
    let busy = u32::from(world.processes[&WorkerId(1)].begun.len() == 1);
    let last = world.quick(2);
    while world.processes[&WorkerId(busy)].stop_sent.is_none() {
        assert!(world.any_turn() || world.wait(), "it has had its three");
    }
    world.process(WorkerId(busy)).stopped = true;
    assert!(world.all_return(&last));
    let next = world.submit(0, None, Conduct::Returns);
    assert_eq!(world.holding(1 - busy), 1, "the idle one has it at once");
    let since = world.now;
    while !world.all_return(&[next]) {
        assert!((world.any_turn() || world.wait()) && world.now - since < Duration::from_secs(1));
    }
}
