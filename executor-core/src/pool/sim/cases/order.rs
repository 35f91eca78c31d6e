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
