//! Values of users in the messages of a manager, and the objects that they name.
//!
//! ```text
//!  Serialize of a handle:    names the object ─► its id goes in front of the value's bytes
//!  the server:               counts a reference for each id in what it keeps, and in what it sends
//!  Deserialize of a handle:  takes one of the references that came with the reply
//!  in the server itself:     a function takes one of the references that are lent to it, and names
//!                            objects in its result
//! ```
//!
//! serde has no place for anything besides the value, so what an encoding or decoding needs is kept
//! in thread-local variables meanwhile, as for [attachments](crate::wire::attachment).

use std::{any::type_name, cell::RefCell, mem::ManuallyDrop, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    super::{
        error::ManagerError,
        protocol::{
            FIELD_BYTES_MAX, NAMED_MAX, ObjectId, Opened, Operation, ValueField, put_number,
            put_value_head,
        },
    },
    connection::Connection,
    door::{Door, ServerId},
    reference::Hold,
    segments::{SEGMENT_FROM, Tail},
};
use crate::{
    os::{fork::Creator, local},
    segment::Store,
    unwind::catch,
    wire::{
        attachment,
        buffer::Buffer,
        codec::{CodecError, Fault, Format, Postcard},
    },
};

/// An encoding of a value for a server.
struct Naming {
    server: Arc<Door>,
    /// How deep encodings are nested. Deeper ones are of other messages, which a `Serialize` sends.
    depth: u32,
    /// Whether this process is the server, and the value is the result of a function.
    is_result: bool,
    named: Named,
}

/// The objects that an encoded value names.
#[derive(Default)]
pub(crate) struct Named {
    pub(crate) ids: Vec<ObjectId>,
    /// What keeps them alive until the server has counted them.
    holds: Vec<Arc<Hold>>,
    /// The same, for handles that a function of the server was lent.
    _lent: Vec<Arc<Lent>>,
    /// Why an object could not be named.
    failed: Option<ManagerError>,
}

impl Named {
    /// Returns why the value cannot be sent, if an object could not be named.
    pub(crate) fn failed(&mut self) -> Option<ManagerError> {
        self.failed.take()
    }

    pub(super) fn into_holds(self) -> Vec<Arc<Hold>> {
        self.holds
    }
}

/// Where references go that functions of the server do not need any more.
pub(crate) trait Lender: Send + Sync {
    fn let_go(&self, object: ObjectId);
}

/// A reference that a function of the server was lent, for one handle.
pub(super) struct Lent {
    object: ObjectId,
    lender: Arc<dyn Lender>,
    creator: Creator,
}

impl Drop for Lent {
    fn drop(&mut self) {
        // A copy that a function makes by `fork` has copies of its handles.
        if !self.creator.is_elsewhere() {
            self.lender.let_go(self.object);
        }
    }
}

/// A decoding of a value that came from a server.
enum Taking {
    /// In a client: the references that came with the reply.
    Client(Arc<Connection>, Vec<ObjectId>),
    /// In the server itself, where a function gets values and arguments.
    Server(Serving),
}

/// A function that runs in the server.
struct Serving {
    server: Arc<Door>,
    lender: Arc<dyn Lender>,
    /// The references that are lent to it, and that no handle has taken.
    lent: Vec<ObjectId>,
    /// What its result names.
    result: Named,
}

thread_local! {
    static NAMING: RefCell<ManuallyDrop<Option<Naming>>> = const { RefCell::new(ManuallyDrop::new(None)) };
    static TAKING: RefCell<ManuallyDrop<Option<Taking>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

fn replace_naming(naming: Option<Naming>) -> Option<Naming> {
    local::with(&NAMING, |place| std::mem::replace(&mut **place.borrow_mut(), naming))
}

fn replace_taking(taking: Option<Taking>) -> Option<Taking> {
    local::with(&TAKING, |place| std::mem::replace(&mut **place.borrow_mut(), taking))
}

/// Returns the server for which a value is being encoded on this thread, if there is one, and
/// whether it is this process.
pub(super) fn encoding_for() -> Option<(Arc<Door>, bool)> {
    local::with(&NAMING, |place| {
        let place = place.borrow();
        let naming = (**place).as_ref()?;
        (naming.depth == attachment::depth())
            .then(|| (Arc::clone(&naming.server), naming.is_result))
    })
}

/// Names an object in the value that is being encoded for its server.
pub(super) fn name(object: ObjectId, hold: Arc<Hold>) {
    local::with(&NAMING, |place| {
        if let Some(Naming { named, .. }) = &mut **place.borrow_mut() {
            named.ids.push(object);
            named.holds.push(hold);
        }
    });
}

/// Names an object in the result of a function of the server, which was lent a reference to it.
pub(super) fn name_lent(lent: Arc<Lent>) {
    local::with(&NAMING, |place| {
        if let Some(Naming { named, .. }) = &mut **place.borrow_mut() {
            named.ids.push(lent.object);
            named._lent.push(lent);
        }
    });
}

/// Notes why an object could not be named. The encoding returns this error, because the one of
/// serde is only a text.
pub(super) fn fail(error: ManagerError) {
    local::with(&NAMING, |place| {
        if let Some(Naming { named, .. }) = &mut **place.borrow_mut() {
            named.failed = Some(error);
        }
    });
}

/// Who has a reference to an object that a decoded value names.
pub(super) enum Taken {
    /// This process, through this connection. The new handle owns that reference.
    Client(Arc<Connection>),
    /// The new handle, in the server itself.
    Server(Arc<Door>, Arc<Lent>),
}

/// Takes the reference to an object that the value being decoded names. Returns `None` if it names
/// no such object.
pub(super) fn take(server: ServerId, object: ObjectId) -> Option<Taken> {
    local::with(&TAKING, |place| match &mut **place.borrow_mut() {
        Some(Taking::Client(connection, names)) if connection.door().id == server => {
            let at = names.iter().position(|name| *name == object)?;
            names.swap_remove(at);
            Some(Taken::Client(Arc::clone(connection)))
        }
        Some(Taking::Server(serving)) if serving.server.id == server => {
            let at = serving.lent.iter().position(|lent| *lent == object)?;
            serving.lent.swap_remove(at);
            let lender = Arc::clone(&serving.lender);
            let lent = Arc::new(Lent { object, lender, creator: Creator::here() });
            Some(Taken::Server(Arc::clone(&serving.server), lent))
        }
        _ => None,
    })
}

/// Runs one encoding for a server. Also returns the objects that it named, or why one could not be.
pub(crate) fn naming<R>(server: &Arc<Door>, encode: impl FnOnce() -> R) -> (R, Named) {
    naming_as(server, false, encode)
}

fn naming_as<R>(server: &Arc<Door>, is_result: bool, encode: impl FnOnce() -> R) -> (R, Named) {
    struct Restore(Option<Naming>);
    impl Drop for Restore {
        fn drop(&mut self) {
            replace_naming(self.0.take());
        }
    }
    let depth = attachment::depth() + 1;
    let server = Arc::clone(server);
    let own = Naming { server, depth, is_result, named: Named::default() };
    let _restore = Restore(replace_naming(Some(own)));
    let result = encode();
    (result, replace_naming(None).map(|naming| naming.named).unwrap_or_default())
}

/// Encodes the result of a function, in the server. What it names is then taken by
/// [`take_result`].
pub(crate) fn naming_result(encode: &mut dyn FnMut()) {
    let server = local::with(&TAKING, |place| match &**place.borrow() {
        Some(Taking::Server(serving)) => Some(Arc::clone(&serving.server)),
        _ => None,
    });
    let Some(server) = server else { return encode() };
    let ((), mut named) = naming_as(&server, true, encode);
    local::with(&TAKING, |place| {
        if let Some(Taking::Server(serving)) = &mut **place.borrow_mut() {
            std::mem::swap(&mut serving.result, &mut named);
        }
    });
}

/// Takes what the result names that [`naming_result`] has encoded.
pub(crate) fn take_result() -> Named {
    local::with(&TAKING, |place| match &mut **place.borrow_mut() {
        Some(Taking::Server(serving)) => std::mem::take(&mut serving.result),
        _ => Named::default(),
    })
}

fn taking<R>(taking: Taking, decode: impl FnOnce() -> R) -> R {
    struct Restore(Option<Taking>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let left = replace_taking(self.0.take());
            // The references that no handle has taken are given back.
            match left {
                Some(Taking::Client(connection, names)) => release(&connection, names),
                Some(Taking::Server(Serving { lender, lent, .. })) => {
                    lent.into_iter().for_each(|object| lender.let_go(object));
                }
                None => {}
            }
        }
    }
    let _restore = Restore(replace_taking(Some(taking)));
    decode()
}

/// Gives back references that came with a reply, and that nobody wants.
pub(super) fn release(connection: &Arc<Connection>, objects: impl IntoIterator<Item = ObjectId>) {
    let mut one = Vec::new();
    put_number(&mut one, 1);
    objects.into_iter().for_each(|object| connection.tell(Operation::Release, object, &one));
}

/// Runs a function in the server. Its handles take the references that are lent to it.
pub(crate) fn serving<R>(
    server: &Arc<Door>,
    lender: &Arc<dyn Lender>,
    lent: Vec<ObjectId>,
    function: impl FnOnce() -> R,
) -> R {
    let (server, lender) = (Arc::clone(server), Arc::clone(lender));
    taking(Taking::Server(Serving { server, lender, lent, result: Named::default() }), function)
}

/// Encodes a value, and appends it to a body. With a store, the bytes of a large value are in a
/// segment afterwards, which is returned, and only what stands in front of them is in the body.
pub(super) fn encode<T: Serialize + ?Sized>(
    server: &Arc<Door>,
    value: &T,
    body: &mut Vec<u8>,
    named: &mut Vec<Arc<Hold>>,
    store: Option<Arc<Store>>,
) -> Result<Option<Tail>, ManagerError> {
    let failed = |why: &dyn std::fmt::Display| {
        ManagerError::Encode(format!("a {}: {why}", type_name::<T>()).into())
    };
    let opened = Opened::begin(body);
    let vec = std::mem::take(body);
    let mut buffer = match &store {
        None => Buffer::behind(vec),
        Some(store) => Buffer::behind_in(vec, Arc::clone(store), SEGMENT_FROM),
    };
    let encoded =
        catch(|| naming(server, || attachment::collect(|| Postcard::encode(value, &mut buffer))));
    let (vec, filled) = buffer.into_parts();
    *body = vec;
    let tail = filled.zip(store).map(|((lease, len), store)| Tail::new(lease, store, len));
    let len = tail.as_ref().map_or_else(|| opened.len(body), Tail::len);
    let checked = encoded
        .map_err(|panic| failed(&format!("its Serialize panicked: {panic}")))
        .and_then(|((encoded, attachments), named)| {
            let Named { ids: names, holds, failed: unnamed, .. } = named;
            encoded.map_err(|error| unnamed.unwrap_or_else(|| failed(&error.message)))?;
            if !attachments.is_empty() {
                return Err(failed(
                    &"it contains something that belongs to processes, such as a file, a `Queue` or a `Lock` that no manager has made",
                ));
            }
            if len > FIELD_BYTES_MAX || names.len() > NAMED_MAX {
                return Err(failed(&format!(
                    "it has {len} bytes and names {} objects; at most {FIELD_BYTES_MAX} and {NAMED_MAX} are possible",
                    names.len()
                )));
            }
            Ok((names, holds))
        });
    match checked {
        Ok((names, holds)) => {
            match tail {
                None => opened.end(body, &names),
                Some(_) => {
                    opened.undo(body);
                    put_value_head(body, len, &names);
                }
            }
            named.extend(holds);
            Ok(tail)
        }
        Err(error) => {
            opened.undo(body);
            Err(error)
        }
    }
}

/// Decodes a value that came in a reply.
pub(super) fn decode<T: DeserializeOwned>(
    connection: &Arc<Connection>,
    value: ValueField<'_>,
) -> Result<T, ManagerError> {
    decode_with(connection, value, type_name::<T>(), |bytes| Postcard::decode(bytes))
}

/// Decodes a value that came in a reply, with `decode`. `name` says in an error what it is.
pub(super) fn decode_with<T>(
    connection: &Arc<Connection>,
    value: ValueField<'_>,
    name: &str,
    decode: impl FnOnce(&[u8]) -> Result<T, CodecError>,
) -> Result<T, ManagerError> {
    let decoded = match value.names().len() {
        0 => catch(|| decode(value.bytes)),
        _ => {
            let taken = Taking::Client(Arc::clone(connection), value.names().collect());
            catch(|| taking(taken, || decode(value.bytes)))
        }
    };
    let failed =
        |why: &dyn std::fmt::Display| ManagerError::Decode(format!("as a {name}: {why}").into());
    decoded.map_err(|panic| failed(&format!("its Deserialize panicked: {panic}")))?.map_err(
        |error| match error.fault {
            Fault::Own => failed(&error.message),
            // The codec says that the two sides of one type differ. Here it may be two types.
            Fault::Unsuited | Fault::Bytes => failed(&format!(
                "it was probably stored as another type, through another handle ({})",
                error.message
            )),
        },
    )
}
