//! The transport contract as tests. Every implementation runs all of them: a new one adds a line to
//! `conformance!`.

use std::sync::Arc;

use super::{Closed, Inbox, Link, WorkerEnd, board::Begun};
use crate::{
    id::TaskId,
    wire::frame::{Frame, FromWorker, Order, Reply, ToWorker, flag},
};

/// Both sides of one connection, in one process.
pub(crate) struct Pair {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) inbox: Box<dyn Inbox>,
    pub(crate) worker: Box<dyn WorkerEnd + Send>,
}

macro_rules! conformance {
    ($($test:ident),* $(,)?) => {
        mod ipc { $(#[test] fn $test() { super::$test(super::super::ipc::pair()) })* }
        mod ring { $(#[test] fn $test() { super::$test(super::super::ring::pair()) })* }
        mod memory { $(#[test] fn $test() { super::$test(super::super::memory::pair()) })* }
    };
}

conformance! {
    frames_keep_order_and_content,
    send_never_blocks_while_nobody_reads,
    a_worker_that_never_reads_blocks_no_frame_size,
    replies_of_every_size_arrive,
    claim_and_take_back_exclude_each_other,
    begun_is_known_after_the_worker_died,
    hang_up_delivers_what_was_published_and_then_ends,
    worker_sees_the_end_of_the_pool,
    send_to_a_dead_worker_is_harmless,
}

fn run(number: u64, flags: u8) -> ToWorker {
    ToWorker {
        task: TaskId::from_raw(number),
        seq: number as u32,
        flags,
        ..ToWorker::new(Order::Run)
    }
}

fn send(link: &dyn Link, header: ToWorker, payload: Vec<u8>) {
    link.send(header, &payload.into());
    link.flush();
}

fn claim(worker: &dyn WorkerEnd, header: &ToWorker) -> bool {
    worker.board().claim(header.seq, header.items.first, header.flags & flag::TIMED != 0)
}

/// A minimal reader of a pool: collects frames and gives the credit they report to the link.
fn read(
    inbox: &mut dyn Inbox,
    link: &dyn Link,
    frames: &mut Vec<Frame<FromWorker>>,
) -> Result<(), Closed> {
    let mut credit = 0;
    inbox.recv(&mut |frame| {
        credit = credit.max(frame.header.consumed);
        if frame.header.reply == Reply::Credit {
            return;
        }
        // Values that came without a header are replies like all others.
        let Frame { header, payload, mut more } = frame;
        frames.push(Frame::new(header, payload));
        for at in 1.. {
            let Some(value) = more.next() else { break };
            let task = TaskId::from_raw(header.task.as_u64() + at);
            frames.push(Frame::new(FromWorker { task, ..header }, value.into()));
        }
    })?;
    link.credit(credit);
    Ok(())
}

fn payload(number: u64) -> Vec<u8> {
    let size = match number % 10 {
        0 => 0,
        9 => 300_000,
        small => small as usize * 7,
    };
    (0..size).map(|at| (at as u64 ^ number) as u8).collect()
}

fn frames_keep_order_and_content(pair: Pair) {
    let Pair { link, mut inbox, mut worker } = pair;
    const COUNT: u64 = 200;
    let echo = std::thread::spawn(move || {
        for number in 0..COUNT {
            let frame = worker.recv().unwrap();
            assert_eq!(frame.header.task.as_u64(), number);
            assert_eq!(*frame.payload, payload(number));
            worker
                .reply(
                    FromWorker { task: frame.header.task, ..FromWorker::new(Reply::Done) },
                    &frame.payload,
                )
                .unwrap();
        }
        worker
    });
    for number in 0..COUNT {
        send(&*link, run(number, 0), payload(number));
    }
    let mut frames = Vec::new();
    while frames.len() < COUNT as usize {
        read(&mut *inbox, &*link, &mut frames).unwrap();
    }
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!((frame.header.reply, frame.header.task.as_u64()), (Reply::Done, number as u64));
        assert_eq!(*frame.payload, payload(number as u64));
    }
    drop(echo.join().unwrap());
}

fn send_never_blocks_while_nobody_reads(pair: Pair) {
    // Far more than any socket holds. The test passes if the call returns.
    for number in 0..20_000 {
        send(&*pair.link, run(number, 0), vec![1; 100]);
    }
    send(&*pair.link, run(20_000, 0), vec![2; 40 << 20]);
}

fn replies_of_every_size_arrive(pair: Pair) {
    let Pair { link, mut inbox, mut worker } = pair;
    let sizes = [0_usize, 1, 98_263, 98_264, 98_265, 98_304, 196_608, 3 << 20];
    let sender = std::thread::spawn(move || {
        for size in sizes {
            worker.reply(FromWorker::new(Reply::Done), &vec![size as u8; size]).unwrap();
        }
        worker
    });
    let mut frames = Vec::new();
    while frames.len() < sizes.len() {
        read(&mut *inbox, &*link, &mut frames).unwrap();
    }
    for (frame, size) in frames.iter().zip(sizes) {
        assert!(*frame.payload == vec![size as u8; size], "{size}");
    }
    drop(sender.join().unwrap());
}

fn claim_and_take_back_exclude_each_other(pair: Pair) {
    let Pair { link, mut worker, .. } = pair;
    send(&*link, run(1, 0), vec![]);
    send(&*link, run(2, 0), vec![]);
    assert!(link.board().take_back(2, 0));
    let (first, second) = (worker.recv().unwrap(), worker.recv().unwrap());
    assert!(claim(&*worker, &first.header));
    assert!(!link.board().take_back(1, 0));
    assert!(!claim(&*worker, &second.header));
}

fn begun_is_known_after_the_worker_died(pair: Pair) {
    let Pair { link, mut worker, .. } = pair;
    send(&*link, run(1, flag::TIMED), vec![]);
    send(&*link, run(2, 0), vec![]);
    assert_eq!(link.board().begun(1), Begun::No);
    let frame = worker.recv().unwrap();
    assert!(claim(&*worker, &frame.header));
    drop(worker);
    link.hang_up();
    assert!(matches!(link.board().begun(1), Begun::Yes(0, Some(_))));
    assert_eq!(link.board().begun(2), Begun::No);
}

fn hang_up_delivers_what_was_published_and_then_ends(pair: Pair) {
    let Pair { link, mut inbox, mut worker } = pair;
    for number in 0..50 {
        worker
            .reply(
                FromWorker { task: TaskId::from_raw(number), ..FromWorker::new(Reply::Done) },
                &[7; 64],
            )
            .unwrap();
    }
    // The worker's end stays open, as if a process that the worker forked were still alive.
    link.hang_up();
    let mut frames = Vec::new();
    let end = loop {
        if let Err(end) = read(&mut *inbox, &*link, &mut frames) {
            break end;
        }
    };
    assert_eq!((frames.len(), end), (50, Closed::Gone));
    drop(worker);
}

fn worker_sees_the_end_of_the_pool(pair: Pair) {
    let Pair { link, inbox, mut worker } = pair;
    send(&*link, run(1, 0), vec![3]);
    drop((link, inbox));
    // What was sent may still arrive. After that `recv` returns the end and does not hang.
    while worker.recv().is_ok() {}
    assert!(worker.recv().is_err());
}

fn send_to_a_dead_worker_is_harmless(pair: Pair) {
    let Pair { link, mut inbox, worker } = pair;
    drop(worker);
    for number in 0..100 {
        send(&*link, run(number, 0), vec![1; 10_000]);
    }
    link.hang_up();
    assert_eq!(inbox.recv(&mut |_| ()), Err(Closed::Gone));
}

fn a_worker_that_never_reads_blocks_no_frame_size(pair: Pair) {
    // The kernel counts more bytes for some sizes than for others. A window that ignores that
    // blocks the pool while its lock is held.
    for size in (40..20_000).step_by(37) {
        for number in 0..16 {
            send(&*pair.link, run(number, 0), vec![1; size]);
        }
    }
}
