//! Without `run` there is nothing to do.
use executor::{Run, prelude::*};

#[derive(serde::Serialize, serde::Deserialize)]
struct Counter(u32);

#[task]
impl Run for Counter {}

fn main() {}
