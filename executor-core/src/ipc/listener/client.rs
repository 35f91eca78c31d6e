//! `Client`: connects to a listener.

use std::{io, sync::Arc, time::Duration};

use super::{
    super::{
        address::Address,
        auth::{AuthError, AuthKey},
        connection::Connection,
        endpoint::Endpoint,
        readiness::{Deadline, deadline_in},
    },
    handshake::ask,
    socket::connect_to,
};

/// The error of connecting to a listener.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Authentication failed, for example because the two sides have different keys.
    #[error("could not authenticate at `{address}`: {error}")]
    #[non_exhaustive]
    Auth {
        /// The address of the listener.
        address: Address,
        /// The reason.
        error: AuthError,
    },
    /// No listener at this address, or the system refused.
    #[error("could not connect to `{address}`")]
    #[non_exhaustive]
    Io {
        /// The address that was given.
        address: Address,
        /// The system's error.
        #[source]
        error: io::Error,
    },
}

crate::debug::debug_is_chain!(ConnectError);

/// Connects to a [`Listener`](crate::Listener).
#[derive(Debug)]
pub struct Client(());

impl Client {
    /// Connects to a listener. With a key, both sides authenticate each other.
    ///
    /// With a key, the call waits until the listener accepts the client. Without a key it does not
    /// wait. If the listener requires a key, the first attempt to receive then returns an error
    /// that says so.
    ///
    /// # Errors
    /// If there is no listener at this address, or the keys differ.
    pub fn connect<S, R>(
        address: &Address,
        key: Option<&AuthKey>,
    ) -> Result<Connection<S, R>, ConnectError> {
        Self::connect_until(address, key, None)
    }

    /// Like [`connect`](Self::connect), but waits no longer than `timeout`.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect), and if it takes longer than `timeout`.
    pub fn connect_timeout<S, R>(
        address: &Address,
        key: Option<&AuthKey>,
        timeout: Duration,
    ) -> Result<Connection<S, R>, ConnectError> {
        Self::connect_until(address, key, deadline_in(Some(timeout)))
    }

    fn connect_until<S, R>(
        address: &Address,
        key: Option<&AuthKey>,
        deadline: Deadline,
    ) -> Result<Connection<S, R>, ConnectError> {
        let end = connect_to(address, deadline)
            .and_then(|socket| Endpoint::new(Arc::new(socket)))
            .map_err(|error| ConnectError::Io { address: address.clone(), error })?;
        if let Some(key) = key {
            ask(&end, key, deadline)
                .map_err(|error| ConnectError::Auth { address: address.clone(), error })?;
        }
        Ok(Connection::over(end))
    }
}
