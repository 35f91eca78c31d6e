//! A queue, with calls that wait for an item, for room, or until all items are done.

use std::collections::VecDeque;

use super::{
    actions::{Outcome, Progress, Refusal},
    clients::Caller,
    takes::Take,
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
                // With the names of the objects in it, which may be longer than the rest.
                let ticket = turn.wait(value.bytes.len() + 8 * value.names().len())?;
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
                    let (caller, queue) = (turn.caller, turn.object);
                    turn.write(&item);
                    turn.lose(&item);
                    turn.took(caller, Take::Item { queue, item });
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
            Operation::QueueIsFull => {
                fields.end()?;
                Ok(Progress::Done(u64::from(!self.has_room())))
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
        turn.took(getter, Take::Item { queue: turn.object, item });
        turn.answer(getter, Ok(0));
        None
    }

    /// Puts back an item that nobody has got. It comes first again. Afterwards
    /// [`let_get`](Self::let_get) must be called.
    pub(super) fn put_back(&mut self, item: Stored) {
        self.items.push_front(item);
    }

    /// Gives items to those who wait for one, as long as there are some.
    pub(super) fn let_get(&mut self, turn: &mut Turn<'_>) {
        while !self.getters.is_empty()
            && let Some(item) = self.items.pop_front()
        {
            self.hand_over(item, turn);
        }
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

    /// Returns the items and what they name.
    #[cfg(test)]
    pub(super) fn items(&self) -> impl Iterator<Item = &Stored> {
        self.items.iter()
    }

    /// Checks that nobody waits for what is there.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(self.items.is_empty() || self.getters.is_empty(), "waits for an item: {self:?}");
        assert!(!self.has_room() || self.putters.is_empty(), "waits for room: {self:?}");
        assert!(self.unfinished > 0 || self.joiners.is_empty(), "waits for no item: {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Body, Call, Desk, number};
    use crate::manager::protocol::{Kind, ObjectId, Operation as O, Status};

    fn texts(desk: &mut Desk, call: Call) -> String {
        desk.answer(call).expect("the call waits").texts().concat()
    }

    #[test]
    fn items_go_to_getters_in_the_order_of_arrival() {
        let (mut desk, a, b) = Desk::with_two();
        let queue = desk.create(a, Kind::Queue, number(0).number(0));
        desk.share(b, queue);
        assert_eq!(desk.refused(a, O::QueueGet, queue, number(0)), Status::NotNow);
        let first = desk.waits(b, O::QueueGet, queue, number(1));
        let second = desk.waits(a, O::QueueGet, queue, number(1));
        for text in ["1", "2", "3"] {
            desk.ask(a, O::QueuePut, queue, number(0).value(text)).done();
        }
        assert_eq!(texts(&mut desk, first), "1");
        assert_eq!(texts(&mut desk, second), "2");
        assert_eq!(desk.ask(a, O::Len, queue, Body::new()).done(), 1);
        assert_eq!(desk.ask(b, O::QueueGet, queue, number(1)).texts(), ["3"]);
    }

    #[test]
    fn a_full_queue_lets_putters_wait_in_line() {
        let (mut desk, a, b) = Desk::with_two();
        let queue = desk.create(a, Kind::Queue, number(1).number(0));
        desk.share(b, queue);
        desk.ask(a, O::QueuePut, queue, number(1).value("1")).done();
        assert_eq!(desk.ask(a, O::QueueIsFull, queue, Body::new()).done(), 1);
        let full = desk.refused(a, O::QueuePut, queue, number(0).value("x"));
        assert_eq!(full, Status::NotNow);
        let dead = desk.waits(b, O::QueuePut, queue, number(1).value("dead"));
        let given_up = desk.waits(a, O::QueuePut, queue, number(1).value("given up"));
        let put = desk.waits(a, O::QueuePut, queue, number(1).value("2"));
        desk.give_up(given_up);
        assert_eq!(desk.outcome(given_up), Err(Status::GivenUp));
        desk.disconnect(b);
        assert_eq!(desk.answer(dead), None);
        assert_eq!(desk.ask(a, O::QueueGet, queue, number(0)).texts(), ["1"]);
        assert_eq!(desk.outcome(put), Ok(0));
        assert_eq!(desk.ask(a, O::QueueGet, queue, number(0)).texts(), ["2"]);
        assert_eq!(desk.ask(a, O::QueueIsFull, queue, Body::new()).done(), 0);
        assert_eq!(desk.refused(a, O::QueueGet, queue, number(0)), Status::NotNow);
    }

    #[test]
    fn a_dead_getter_takes_no_item() {
        let (mut desk, a, b) = Desk::with_two();
        let queue = desk.create(a, Kind::Queue, number(0).number(0));
        desk.share(b, queue);
        desk.waits(b, O::QueueGet, queue, number(1));
        let given_up = desk.waits(a, O::QueueGet, queue, number(1));
        let alive = desk.waits(a, O::QueueGet, queue, number(1));
        desk.disconnect(b);
        desk.give_up(given_up);
        desk.ask(a, O::QueuePut, queue, number(1).value("1")).done();
        assert_eq!(texts(&mut desk, alive), "1");
    }

    #[test]
    fn an_item_that_is_put_back_comes_first_and_is_not_new() {
        let (mut desk, a, _) = Desk::with_two();
        let queue = desk.create(a, Kind::Queue, number(1).number(1));
        desk.ask(a, O::QueuePut, queue, number(0).value("1")).done();
        assert_eq!(desk.ask(a, O::QueueGet, queue, number(0)).texts(), ["1"]);
        desk.ask(a, O::QueuePut, queue, number(0).value("2")).done();
        // More than the capacity.
        desk.tell(a, O::QueuePutBack, queue, Body::new().value("1"));
        assert_eq!(desk.ask(a, O::Len, queue, Body::new()).done(), 2);
        let put = desk.waits(a, O::QueuePut, queue, number(1).value("3"));
        assert_eq!(desk.ask(a, O::QueueGet, queue, number(0)).texts(), ["1"]);
        assert_eq!(desk.answer(put), None);
        assert_eq!(desk.ask(a, O::QueueGet, queue, number(0)).texts(), ["2"]);
        assert_eq!(desk.outcome(put), Ok(0));
        assert_eq!(desk.ask(a, O::QueueGet, queue, number(0)).texts(), ["3"]);
        let getter = desk.waits(a, O::QueueGet, queue, number(1));
        desk.tell(a, O::QueuePutBack, queue, Body::new().value("3"));
        assert_eq!(texts(&mut desk, getter), "3");
        for _ in 0..3 {
            desk.ask(a, O::QueueTaskDone, queue, Body::new()).done();
        }
        assert_eq!(desk.refused(a, O::QueueTaskDone, queue, Body::new()), Status::Refused);
    }

    #[test]
    fn join_waits_until_all_items_are_done() {
        let (mut desk, a, b) = Desk::with_two();
        let plain = desk.create(a, Kind::Queue, number(0).number(0));
        desk.ask(a, O::QueuePut, plain, number(0).value("1")).done();
        assert_eq!(desk.refused(a, O::QueueJoin, plain, Body::new()), Status::Refused);
        assert_eq!(desk.refused(a, O::QueueTaskDone, plain, Body::new()), Status::Refused);

        let queue = desk.create(a, Kind::Queue, number(1).number(1));
        desk.share(b, queue);
        desk.ask(b, O::QueueJoin, queue, Body::new()).done();
        desk.ask(a, O::QueuePut, queue, number(0).value("1")).done();
        let putter = desk.waits(a, O::QueuePut, queue, number(1).value("2"));
        let join = desk.waits(b, O::QueueJoin, queue, Body::new());
        desk.ask(b, O::QueueGet, queue, number(0)).done();
        assert_eq!(desk.outcome(putter), Ok(0));
        desk.ask(b, O::QueueTaskDone, queue, Body::new()).done();
        assert_eq!(desk.answer(join), None);
        desk.ask(b, O::QueueTaskDone, queue, Body::new()).done();
        assert_eq!(desk.outcome(join), Ok(0));
    }

    #[test]
    fn an_item_keeps_what_it_names_alive_on_its_way() {
        let (mut desk, a, b) = Desk::with_two();
        let queue = desk.create(a, Kind::Queue, number(1).number(0));
        desk.share(b, queue);
        let event = desk.create(a, Kind::Event, Body::new());
        let item = || number(1).naming("item", &[event]);
        desk.ask(a, O::QueuePut, queue, item()).done();
        let waiting = desk.waits(a, O::QueuePut, queue, item());
        desk.release(a, event, 1);
        let got = desk.ask(b, O::QueueGet, queue, number(0));
        assert_eq!(got.texts(), ["item"]);
        desk.give_up(waiting);
        assert_eq!(desk.outcome(waiting), Ok(0));
        desk.release(b, event, 1);
        assert!(desk.exists(event));
        // Nobody gets the item, so nobody gets a reference.
        desk.tell(b, O::QueueGet, queue, number(0));
        assert!(!desk.exists(event));
        assert_eq!(desk.refused(b, O::EventSet, ObjectId(event.0), Body::new()), Status::NoObject);
    }
}
