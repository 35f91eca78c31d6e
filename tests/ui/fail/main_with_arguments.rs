#[executor::main]
fn main(arguments: Vec<String>) {}
