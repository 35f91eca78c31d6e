//! The server that this process is, for the functions of users that run in it.

use std::sync::{Arc, OnceLock};

use super::super::client::Door;
use crate::os::fork::PerProcess;

/// A copy that a user's function makes by `fork` is no server.
static OWN: PerProcess<OnceLock<Arc<Door>>> = PerProcess::new(OnceLock::new);

/// Notes that this process is the server with this door.
pub(super) fn set(door: &Arc<Door>) {
    let _ = OWN.get().set(Arc::clone(door));
}

/// Returns the door of the server that this process is, if it is one.
pub(in crate::manager) fn own() -> Option<Arc<Door>> {
    OWN.get().get().cloned()
}
