//! A seeded simulation of handles that travel between processes which reach the server over TCP.
//!
//! ```text
//!  sender: hold ──► message, with an end of a pipe ──► receiver: claims, then closes the end
//!     └─ its keeper has the hold until no end is open ─┘
//! ```
//!
//! The core is the real one. The processes are modelled: they follow the protocol of
//! `manager/client/keeper.rs` and `manager/client/reference.rs`, and lose their connections,
//! connect again and are killed between any two steps of it. So this shows that the protocol holds,
//! and that the core does its part. It does not run the code of the clients.

use std::collections::BTreeSet;

use super::{
    ClientId,
    testing::{Body, Desk, Dice, number_in},
};
use crate::manager::protocol::{Kind, ObjectId, Operation, Status};

const ROUNDS: u64 = 300;
const STEPS: u64 = 300;

/// A reference of one connection to one object.
#[derive(Clone, Copy)]
struct Hold {
    client: ClientId,
    object: ObjectId,
    /// How many handles and messages of the process share it.
    users: usize,
}

/// A handle, which has lost its hold if the connection of that is lost.
#[derive(Clone, Copy)]
struct Handle {
    object: ObjectId,
    hold: usize,
}

#[derive(Default)]
struct Process {
    /// The connection. A process has none before its first call, and after it has lost one.
    client: Option<ClientId>,
    handles: Vec<Handle>,
}

/// A handle on its way.
struct Message {
    object: ObjectId,
    from: usize,
    /// The hold in the keeper of the sender. `None` if the sender was killed.
    hold: Option<usize>,
    /// Whether its receiver has claimed the object, and has not closed the end of the pipe.
    claimed: bool,
}

struct World {
    dice: Dice,
    desk: Desk,
    processes: Vec<Process>,
    holds: Vec<Hold>,
    messages: Vec<Message>,
    objects: BTreeSet<ObjectId>,
    arrived: u64,
    came_too_late: u64,
    claimed_anew: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let processes = (0..3).map(|_| Process::default()).collect();
        World {
            dice: Dice(seed),
            desk: Desk::new(),
            processes,
            holds: Vec::new(),
            messages: Vec::new(),
            objects: BTreeSet::new(),
            arrived: 0,
            came_too_late: 0,
            claimed_anew: 0,
        }
    }

    fn any(&mut self, len: usize) -> Option<usize> {
        (len > 0).then(|| self.dice.below(len as u64) as usize)
    }

    /// Returns whether the connection of a hold was not lost.
    fn is_live(&self, hold: usize) -> bool {
        let client = self.holds[hold].client;
        self.processes.iter().any(|process| process.client == Some(client))
    }

    fn connected(&mut self, at: usize) -> ClientId {
        *self.processes[at].client.get_or_insert_with(|| self.desk.client())
    }

    fn hold(&mut self, client: ClientId, object: ObjectId) -> usize {
        self.holds.push(Hold { client, object, users: 1 });
        self.holds.len() - 1
    }

    /// Drops one share of a hold. The last gives the reference back, if the connection exists.
    fn let_go(&mut self, hold: usize) {
        let live = self.is_live(hold);
        let Hold { client, object, users } = &mut self.holds[hold];
        *users -= 1;
        if *users == 0 && live {
            self.desk.release(*client, *object, 1);
        }
    }

    /// Makes sure that a handle has a hold, as each call does. Returns `false`, and drops the
    /// handle, if its object is gone.
    fn resolve(&mut self, at: usize, handle: usize) -> bool {
        let Handle { object, hold } = self.processes[at].handles[handle];
        if self.is_live(hold) {
            return true;
        }
        let client = self.connected(at);
        let status = self.desk.ask(client, Operation::Claim, object, Body::new()).status;
        self.let_go(hold);
        if status != Status::Done {
            assert_eq!(status, Status::NoObject);
            self.processes[at].handles.swap_remove(handle);
            return false;
        }
        self.claimed_anew += 1;
        let new = self.hold(client, object);
        self.processes[at].handles[handle].hold = new;
        // What this handle has on its way is kept by the new connection.
        for message in 0..self.messages.len() {
            let Message { from, hold: kept, .. } = self.messages[message];
            if from == at && kept == Some(hold) {
                self.holds[new].users += 1;
                self.messages[message].hold = Some(new);
                self.let_go(hold);
            }
        }
        true
    }

    fn step(&mut self) {
        let at = self.dice.below(self.processes.len() as u64) as usize;
        let handle = self.any(self.processes[at].handles.len());
        match self.dice.below(20) {
            0..=2 => {
                let client = self.connected(at);
                let object = self.desk.create(client, Kind::Cell, Body::new().value("v"));
                self.objects.insert(object);
                let hold = self.hold(client, object);
                self.processes[at].handles.push(Handle { object, hold });
            }
            3 => {
                // A clone shares the hold.
                if let Some(handle) = handle {
                    let clone = self.processes[at].handles[handle];
                    self.holds[clone.hold].users += 1;
                    self.processes[at].handles.push(clone);
                }
            }
            4..=6 => {
                if let Some(handle) = handle {
                    let Handle { hold, .. } = self.processes[at].handles.swap_remove(handle);
                    self.let_go(hold);
                }
            }
            7 => {
                if let Some(handle) = handle {
                    self.resolve(at, handle);
                }
            }
            8..=11 => {
                if let Some(handle) = handle.filter(|handle| self.resolve(at, *handle)) {
                    let Handle { object, hold } = self.processes[at].handles[handle];
                    self.holds[hold].users += 1;
                    self.messages.push(Message {
                        object,
                        from: at,
                        hold: Some(hold),
                        claimed: false,
                    });
                }
            }
            12..=14 => self.receive(at),
            15 | 16 => self.close_an_end(),
            17 => {
                if let Some(message) = self.any(self.messages.len()) {
                    // Nobody reads it any more.
                    self.close(message);
                }
            }
            18 => {
                if let Some(client) = self.processes[at].client.take() {
                    self.desk.disconnect(client);
                }
            }
            _ => self.kill(at),
        }
    }

    /// A process reads a message: it claims the object. It closes the end of the pipe later.
    fn receive(&mut self, at: usize) {
        let unread: Vec<_> =
            (0..self.messages.len()).filter(|at| !self.messages[*at].claimed).collect();
        let Some(message) = self.any(unread.len()).map(|nth| unread[nth]) else { return };
        let Message { object, hold, .. } = self.messages[message];
        let is_kept = hold.is_some_and(|hold| self.is_live(hold));
        let client = self.connected(at);
        match self.desk.ask(client, Operation::Claim, object, Body::new()).status {
            Status::Done => {
                self.arrived += 1;
                let hold = self.hold(client, object);
                self.processes[at].handles.push(Handle { object, hold });
            }
            status => {
                assert_eq!(status, Status::NoObject);
                assert!(!is_kept, "the sender has kept its object for it");
                self.came_too_late += 1;
            }
        }
        self.messages[message].claimed = true;
    }

    /// A process that has claimed an object closes the end of the pipe.
    fn close_an_end(&mut self) {
        let claimed: Vec<_> =
            (0..self.messages.len()).filter(|at| self.messages[*at].claimed).collect();
        if let Some(nth) = self.any(claimed.len()) {
            self.close(claimed[nth]);
        }
    }

    fn close(&mut self, message: usize) {
        if let Some(hold) = self.messages.swap_remove(message).hold {
            self.let_go(hold);
        }
    }

    fn kill(&mut self, at: usize) {
        // Its connection ends first: what it had is not given back one by one.
        let Process { client, handles } = std::mem::take(&mut self.processes[at]);
        if let Some(client) = client {
            self.desk.disconnect(client);
        }
        handles.iter().for_each(|handle| self.let_go(handle.hold));
        for message in 0..self.messages.len() {
            if self.messages[message].from == at
                && let Some(hold) = self.messages[message].hold.take()
            {
                self.let_go(hold);
            }
        }
    }

    /// An object lives exactly as long as a process with a connection has a hold of it.
    fn check(&self) {
        let held = (0..self.holds.len()).filter(|hold| self.holds[*hold].users > 0);
        let held: BTreeSet<_> =
            held.filter(|hold| self.is_live(*hold)).map(|hold| self.holds[hold].object).collect();
        for object in &self.objects {
            assert_eq!(self.desk.exists(*object), held.contains(object), "{object:?}");
        }
        assert_eq!(self.desk.core.objects(), held.len());
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "the seed of a check that fails")]
fn objects_live_as_long_as_a_handle_or_a_message_of_a_living_process_has_them() {
    let (mut arrived, mut came_too_late, mut claimed_anew) = (0, 0, 0);
    let rounds = number_in("EXECUTOR_ROUNDS").unwrap_or(ROUNDS);
    let seeds = number_in("EXECUTOR_SEED").map_or(0..rounds, |seed| seed..seed + 1);
    for seed in seeds {
        println!("EXECUTOR_SEED={seed}");
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
            world.check();
        }
        (0..world.processes.len()).for_each(|at| world.kill(at));
        assert_eq!(world.desk.core.objects(), 0, "all are dead");
        arrived += world.arrived;
        came_too_late += world.came_too_late;
        claimed_anew += world.claimed_anew;
    }
    assert!(arrived > 0 && came_too_late > 0 && claimed_anew > 0);
}
