//! Methods as tasks: `#[task]` on an `impl` block.

use std::collections::BTreeMap;

use executor::prelude::*;
use serde::{Deserialize, Serialize};

use super::support::pool;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Demo {
    factor: u64,
    names: Vec<String>,
}

#[task]
impl Demo {
    const LIMIT: u64 = 100;

    /// Multiplies.
    fn produce(&self, i: u64) -> u64 {
        self.factor * i
    }

    fn join(&self, separator: &str) -> String {
        self.names.join(separator)
    }

    fn scaled(mut self, by: u64) -> Result<Self, String> {
        self.factor =
            self.factor.checked_mul(by).filter(|f| *f <= Self::LIMIT).ok_or("too large")?;
        Ok(self)
    }

    fn pid(self) -> u32 {
        std::process::id()
    }

    fn with_factor(factor: u64) -> Self {
        Demo { factor, names: Vec::new() }
    }

    fn longest<'a>(&'a self, other: &'a Demo, (_, _): (u8, u8)) -> usize {
        self.names.len().max(other.names.len())
    }

    async fn produce_slowly(&self, i: u64) -> u64 {
        tokio::task::yield_now().await;
        self.factor * i
    }

    fn fails(&self) -> u64 {
        panic!("of {}", self.factor)
    }
}

#[derive(Serialize, Deserialize)]
struct Wrapper<T>(T);

#[task]
impl Wrapper<BTreeMap<u32, u32>> {
    fn sum(&self) -> u32 {
        self.0.values().sum()
    }
}

/// Decoding it fails.
#[derive(Serialize)]
struct Unreadable;

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("never"))
    }
}

#[task(codec = "messagepack")]
impl Unreadable {
    fn nothing(&self) {}
}

fn demo() -> Demo {
    Demo { factor: 3, names: vec!["a".into(), "b".into()] }
}

#[test]
fn f13_a_method_is_a_task_of_its_value_and_arguments() {
    let pool = pool(1);
    let demo = demo();
    assert_eq!(pool.submit(demo.produce_task(7)).result().unwrap(), 21);
    assert_eq!(pool.submit(demo.join_task("-")).result().unwrap(), "a-b");
    assert_eq!(pool.submit(demo.longest_task(&demo, (1, 2))).result().unwrap(), 2);
    assert_eq!(pool.submit(demo.produce_slowly_task(5)).result().unwrap(), 15);
    assert_eq!(demo.produce(7), 21, "the method itself stays");
    let wrapper = Wrapper(BTreeMap::from([(1, 10), (2, 20)]));
    assert_eq!(pool.submit(wrapper.sum_task()).result().unwrap(), 30);
}

#[test]
fn a_method_may_take_its_value_and_return_it() {
    let pool = pool(1);
    let scaled = pool.submit(demo().scaled_task(2)).result().unwrap();
    assert_eq!(scaled.factor, 6);
    let Err(TaskError::Failed(error)) = pool.submit(scaled.scaled_task(50)).result() else {
        panic!("it is above the limit")
    };
    assert_eq!(error.message(), "too large");
    assert_ne!(pool.submit(demo().pid_task()).result().unwrap(), std::process::id());
    let made = pool.submit(Demo::with_factor_task(8)).result().unwrap();
    assert_eq!(made, Demo::with_factor(8));
}

#[test]
fn a_method_is_mapped_by_a_closure_and_has_options() {
    let pool = pool(2);
    let demo = demo();
    let products: Result<Vec<u64>, _> = pool.map(|i| demo.produce_task(i), 0..100).collect();
    assert_eq!(products.unwrap(), (0..100).map(|i| 3 * i).collect::<Vec<_>>());
    let renamed = pool.submit(demo.fails_task().name("line 3")).result().unwrap_err();
    assert!(renamed.to_string().contains("line 3"), "{renamed}");
}

#[test]
fn errors_name_the_type_and_the_method() {
    let pool = pool(1);
    let error = pool.submit(demo().fails_task()).result().unwrap_err();
    let TaskError::Panicked(panic) = &error else { panic!("{error:?}") };
    assert!(panic.task().ends_with("methods::Demo::fails"), "{}", panic.task());
    assert_eq!(panic.message(), "of 3");
    assert!(panic.location().unwrap().contains("methods.rs"));
}

#[test]
fn a_value_that_does_not_decode_is_an_error_that_names_self() {
    let pool = pool(1);
    let error = pool.submit(Unreadable.nothing_task()).result().unwrap_err();
    assert!(error.to_string().contains("self"), "{error}");
    assert!(error.to_string().contains("never"), "{error}");
}
