//! The connections of this process, one for each server.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use super::{
    super::error::ManagerError,
    connection::Connection,
    door::{Door, ServerId},
};
use crate::os::{fork::PerProcess, std_or_model::lock};

/// A place for a connection. Its lock is held while the connection is made, so that threads that
/// want the same one wait for it.
type Place = Arc<Mutex<Weak<Connection>>>;

static TABLE: PerProcess<Mutex<HashMap<ServerId, Place>>> = PerProcess::new(Mutex::default);

/// Returns this process's connection to a server. Makes it if there is none.
pub(super) fn connection_to(door: &Arc<Door>) -> Result<Arc<Connection>, ManagerError> {
    let place = {
        let mut table = lock(TABLE.get());
        // Places of servers that nothing connects to any more.
        table.retain(|id, place| {
            *id == door.id
                || Arc::strong_count(place) > 1
                || place.try_lock().is_ok_and(|place| place.strong_count() > 0)
        });
        Arc::clone(table.entry(door.id).or_default())
    };
    let mut place = lock(&place);
    if let Some(connection) = place.upgrade().filter(|connection| !connection.is_gone()) {
        return Ok(connection);
    }
    let connection = door.connect()?;
    *place = Arc::downgrade(&connection);
    Ok(connection)
}
