//! The ring under a model checker. See `os/std_or_model.rs`, and `CONTRIBUTING.md` for how to run
//! it.
//!
//! A model ends when all its threads have ended. A thread that sleeps for ever is a deadlock, which
//! both checkers report. So each model proves two things: its assertions, and that no wake-up is
//! lost.

use std::sync::Arc;

use super::{
    RingLink, RingWorkerEnd, Segment, connect,
    doorbell::{Doorbell, HEARING},
    spsc::{Consumer, Producer, Ring, WORDS},
};
use crate::{
    os::{
        memory::{Shared, forget_all},
        spin::Spin,
        std_or_model::{
            self,
            atomic::{AtomicU32, Ordering},
            thread,
        },
    },
    transport::{
        Closed, Link, WorkerEnd,
        board::{Begun, Board, SLOTS},
    },
    wire::frame::{FromWorker, Order, Reply, ToWorker},
};

/// Runs a model through its interleavings.
///
/// loom runs all interleavings with at most `preemptions` preemptions. A preemption is a switch
/// away from a thread that could continue; switches at which a thread sleeps are free. shuttle runs
/// `EXECUTOR_ROUNDS` random interleavings, and as many with few preemptions at random places.
///
/// Shuttle's rounds are the same each time, unless `EXECUTOR_SEED` selects others. A failure prints
/// the seed of its round, and `SHUTTLE_RANDOM_SEED` repeats that round.
pub(crate) fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&executions);
    let model = move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        forget_all();
        model();
    };
    #[cfg(executor_loom)]
    {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
        builder.max_branches = 100_000;
        builder.check(model);
    }
    #[cfg(executor_shuttle)]
    {
        use shuttle::{
            Config, Runner,
            scheduler::{PctScheduler, RandomScheduler},
        };
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let rounds = number("EXECUTOR_ROUNDS").unwrap_or(300) as usize;
        let seed = number("EXECUTOR_SEED").unwrap_or(0);
        let mut config = Config::new();
        config.stack_size = 256 * 1024;
        let model = Arc::new(model);
        let again = Arc::clone(&model);
        Runner::new(RandomScheduler::new_from_seed(seed, rounds), config.clone())
            .run(move || again());
        Runner::new(PctScheduler::new_from_seed(seed, preemptions + 1, rounds), config)
            .run(move || model());
    }
    let executions = executions.load(std::sync::atomic::Ordering::Relaxed);
    println!("{executions} executions");
    // With a single execution, the threads did nothing that the checker orders, or did not run.
    assert!(executions > 1, "a model of which there is one execution proves nothing");
}

/// Returns a count that is small for loom, which tries all interleavings, and larger for shuttle.
pub(crate) fn few(loom: u64, shuttle: u64) -> u64 {
    if std_or_model::LOOM { loom } else { shuttle }
}

/// Makes both ends and the doorbell.
pub(crate) fn ends() -> (RingLink, RingWorkerEnd, Arc<Shared<Doorbell>>) {
    let (segment, doorbell) = (Shared::<Segment>::new(), Arc::new(Shared::<Doorbell>::new()));
    let worker = RingWorkerEnd::new(segment.mirror(), doorbell.mirror());
    (connect(segment, Arc::clone(&doorbell)), worker, doorbell)
}

/// Makes a ring of one direction, shared by both sides.
fn ring() -> Arc<Ring> {
    Arc::default()
}

/// Returns a message that takes about half the ring: three words for loom, a few more for shuttle.
fn message(number: u64) -> Vec<u8> {
    [number; WORDS / 2 - 2].map(u64::to_le_bytes).concat()
}

#[test]
fn messages_arrive_in_order_and_both_sides_wake() {
    // The third message finds the ring full, and wraps around the end of the ring.
    let count = few(3, 12);
    check(3, move || {
        let ring = ring();
        let theirs = Arc::clone(&ring);
        let producer = thread::spawn(move || {
            let mut producer = Producer::default();
            for number in 0..count {
                let message = message(number);
                while !producer.write(&theirs, [&message]).unwrap() {
                    theirs.sleep_producer(|| producer.has_room_for(&theirs, Some(message.len())));
                }
                theirs.ring_consumer();
            }
        });
        let (mut consumer, mut spin, mut read) = (Consumer::default(), Spin::default(), Vec::new());
        for number in 0..count {
            while consumer.read(&ring, &mut read).unwrap().is_none() {
                ring.sleep_consumer(&mut spin, None, || !consumer.is_empty(&ring));
            }
            ring.ring_producer();
            assert_eq!(read, message(number));
        }
        producer.join().unwrap();
    });
}

#[test]
fn a_message_is_used_or_known_to_be_unread_never_both() {
    check(4, || {
        let ring = ring();
        let mut producer = Producer::default();
        assert!(producer.write(&ring, [&message(1)]).unwrap());
        let end = producer.position();
        let theirs = Arc::clone(&ring);
        let consumer = thread::spawn(move || {
            let read = Consumer::default().read(&theirs, &mut Vec::new()).unwrap();
            read.is_some() && !theirs.is_revoked()
        });
        ring.revoke();
        let unread = producer.taken(&ring).unwrap() < end;
        let used = consumer.join().unwrap();
        assert!(!(used && unread), "two would have it");
    });
}

#[test]
fn a_ring_that_closes_lets_both_sides_go() {
    check(3, || {
        let (link, mut worker, _) = ends();
        let worker = thread::spawn(move || {
            // One reply fits. The second waits for space that is never made.
            let replied = (0..3).try_for_each(|_| worker.reply(FromWorker::new(Reply::Ready), &[]));
            assert_eq!(replied, Err(Closed::Gone));
            assert_eq!(worker.recv().unwrap_err(), Closed::Gone);
        });
        drop(link);
        worker.join().unwrap();
    });
}

#[test]
fn a_sending_is_claimed_or_taken_back_never_both() {
    check(4, || {
        let board = Arc::new(Board::default());
        let old = 3;
        let new = old + SLOTS as u32;
        board.offer(old, 0);
        let theirs = Arc::clone(&board);
        let worker =
            thread::spawn(move || (theirs.claim(old, 0, false), theirs.claim(new, 0, false)));
        let taken = board.take_back(old, 0);
        if taken {
            // The slot is offered again while the frame of the old offer may still be on its way.
            board.offer(new, 0);
        }
        let (claimed, claimed_new) = worker.join().unwrap();
        assert!(claimed ^ taken);
        assert!(!claimed_new || taken, "what was never offered");
        assert_eq!(matches!(board.begun(old), Begun::Yes(..)), claimed);
        assert_eq!(matches!(board.begun(new), Begun::Yes(..)), claimed_new);
        if taken {
            assert!(
                claimed_new ^ board.take_back(new, 0),
                "an old frame must not claim a new sending"
            );
        }
    });
}

#[test]
fn the_rest_of_a_chunk_is_begun_or_taken_back_never_both() {
    let items = few(3, 6) as u32;
    check(4, move || {
        let board = Arc::new(Board::default());
        board.offer(3, 0);
        let theirs = Arc::clone(&board);
        let worker = thread::spawn(move || {
            let begun = |item| match item {
                0 => theirs.claim(3, 0, false),
                item => theirs.claim_next(3, item),
            };
            (0..items).take_while(|item| begun(*item)).count() as u32
        });
        let rest = board.take_rest(3);
        let all = rest.is_none() && board.take_back(3, 0);
        let begun = worker.join().unwrap();
        match rest {
            Some(last) => assert_eq!(begun, last + 1),
            None if all => assert_eq!(begun, 0),
            None => assert_eq!(begun, items),
        }
    });
}

/// Starts workers that each ring `times` times. Returns how often each has, and the workers.
fn ringing(
    doorbell: &Arc<Doorbell>,
    workers: u64,
    times: u32,
) -> (Arc<Vec<AtomicU32>>, Vec<thread::JoinHandle<()>>) {
    let done: Arc<Vec<_>> = Arc::new((0..workers).map(|_| AtomicU32::new(0)).collect());
    let ring = |at: usize| {
        let (doorbell, done) = (Arc::clone(doorbell), Arc::clone(&done));
        thread::spawn(move || {
            for time in 1..=times {
                // Relaxed, since ringing must publish what was done before it.
                done[at].store(time, Ordering::Relaxed);
                doorbell.ring();
            }
        })
    };
    let workers = (0..workers as usize).map(ring).collect();
    (done, workers)
}

#[test]
fn no_ring_of_the_doorbell_is_lost() {
    let (workers, times) = (few(2, 3), few(1, 3) as u32);
    check(3, move || {
        let doorbell = Arc::new(Doorbell::default());
        let (done, workers) = ringing(&doorbell, workers, times);
        let all_done = || done.iter().all(|done| done.load(Ordering::Relaxed) == times);
        // An attendant that leaves once, as the reader.
        loop {
            doorbell.listen();
            doorbell.attend();
            if all_done() {
                break;
            }
            doorbell.leave();
            if !all_done() {
                doorbell.doze(None);
            }
        }
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn an_attendant_that_sleeps_hears_every_ring() {
    let (workers, times) = (few(2, 3), few(1, 3) as u32);
    check(3, move || {
        let doorbell = Arc::new(Doorbell::default());
        let (done, workers) = ringing(&doorbell, workers, times);
        let count = || done.iter().map(|done| done.load(Ordering::Relaxed)).sum::<u32>();
        doorbell.attend();
        let mut seen = count();
        while seen < times * workers.len() as u32 {
            doorbell.sleep(HEARING, || count() != seen);
            seen = count();
        }
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn what_waits_in_the_outbox_goes_out_when_the_worker_makes_room() {
    let count = few(2, 8) as u32;
    check(2, move || {
        let (link, mut worker, doorbell) = ends();
        let link = Arc::new(link);
        let worker = thread::spawn(move || {
            for number in 0..count {
                assert_eq!(worker.recv().unwrap().header.seq, number);
            }
            worker.reply(FromWorker::new(Reply::Ready), &[]).unwrap();
        });
        let theirs = Arc::clone(&link);
        // A minimal attendant of a pool. The real ones are in `pool/models.rs`.
        let reader = thread::spawn(move || {
            let mut replied = false;
            doorbell.attend();
            while !replied {
                let any = theirs.drain(|_| replied = true).unwrap();
                if !any {
                    theirs.credit(0);
                }
                if !any && !replied {
                    doorbell.sleep(HEARING, || theirs.is_due());
                }
            }
        });
        for number in 0..count {
            link.send(ToWorker { seq: number, ..ToWorker::new(Order::Stop) }, &Vec::new().into());
        }
        link.flush();
        worker.join().unwrap();
        reader.join().unwrap();
    });
}
