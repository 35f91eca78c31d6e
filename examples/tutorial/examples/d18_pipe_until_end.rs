//! One process sends messages through a pipe. The other receives them until it gets `END`.

use executor::{Process, Receiver, RecvError, SendError, Sender, channel, prelude::*};

#[task]
fn send(sender: Sender<String>, messages: Vec<String>) -> Result<(), SendError> {
    for message in messages {
        sender.send(&message)?;
        println!("Sent the message: {message}");
    }
    Ok(())
}

#[task]
fn receive(receiver: Receiver<String>) -> Result<(), RecvError> {
    loop {
        let message = receiver.recv()?;
        if message == "END" {
            return Ok(());
        }
        println!("Received the message: {message}");
    }
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let messages = ["hello", "hey", "hru?", "END"].map(str::to_owned).to_vec();
    let (sender, receiver) = channel()?;
    let sender = Process::new(send::task(sender, messages)).start()?;
    let receiver = Process::new(receive::task(receiver)).start()?;
    sender.join()?;
    receiver.join()?;
    println!("the receiver has seen END");
    Ok(())
}
