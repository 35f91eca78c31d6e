//! What an object may do while it is its turn: take values in, give values out, answer calls, and
//! let the caller wait.

use std::sync::Arc;

use super::{
    actions::{Actions, Outcome, Refusal},
    clients::{Caller, Clients},
    references::Changes,
    takes::Take,
    waiting::Ticket,
};
use crate::manager::protocol::{self, CallId, Fields, ObjectId, Status, ValueField};

/// The objects that a value names, with repetitions. Most values name none, and then cost no
/// memory for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names(Option<Box<[ObjectId]>>);

impl Names {
    pub(super) fn new(names: impl ExactSizeIterator<Item = ObjectId>) -> Self {
        Names((names.len() > 0).then(|| names.collect()))
    }

    pub(super) fn as_slice(&self) -> &[ObjectId] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// A value of an object: a user's bytes, and the objects that they name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) bytes: Arc<[u8]>,
    pub(super) names: Names,
}

impl Stored {
    /// Returns how many bytes the value has in a message.
    pub(super) fn encoded_len(&self) -> usize {
        encoded_len(&self.bytes, &self.names)
    }
}

/// Returns how many bytes a value has in a message.
pub(super) fn encoded_len(bytes: &[u8], names: &Names) -> usize {
    let names = match names.as_slice().len() {
        0 => 0,
        count => 2 + 8 * count,
    };
    4 + names + bytes.len()
}

/// The server's state beside the object whose turn it is.
pub(super) struct Turn<'a> {
    /// The call that is to be done.
    pub(super) caller: Caller,
    /// The object whose turn it is.
    pub(super) object: ObjectId,
    pub(super) clients: &'a mut Clients,
    pub(super) changes: &'a mut Changes,
    pub(super) out: &'a mut Actions,
}

impl Turn<'_> {
    /// Reads a value that is to be stored. The caller has to have a reference to each object that
    /// it names; otherwise anybody could get at any object by storing its number and reading it.
    pub(super) fn value<'b>(&self, fields: &mut Fields<'b>) -> Result<ValueField<'b>, Refusal> {
        let value = fields.value()?;
        let client = self.caller.client;
        if value.names().all(|name| self.clients.has_reference(client, name)) {
            Ok(value)
        } else {
            Err(Status::NoObject.into())
        }
    }

    /// Reads all values that are left.
    pub(super) fn values<'b>(
        &self,
        mut fields: Fields<'b>,
    ) -> Result<Vec<ValueField<'b>>, Refusal> {
        let mut values = Vec::new();
        while !fields.is_empty() {
            values.push(self.value(&mut fields)?);
        }
        Ok(values)
    }

    /// Copies a value, to keep it in an object, unless its bytes have come in memory of their own.
    /// Each object that it names gets one more reference.
    pub(super) fn keep(&mut self, value: ValueField<'_>) -> Stored {
        Stored { bytes: value.to_shared(), names: self.keep_names(value) }
    }

    /// Returns the names of a value that is kept in an object.
    pub(super) fn keep_names(&mut self, value: ValueField<'_>) -> Names {
        let names = Names::new(value.names());
        self.changes.keep(&names);
        names
    }

    /// Lends a function the references of names that were kept. Returns the names.
    pub(super) fn lend(&mut self, names: Names) -> Vec<ObjectId> {
        let names = names.0.map_or_else(Vec::new, Vec::from);
        self.clients.lend(&names);
        names
    }

    /// Notes that a value is no longer in an object.
    pub(super) fn lose(&mut self, value: &Stored) {
        self.changes.lose_names(&value.names);
    }

    /// Appends a value to the reply. The caller gets a reference to each object that it names.
    pub(super) fn write(&mut self, value: &Stored) {
        self.write_to(self.caller, &value.bytes, &value.names);
    }

    /// Appends a value to the reply to another call.
    pub(super) fn write_to(&mut self, to: Caller, bytes: &Arc<[u8]>, names: &Names) {
        // A client that gets no reply could not give back the references.
        if to.call != CallId::NONE {
            self.out.write(bytes, names.as_slice());
            self.changes.give(to.client, names);
        }
    }

    /// Appends a value that is in no object to the reply to another call.
    pub(super) fn write_result_to(&mut self, to: Caller, bytes: &[u8], names: &Names) {
        if to.call != CallId::NONE {
            protocol::put_value(self.out.body(), bytes, names.as_slice());
            self.changes.give(to.client, names);
        }
    }

    pub(super) fn write_bytes(&mut self, bytes: &[u8]) {
        protocol::put_bytes(self.out.body(), bytes);
    }

    pub(super) fn write_number(&mut self, number: u64) {
        protocol::put_number(self.out.body(), number);
    }

    /// Notes what the next reply gives to a client. If the client dies before it has read the
    /// reply, that is undone.
    pub(super) fn took(&mut self, to: Caller, take: Take) {
        // Without a reply there is none that could be unread.
        if to.call != CallId::NONE && self.clients.note_take(to.client, take) {
            self.out.next_takes();
        }
    }

    /// Lets the caller wait at this object. `bytes` is how much of its data is kept meanwhile.
    pub(super) fn wait(&mut self, bytes: usize) -> Result<Ticket, Refusal> {
        self.clients.begin_wait(self.caller, self.object, bytes as u64)
    }

    /// Answers a call that has waited. A client that is gone gets no answer: it may have waited
    /// twice at the same barrier, which its first call breaks when it leaves.
    pub(super) fn answer(&mut self, mut to: Caller, outcome: Outcome) {
        if !self.clients.end_wait(to) {
            to.call = CallId::NONE;
        }
        self.out.answer(to, outcome);
    }
}
