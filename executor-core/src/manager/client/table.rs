//! The connections of this process, one for each server.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use super::{
    super::error::ManagerError,
    connection::Connection,
    door::{Door, ServerId},
};
use crate::os::{fork::PerProcess, std_or_model::lock};

/// A place for a connection. Its lock is held while the connection is made, so that threads that
/// want the same one wait for it.
type Place = Arc<Mutex<Option<Arc<Connection>>>>;

static TABLE: PerProcess<Mutex<HashMap<ServerId, Place>>> = PerProcess::new(Mutex::default);

/// Forgets the connection to a server that was shut down. Handles may still have it.
pub(super) fn forget(server: ServerId) {
    let forgotten = lock(TABLE.get()).remove(&server);
    drop(forgotten);
}

/// Returns this process's connection to a server. Makes it if there is none.
///
/// A server that was reached by its address has a [route](super::Route), which has its connection.
/// Another connection stays until its server ends. What a process has of a server, such as a lock
/// whose guard it has leaked, belongs to the process and not to a handle. And a worker that gets a
/// handle with each task does not connect with each task.
pub(super) fn connection_to(
    door: &Arc<Door>,
    deadline: Option<Instant>,
) -> Result<Arc<Connection>, ManagerError> {
    if let Some(route) = door.route()
        && !(route.is_elsewhere() && door.socket().is_some())
    {
        return route.connection(Some(door.id), deadline);
    }
    let place = {
        let mut table = lock(TABLE.get());
        if !table.contains_key(&door.id) {
            // A good moment to forget the servers that have ended.
            table.retain(|_, place| match place.try_lock() {
                Ok(place) => place.as_ref().is_none_or(|connection| !connection.has_ended()),
                Err(_) => true,
            });
        }
        Arc::clone(table.entry(door.id).or_default())
    };
    let mut place = lock(&place);
    if let Some(connection) = place.as_ref().filter(|connection| !connection.is_gone()) {
        return Ok(Arc::clone(connection));
    }
    let connection = door.connect(deadline)?;
    *place = Some(Arc::clone(&connection));
    kill_point!(ClientConnected);
    Ok(connection)
}
