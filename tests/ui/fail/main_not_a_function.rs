#[executor::main]
mod start {}

fn main() {}
