//! Values and arrays in shared memory, used by tasks.

mod support;

use executor::{Lock, RawValue, Value, prelude::*};
use support::{pool, watchdog};

executor::test_support!();

#[task]
fn add_often(value: Value<u64>, times: u32) {
    for _ in 0..times {
        value.update(|value| *value += 1);
    }
}

#[task]
fn fetch_add_often(value: RawValue<u64>, times: u32) {
    for _ in 0..times {
        value.fetch_add(1);
    }
}

#[test]
fn sv10_many_processes_add_and_the_sum_is_exact() {
    let _watchdog = watchdog();
    let pool = pool(10);
    let (value, raw) = (Value::new(0_u64).unwrap(), RawValue::new(0_u64).unwrap());
    let locked: Vec<_> = (0..10).map(|_| pool.submit(add_often::task(value.clone(), 1000))).collect();
    let atomic: Vec<_> = (0..10).map(|_| pool.submit(fetch_add_often::task(raw.clone(), 1000))).collect();
    for future in locked.into_iter().chain(atomic) {
        future.result().unwrap();
    }
    assert_eq!(value.get(), 10_000);
    assert_eq!(raw.get(), 10_000);
}

#[task]
fn give_back(values: Vec<(Value<i32>, Lock)>) -> Vec<(Value<i32>, Lock)> {
    values
}

#[test]
fn what_comes_back_is_the_same_object() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let shared = Lock::new().unwrap();
    let values: Vec<_> = (0..100).map(|i| (Value::with_lock(i, &shared).unwrap(), shared.clone())).collect();
    let back = pool.submit(give_back::task(values.clone())).result().unwrap();
    assert_eq!(back, values);
    assert!(values[0] != values[1]);
}
