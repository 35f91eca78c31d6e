//! Values arrive as they were, or not at all: what serde's two halves of a type can be told to see differently.

use std::thread;

use executor::{Queue, TaskError, pipe, prelude::*};
use serde::{Deserialize, Serialize};

mod support;
use support::{pool, watchdog};

executor::test_support!();

// ---- through a pool, queues and pipes ------------------------------------------------------------------------------

/// serde's `Serialize` counts all variants, its `Deserialize` those that are not skipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Event {
    #[serde(skip)]
    Internal,
    Deposit(u32),
    Withdraw(u32),
    #[serde(skip_deserializing)]
    Refund(u32),
    #[serde(alias = "Shut")]
    Close,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

#[task]
fn event(event: Event) -> Event {
    event
}

#[task]
fn only_result(of: u32) -> Event {
    if of == 0 { Event::Refund(1) } else { Event::Deposit(of) }
}

#[task]
fn only_error(of: u32) -> Result<(), Event> {
    Err(Event::Withdraw(of))
}

#[test]
fn behind_a_skipped_variant_each_variant_arrives_as_itself() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for sent in [Event::Deposit(100), Event::Withdraw(1), Event::Close] {
        assert_eq!(pool.submit(event::task(sent.clone())).result().unwrap(), sent);
    }
    assert_eq!(pool.submit(only_result::task(100)).result().unwrap(), Event::Deposit(100));
    let Err(TaskError::Failed(error)) = pool.submit(only_error::task(7)).result() else { panic!() };
    assert_eq!(error.downcast::<Event>(), Some(Event::Withdraw(7)));

    let error = pool.submit(event::task(Event::Internal)).result().unwrap_err().to_string();
    assert!(error.contains("Event::Internal"), "{error}");
    for error in [
        pool.submit(event::task(Event::Refund(1))).result().unwrap_err().to_string(),
        pool.submit(only_result::task(0)).result().unwrap_err().to_string(),
    ] {
        assert!(error.contains("`Event`") && error.contains("`Refund`"), "{error}");
    }
}

#[test]
fn queues_pipes_and_processes_carry_the_variant_that_was_sent() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    let (here, there) = pipe::<Event, Event>().unwrap();
    for sent in [Event::Deposit(100), Event::Withdraw(1), Event::Close] {
        queue.put(sent.clone()).unwrap();
        assert_eq!(queue.get().unwrap(), sent);
        here.send(&sent).unwrap();
        assert_eq!(there.recv().unwrap(), sent);
        let process = executor::Process::new(event::task(sent.clone()));
        assert_eq!(process.start().unwrap().join().unwrap(), sent);
    }
    here.send(&Event::Refund(1)).unwrap();
    let error = there.recv().unwrap_err().to_string();
    assert!(error.contains("`Event`") && error.contains("`Refund`"), "{error}");
    here.send(&Event::Close).unwrap();
    assert_eq!(there.recv().unwrap(), Event::Close, "the connection goes on");
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Paint {
    #[serde(alias = "colour")]
    color: u8,
    size: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Brush {
    Round {
        #[serde(alias = "radius", alias = "r")]
        size: u8,
        paint: Paint,
    },
}

#[task]
fn paint(paint: Paint, brush: Brush) -> (Paint, Brush) {
    (paint, brush)
}

#[test]
fn a_field_with_an_alias_arrives() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let red = Paint { color: 1, size: 2 };
    let round = Brush::Round { size: 3, paint: red.clone() };
    let sent = (red.clone(), round.clone());
    assert_eq!(pool.submit(paint::task(red, round)).result().unwrap(), sent);
}

#[derive(Serialize, Deserialize)]
enum Expr {
    Num(i64),
    Neg(Box<Expr>),
}

fn negated(n: usize) -> Expr {
    (0..n).fold(Expr::Num(1), |expr, _| Expr::Neg(Box::new(expr)))
}

/// What the recursion of a `Drop` cannot.
fn free(mut expr: Expr) {
    while let Expr::Neg(inner) = expr {
        expr = *inner;
    }
}

#[task(codec = "messagepack")]
fn nested_in_messagepack(n: usize) -> Expr {
    negated(n)
}

#[task]
fn nested(n: usize) -> Expr {
    negated(n)
}

#[task(codec = "messagepack")]
fn negate(expr: Expr) -> Expr {
    Expr::Neg(Box::new(expr))
}

/// A worker whose stack can take what its `Drop` cannot do without recursion.
#[test]
fn values_that_are_nested_too_deep_are_an_error_that_says_depth_and_end_nobody() {
    let _watchdog = watchdog();
    let pool = ProcessPoolExecutor::builder().max_workers(1).stack_size(100 << 20).build().unwrap();
    thread::Builder::new()
        .stack_size(256 << 10)
        .spawn(move || {
            for n in [3_000, 80_000] {
                for future in [pool.submit(nested_in_messagepack::task(n)), pool.submit(nested::task(n))] {
                    let error = future.result().map(free).unwrap_err().to_string();
                    assert!(error.contains("depth"), "{error}");
                }
                // The argument is freed by the one who encodes it, with a stack for that.
                let pool = pool.clone();
                let large = thread::Builder::new().stack_size(100 << 20);
                let error =
                    large.spawn(move || pool.submit(negate::task(negated(n))).result().map(free).err());
                let error = error.unwrap().join().unwrap().unwrap().to_string();
                assert!(error.contains("depth"), "{error}");
            }
            free(pool.submit(nested_in_messagepack::task(20)).result().unwrap());
            free(pool.submit(nested::task(20)).result().unwrap());
        })
        .unwrap()
        .join()
        .unwrap();
}

#[derive(Serialize, Deserialize, Default, Clone)]
struct Skipped {
    #[serde(skip)]
    _cache: [u64; 32],
}

#[test]
fn a_length_with_nothing_behind_it_is_an_error_and_no_memory() {
    let _watchdog = watchdog();
    for length in [1, 1 << 24, u64::MAX] {
        let (here, there) = pipe::<u64, u64>().unwrap();
        here.send(&length).unwrap();
        assert!(there.with_types::<u64, Vec<Skipped>>().recv().is_err());
    }
    let (here, there) = pipe::<Vec<Skipped>, Vec<Skipped>>().unwrap();
    here.send(&vec![Skipped::default(); 1000]).unwrap();
    assert_eq!(there.recv().unwrap().len(), 1000);
}

/// Is another value when it has been read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
struct Email(String);

impl From<String> for Email {
    fn from(text: String) -> Self {
        Email(text.trim().into())
    }
}

impl From<Email> for String {
    fn from(email: Email) -> String {
        email.0
    }
}

#[task]
fn greet(email: Email) -> String {
    email.0
}

#[task(codec = "messagepack")]
fn greet_in_messagepack(email: Email) -> String {
    email.0
}

#[test]
fn a_type_that_normalises_when_it_is_read_is_legal_from_the_first_submit_on() {
    let _watchdog = watchdog();
    let pool = pool(1);
    for _ in 0..2 {
        assert_eq!(pool.submit(greet::task(Email(" bob".into()))).result().unwrap(), "bob");
        assert_eq!(pool.submit(greet_in_messagepack::task(Email(" bob".into()))).result().unwrap(), "bob");
    }
}
