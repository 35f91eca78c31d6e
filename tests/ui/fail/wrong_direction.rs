//! The ends of a one-way channel.

fn main() {
    let (sender, receiver) = executor::channel::<u32>().unwrap();
    let _ = sender.recv();
    let _ = receiver.send(&1);
}
