//! Thousands of seeds, with everything that can go wrong.

use super::*;

fn run_seed(seed: u64) -> World {
    let mut dice = Dice(seed);
    let workers_max = dice.pick(&[1, 1, 2, 2, 3, 4, 8]);
    // From another sequence, so that what happens in the other worlds stays the same.
    let mut more = Dice(seed ^ 0x5a_7e57);
    let spares = match more.below(4) {
        0 => Some(more.pick(&[0, 1, workers_max])),
        _ => None,
    };
    let mut config = Config {
        workers_max,
        workers_min: dice.pick(&[0, 0, 1, workers_max]).min(workers_max),
        spares,
        initializer: dice.permille(500).then(|| "prepare".into()),
        initializer_timeout: dice.pick(&[
            Duration::from_millis(150),
            Duration::from_secs(30),
            Duration::MAX,
        ]),
        finalizer: dice.permille(400).then(|| "clean".into()),
        finalizer_timeout: dice.pick(&[
            Duration::from_millis(50),
            Duration::from_secs(30),
            Duration::MAX,
        ]),
        graces: Graces {
            cancel: dice.pick(&[
                Duration::ZERO,
                Duration::ZERO,
                Duration::from_micros(300),
                Duration::from_secs(1),
                Duration::MAX,
            ]),
            terminate: dice.pick(&[
                None,
                None,
                Some(Duration::ZERO),
                Some(Duration::from_millis(100)),
                Some(Duration::from_secs(10)),
            ]),
        },
        tasks_max: dice.pick(&[None, None, Some(1), Some(2), Some(7)]),
        lifespan: any_lifespan(&mut dice),
        processors: dice.pick(&[1, 2, 64]),
        launch_timeout: more.pick(&[Duration::ZERO, Duration::from_secs(60)]),
        start_timeout: dice.pick(&[
            Duration::from_millis(100),
            Duration::from_secs(10),
            Duration::MAX,
        ]),
        report_timeout: None,
        resources: Box::default(),
    };
    let resources: [&[u32]; 6] = [&[], &[], &[], &[1], &[2, 1], &[1_000, 3, 1]];
    config.resources = more.pick(&resources).into();
    let (short, long) = (Duration::from_millis(50), Duration::from_secs(10));
    config.report_timeout = more.pick(&[None, None, Some(short), Some(long), Some(Duration::MAX)]);
    if spares.is_some() {
        (config.workers_min, config.tasks_max) = (0, Some(1));
        config.lifespan = Lifespan::default();
    }
    let mut climate = Climate::roll(&mut dice);
    if !config.resources.is_empty() {
        climate.needs = more.pick(&[100, 300, 1_000]);
    }
    if spares.is_some() {
        climate.bound = 0;
    }
    let steps = dice.pick(&[30, 200, 600, 1_200]);
    let mut world = World::new(dice.roll(), config, climate);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        world.event(|scheduler, now, _, out| scheduler.on_open(now, out));
        for _ in 0..steps {
            if world.closed {
                break;
            }
            world.anything();
        }
        if world.closed { world.after_the_end() } else { world.drain() }
    }));
    if let Err(panic) = ran {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        panic!("EXECUTOR_SEED={seed}: {message}\nwhat happened last:{}", world.describe());
    }
    world
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is what `--nocapture` asks for")]
fn promises_hold_among_crashing_slow_stopped_and_lying_workers() {
    if let Some(seed) = number("EXECUTOR_SEED") {
        run_seed(seed);
        return;
    }
    let rounds = number("EXECUTOR_ROUNDS").unwrap_or(ROUNDS);
    let (mut counts, mut events) = (BTreeMap::<&str, u64>::new(), 0);
    for seed in 0..rounds {
        let world = run_seed(seed);
        events += world.events;
        for (kind, count) in world.counts {
            *counts.entry(kind).or_default() += count;
        }
    }
    println!("{rounds} seeds, {events} events");
    for kind in KINDS {
        println!("{:>12}  {kind}", counts.get(kind).copied().unwrap_or_default());
    }
    if rounds >= ROUNDS {
        let missing: Vec<_> =
            counts.iter().filter(|(_, count)| **count == 0).map(|(kind, _)| kind).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}
