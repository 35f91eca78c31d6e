//! A child fills an `Array('i', 4)` and a `Value('i')`. Both sides print the same values.

use executor::{Array, Process, Value, prelude::*};

#[task]
fn square(numbers: Vec<i32>, squares: Array<i32>, sum: Value<i32>) {
    for (index, number) in numbers.iter().enumerate() {
        squares.set(index, number * number);
    }
    sum.set(squares.copy_to_vec().iter().sum());
    println!("in the child:  {:?}, sum {}", squares.copy_to_vec(), sum.get());
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let squares = Array::zeroed(4)?;
    let sum = Value::new(0)?;
    Process::new(square::task(vec![1, 2, 3, 4], squares.clone(), sum.clone())).start()?.join()?;
    println!("in the parent: {:?}, sum {}", squares.copy_to_vec(), sum.get());
    Ok(())
}
