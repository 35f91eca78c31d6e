//! What time limits cost: however many there are, nobody looks at all of them.

use super::*;

/// So many limits pass, one after the other, while all workers are busy. Returns how often the
/// scheduler looks at a task when nothing is due, and how often it does so for each limit that
/// passes.
fn looks_for_limits(count: u64, dice: &mut Dice) -> (u64, u64) {
    let micro = |n: u64| Duration::from_micros(n);
    let mut world = World::ready(2);
    // Nobody knows how long calls of this function take, so none of them is sent ahead.
    let function = 5;
    // The limits on running pass long after the others.
    let late = Some(Duration::from_secs(3_600));
    for worker in 0..2 {
        world.submit(function, late, Conduct::Hangs);
        world.work(worker);
    }
    let (first, start) = (world.stories.len() as u64 + 1, world.now);
    let mut ends: Vec<u64> = (1..=count).collect();
    for at in (1..ends.len()).rev() {
        ends.swap(at, dice.below(at as u64 + 1) as usize);
    }
    let tickets = ends.iter().zip(first..).map(|(end, id)| Ticket {
        function: FnId(function),
        timeout: late,
        wait: Some((start + micro(*end), micro(*end))),
        bound_to: None,
        needs: Rc::default(),
        priority: 0,
        retries: 0,
        losses: LOSSES,
        base: TaskId::from_raw(id),
        items: Items::ONE,
        left: Rc::default(),
    });
    let World { scheduler, processes, .. } = &mut world;
    let (boards, mut actions) = (Boards(processes), Vec::new());
    scheduler.on_submit(start, tickets, &mut actions);
    assert!(actions.is_empty(), "all workers are busy: {actions:?}");

    let before = scheduler.lookups();
    scheduler.on_tick(start, &boards, &mut actions);
    assert!(scheduler.next_deadline().is_some_and(|at| at > start));
    let idle = scheduler.lookups() - before;
    assert!(actions.is_empty(), "nothing is due: {actions:?}");

    let before = scheduler.lookups();
    for end in 1..=count {
        assert!(scheduler.next_deadline().is_some_and(|at| at <= start + micro(end)));
        scheduler.on_tick(start + micro(end), &boards, &mut actions);
        let [Action::Resolve(resolved)] = &actions[..] else { panic!("one is due: {actions:?}") };
        let (ticket, End::Error(error)) = &**resolved else { panic!("{resolved:?}") };
        assert!(error.is_timeout() && ticket.wait == Some((start + micro(end), micro(end))));
        actions.clear();
    }
    (idle, (scheduler.lookups() - before) / count)
}

#[test]
fn a_limit_costs_no_look_at_all_the_others() {
    /// Looks at tasks that workers have, at the next one in the queue, and at the one that is due.
    const LOOKS_MAX: u64 = 40;
    let mut dice = Dice(1);
    let few = looks_for_limits(100, &mut dice);
    let many = looks_for_limits(20_000, &mut dice);
    assert!(many.0 <= few.0, "a tick with nothing due: {} and {}", many.0, few.0);
    assert!(few.1 <= LOOKS_MAX && many.1 <= LOOKS_MAX, "each limit: {} and {}", many.1, few.1);
}
