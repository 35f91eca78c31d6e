//! A queue, with calls that wait for an item, for room, or until all items are done.

use std::collections::VecDeque;

use super::{
    actions::{Outcome, Progress, Refusal},
    clients::Caller,
    turn::{Names, Stored, Turn},
    waiting::{Line, Ticket},
};
use crate::manager::protocol::{Fields, Operation, Status};

/// A queue: first in, first out.
///
/// Calls wait for an item only while there is none, and for room only while there is none.
#[derive(Debug)]
pub(super) struct Queue {
    items: VecDeque<Stored>,
    /// 0 stands for no limit.
    capacity: u64,
    /// Whether items are to be reported as done.
    joinable: bool,
    /// Items that were put and not reported as done.
    unfinished: u64,
    getters: Line<()>,
    putters: Line<Stored>,
    joiners: Line<()>,
}

impl Queue {
    pub(super) fn create(mut fields: Fields<'_>) -> Result<Self, Refusal> {
        let (capacity, joinable) = (fields.number()?, fields.flag()?);
        fields.end()?;
        Ok(Queue {
            items: VecDeque::new(),
            capacity,
            joinable,
            unfinished: 0,
            getters: Line::default(),
            putters: Line::default(),
            joiners: Line::default(),
        })
    }

    pub(super) fn request(
        &mut self,
        operation: Operation,
        mut fields: Fields<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Refusal> {
        match operation {
            Operation::QueuePut => {
                let wait = fields.flag()?;
                let value = turn.value(&mut fields)?;
                fields.end()?;
                if self.has_room() {
                    let item = turn.keep(value);
                    self.put(item, turn);
                    return Ok(Progress::Done(0));
                }
                if !wait {
                    return Err(Status::NotNow.into());
                }
                let ticket = turn.wait(value.bytes.len())?;
                let item = turn.keep(value);
                self.putters.push(ticket, turn.caller, item);
                Ok(Progress::Waits)
            }
            Operation::QueueGet => {
                let wait = fields.flag()?;
                fields.end()?;
                if let Some(item) = self.items.pop_front() {
                    // Before the item is written: replies are written one after the other.
                    self.let_put(turn);
                    turn.write(&item);
                    turn.lose(&item);
                    return Ok(Progress::Done(0));
                }
                if !wait {
                    return Err(Status::NotNow.into());
                }
                self.getters.push(turn.wait(0)?, turn.caller, ());
                Ok(Progress::Waits)
            }
            Operation::QueuePutBack => {
                let value = turn.value(&mut fields)?;
                fields.end()?;
                let item = turn.keep(value);
                if let Some(item) = self.hand_over(item, turn) {
                    self.items.push_front(item);
                }
                Ok(Progress::Done(0))
            }
            Operation::QueueTaskDone => {
                fields.end()?;
                self.task_done(turn).map(Progress::Done)
            }
            Operation::QueueJoin => {
                fields.end()?;
                if !self.joinable {
                    return Err(Status::Refused.into());
                }
                if self.unfinished == 0 {
                    return Ok(Progress::Done(0));
                }
                self.joiners.push(turn.wait(0)?, turn.caller, ());
                Ok(Progress::Waits)
            }
            Operation::QueueIsFull => {
                fields.end()?;
                Ok(Progress::Done(u64::from(!self.has_room())))
            }
            Operation::Len => {
                fields.end()?;
                Ok(Progress::Done(self.items.len() as u64))
            }
            _ => Err(Status::WrongKind.into()),
        }
    }

    fn has_room(&self) -> bool {
        self.capacity == 0 || (self.items.len() as u64) < self.capacity
    }

    /// Puts an item that is new to the queue.
    fn put(&mut self, item: Stored, turn: &mut Turn<'_>) {
        if self.joinable {
            self.unfinished += 1;
        }
        if let Some(item) = self.hand_over(item, turn) {
            self.items.push_back(item);
        }
    }

    /// Gives an item to the first call that waits for one. Returns it if none waits.
    fn hand_over(&mut self, item: Stored, turn: &mut Turn<'_>) -> Option<Stored> {
        let Some((getter, ())) = self.getters.pop() else { return Some(item) };
        turn.write_to(getter, &item.bytes, &item.names);
        turn.lose(&item);
        turn.answer(getter, Ok(0));
        None
    }

    /// Lets those put who wait for room, as long as there is some.
    fn let_put(&mut self, turn: &mut Turn<'_>) {
        while self.has_room()
            && let Some((putter, item)) = self.putters.pop()
        {
            self.put(item, turn);
            turn.answer(putter, Ok(0));
        }
    }

    fn task_done(&mut self, turn: &mut Turn<'_>) -> Outcome {
        // 0 as well if the queue does not count them.
        self.unfinished = self.unfinished.checked_sub(1).ok_or(Status::Refused)?;
        if self.unfinished == 0 {
            while let Some((joiner, ())) = self.joiners.pop() {
                turn.answer(joiner, Ok(0));
            }
        }
        Ok(0)
    }

    /// Takes a call out of its line. An item that it wanted to put is not put. Returns whether it
    /// was there.
    pub(super) fn leave(&mut self, ticket: Ticket, turn: &mut Turn<'_>) -> bool {
        if let Some((_, item)) = self.putters.remove(ticket) {
            turn.lose(&item);
            return true;
        }
        self.getters.remove(ticket).or_else(|| self.joiners.remove(ticket)).is_some()
    }

    /// Returns the calls that wait.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> {
        let others = self.getters.iter().chain(self.joiners.iter());
        let putters = self.putters.iter().map(|(caller, _)| caller);
        others.map(|(caller, ())| caller).chain(putters)
    }

    pub(super) fn each_names(&self, mut each: impl FnMut(&Names)) {
        let waiting = self.putters.iter().map(|(_, item)| item);
        self.items.iter().chain(waiting).for_each(|item| each(&item.names));
    }

    /// Checks that nobody waits for what is there.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(self.items.is_empty() || self.getters.is_empty(), "waits for an item: {self:?}");
        assert!(!self.has_room() || self.putters.is_empty(), "waits for room: {self:?}");
        assert!(self.unfinished > 0 || self.joiners.is_empty(), "waits for no item: {self:?}");
    }
}
