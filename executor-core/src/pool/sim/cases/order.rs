//! Priorities, and several who share a pool.

use super::*;

/// The scheduler's limit, repeated here so that a change there is noticed.
pub(super) const OVERTAKES_MAX: u32 = 16;

/// A function that takes too long for a task to be sent ahead.
pub(super) const SLOW: u64 = 4;

impl World {
    fn urgent(&mut self, priority: i32) -> TaskId {
        self.priority = priority;
        let task = self.submit(SLOW, None, Conduct::Returns);
        self.priority = 0;
        task
    }

    /// Lets the only worker go on until it has begun the next task, which is returned.
    fn begin_next(&mut self) -> Option<TaskId> {
        let begun = |world: &Self| world.processes[&WorkerId(0)].begun.len();
        let before = begun(self);
        while begun(self) == before {
            if !self.any_turn() && !self.wait() {
                return None;
            }
            if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            }
        }
        self.processes[&WorkerId(0)].begun.last().copied()
    }
}

#[test]
fn the_highest_priority_begins_first_and_the_oldest_task_after_many_overtakes() {
    for seed in 0..100 {
        let mut world = World::ready_for(1, SLOW);
        world.dice = Dice(seed);
        let most = world.dice.pick(&[2, 3, 6]);
        // The waiting tasks, in the order in which they came.
        let mut line: Vec<(i32, TaskId)> = Vec::new();
        let mut overtakes = 0;
        // This one runs while the first ones come.
        world.urgent(0);
        world.begin_next().unwrap();
        for round in 0..200 {
            for _ in 0..world.dice.below(if round < 150 { most } else { 1 }) {
                let priority = world.dice.pick(&[0, 0, 1, 1, 9, i32::MIN, i32::MAX]);
                line.push((priority, world.urgent(priority)));
            }
            let (mut next, oldest) = (0, 0);
            for (at, (priority, _)) in line.iter().enumerate() {
                if *priority > line[next].0 {
                    next = at;
                }
            }
            if overtakes == OVERTAKES_MAX {
                next = oldest;
            }
            overtakes = if next == oldest { 0 } else { overtakes + 1 };
            let expected = (!line.is_empty()).then(|| line.remove(next).1);
            assert_eq!(world.begin_next(), expected, "seed {seed}, round {round}");
            if expected.is_none() {
                world.urgent(0);
                world.begin_next().unwrap();
            }
        }
    }
}

#[test]
fn a_flood_of_urgent_tasks_leaves_a_share_to_all_others() {
    let mut world = World::ready_for(1, SLOW);
    world.urgent(0);
    world.begin_next().unwrap();
    let batch: Vec<_> = (0..20).map(|_| world.urgent(-5)).collect();
    let mut begun = Vec::new();
    for _ in 0..20 * (OVERTAKES_MAX as usize + 1) {
        // An urgent task waits at any time.
        world.urgent(i32::MAX);
        begun.extend(world.begin_next());
    }
    let turns: Vec<_> = (0..begun.len()).filter(|at| batch.contains(&begun[*at])).collect();
    let every = OVERTAKES_MAX as usize + 1;
    assert_eq!(turns, (1..=20).map(|turn| turn * every - 1).collect::<Vec<_>>());
    assert!(begun.iter().filter(|task| batch.contains(task)).eq(&batch), "in their order");
}

#[test]
fn an_urgent_task_that_is_given_back_is_the_first_of_its_priority() {
    let mut world = World::ready_for(1, SLOW);
    world.urgent(0);
    world.begin_next().unwrap();
    let usual = world.urgent(0);
    let urgent = [(); 3].map(|()| world.urgent(2));
    // The worker is given the first one, and dies before it begins it.
    let process = world.process(WorkerId(0));
    process.frames.clear();
    world.settle_until_sent(urgent[0]);
    world.process(WorkerId(0)).die();
    world.settle();
    let mut ends: Vec<_> = [usual, urgent[0], urgent[1], urgent[2]].into();
    ends.sort_by_key(|task| world.stories[task.as_u64() as usize - 1].begun.map(|(_, at)| at));
    assert_eq!(ends, [urgent[0], urgent[1], urgent[2], usual]);
    assert!(world.all_return(&[urgent[0], urgent[1], urgent[2], usual]));
}

impl World {
    /// Goes on until the only worker has been sent this task.
    fn settle_until_sent(&mut self, task: TaskId) {
        while !self.processes[&WorkerId(0)].words.borrow().holding.contains(&task) {
            assert!(self.any_turn() || self.wait(), "nothing happens");
        }
    }
}

#[test]
fn several_maps_share_the_workers_by_the_items_that_each_has_submitted() {
    // Each keeps this many items submitted, as maps do.
    for sizes in [[8, 8, 8], [4, 8, 16]] {
        let mut world = World::ready_for(1, SLOW);
        world.urgent(0);
        world.begin_next().unwrap();
        let mut owner = BTreeMap::new();
        for (map, size) in sizes.into_iter().enumerate() {
            for _ in 0..size {
                owner.insert(world.urgent(0), map);
            }
        }
        let mut begun = [0; 3];
        let rounds: usize = 20 * sizes.iter().sum::<usize>();
        for _ in 0..rounds {
            let task = world.begin_next().expect("there is always one");
            let map = owner[&task];
            begun[map] += 1;
            // Its result is read at once, and the map submits its next item.
            owner.insert(world.urgent(0), map);
        }
        assert_eq!(begun, sizes.map(|size| size * 20), "of {sizes:?}");
    }
}

#[test]
fn what_is_bound_to_a_worker_waits_for_it_and_others_do_not_wait_behind() {
    // Five microseconds are short, so chunks are sent ahead.
    let mut world = World::ready_for(2, 1);
    world.bound_to = Some(0);
    let bound = world.calls(1, 40);
    world.bound_to = None;
    assert!(world.holding(0) > 3, "sent ahead");
    assert_eq!(world.holding(1), 0);
    world.process(WorkerId(0)).stopped = true;
    let others = world.calls(1, 40);
    world.settle();
    assert!(world.all_return(&others), "nothing waits behind what is bound");
    assert!(bound.iter().all(|task| world.ending(*task).is_none()), "nobody else took it over");
    // The worker is replaced by one with the same index.
    world.process(WorkerId(0)).die();
    world.settle();
    assert!(world.all_return(&bound));
    assert_eq!(world.processes[&WorkerId(2)].index, 0);
}

#[test]
fn short_tasks_without_end_do_not_keep_a_worker_from_what_is_bound_to_it() {
    let mut world = World::ready_for(2, 1);
    world.calls(1, 200);
    world.bound_to = Some(0);
    let bound = world.calls(1, 1)[0];
    world.bound_to = None;
    let before = world.stories.len();
    while world.ending(bound).is_none() {
        // There are always others that could be sent ahead.
        world.calls(1, 1);
        assert!(world.any_turn() || world.wait());
        assert!(world.stories.len() < before + 2_000, "it waits behind younger ones");
    }
}

/// A world with one worker and these resources, which runs a slow task.
fn with_tokens(workers: usize, resources: &[u32]) -> World {
    let config = Config { resources: resources.into(), ..small(workers, Duration::from_secs(10)) };
    let mut world = World::of(config);
    for _ in 0..workers {
        world.urgent(0);
    }
    world.settle();
    assert_eq!(world.processes.len(), workers);
    world
}

impl World {
    /// Submits a slow task that needs this many tokens of each resource.
    fn needing(&mut self, tokens: &[u32], priority: i32) -> TaskId {
        let needs = (0..).zip(tokens).filter(|(_, tokens)| **tokens > 0);
        let needs = needs.map(|(resource, tokens)| Need { resource, tokens: *tokens });
        self.needs = needs.collect();
        let task = self.urgent(priority);
        self.needs = Rc::default();
        task
    }

    /// Returns the tasks in the order in which they have begun.
    fn in_order(&self, tasks: &[TaskId]) -> Vec<TaskId> {
        let mut tasks = tasks.to_vec();
        tasks.sort_by_key(|task| self.stories[task.as_u64() as usize - 1].begun.map(|(_, at)| at));
        tasks
    }
}

#[test]
fn tasks_with_tokens_and_others_begin_by_priority_and_age() {
    let mut world = with_tokens(1, &[2, 1]);
    world.urgent(0);
    world.begin_next().unwrap();
    let tasks = [
        world.urgent(0),
        world.needing(&[1], 0),
        world.needing(&[2], 3),
        world.urgent(2),
        world.needing(&[0, 1], 1),
        world.needing(&[2, 1], 0),
        world.urgent(0),
        world.needing(&[1, 1], -1),
    ];
    world.settle();
    let order = [2, 3, 4, 0, 1, 5, 6, 7].map(|at| tasks[at]);
    assert_eq!(world.in_order(&tasks), order);
}

#[test]
fn who_needs_all_tokens_is_not_overtaken_for_ever_by_those_who_need_one() {
    for others in [&[1, 0][..], &[1, 1]] {
        let mut world = with_tokens(4, &[3, 8]);
        // One by one, so that all tokens are never free at the same time by themselves.
        let mut running: Vec<_> = (0..2).map(|_| world.needing(others, 0)).collect();
        let all = world.needing(&[3], 0);
        let mut rounds = 0;
        while world.story(all).begun.is_none() {
            running.push(world.needing(others, 0));
            assert!(world.any_turn() || world.wait());
            rounds += 1;
            assert!(rounds < 1_000, "it starves");
        }
        let before = running.iter().filter(|task| world.story(**task).begun.is_some()).count();
        assert!(before <= 3, "{before} have overtaken it");
        world.settle();
        assert!(world.all_return(&running) && world.all_return(&[all]));
    }
}

#[test]
fn who_has_a_low_priority_gets_its_tokens_among_many_urgent_ones() {
    // The urgent ones need the same, more, and another resource in addition.
    for needs in [&[1, 0][..], &[2, 0], &[1, 1], &[0, 1], &[0, 0]] {
        for low in [&[1, 0][..], &[2, 1], &[0, 0]] {
            let mut world = with_tokens(1, &[2, 1]);
            world.urgent(0);
            world.begin_next().unwrap();
            let low = world.needing(low, -5);
            let mut overtakes = 0;
            loop {
                world.needing(needs, i32::MAX);
                if world.begin_next() == Some(low) {
                    break;
                }
                overtakes += 1;
                assert!(overtakes <= 2 * OVERTAKES_MAX + 2, "it starves: {needs:?}");
            }
        }
    }
}

#[test]
fn tasks_that_need_other_resources_go_on_while_one_waits_for_its_tokens() {
    let mut world = with_tokens(3, &[2, 1]);
    let first = world.needing(&[1, 0], 0);
    while world.story(first).begun.is_none() {
        assert!(world.any_turn() || world.wait());
    }
    // It keeps the free token of the first resource.
    let both = world.needing(&[2, 0], 0);
    let (younger, other, plain) =
        (world.needing(&[1, 0], 0), world.needing(&[0, 1], 0), world.urgent(0));
    world.settle();
    let begun = |task: TaskId| world.stories[task.as_u64() as usize - 1].begun.unwrap().1;
    assert!(begun(other) < begun(both) && begun(plain) < begun(both));
    assert!(begun(both) < begun(younger));
    assert!(world.all_return(&[first, both, younger, other, plain]));
}
