//! How a process connects to a server that it did not start.

use std::{fmt, sync::Arc, sync::Mutex, time::Duration};

#[cfg(feature = "tls")]
use super::link::tls::{TlsClient, Trust};
use super::{
    Manager, ManagerError,
    client::{Backoff, Reference, Route, RouteOptions},
};
use crate::{
    ipc::{Address, AuthKey},
    os::fork::Creator,
};

/// Connects to the server of a manager. [`Manager::connector`] makes it.
///
/// ```no_run
/// use executor::{AuthKey, manager::{Backoff, Manager, Trust}};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let key = AuthKey::new(std::fs::read("manager.key")?);
/// let fingerprint = std::fs::read_to_string("manager.fingerprint")?.trim().parse()?;
/// let manager = Manager::connector(&"server.example:7000".parse()?, &key)
///     .trust(Trust::fingerprint(fingerprint))
///     .reconnect(Backoff::default())
///     .connect()?;
/// let words = manager.dict([("one".to_owned(), 1)])?;
/// assert_eq!(words.get("one")?, Some(1));
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is connected before `connect`"]
pub struct Connector {
    address: Address,
    key: AuthKey,
    #[cfg(feature = "tls")]
    trust: Option<Trust>,
    timeout: Duration,
    backoff: Option<Backoff>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Connector");
        shown.field("address", &format_args!("{}", self.address));
        #[cfg(feature = "tls")]
        shown.field("trust", &self.trust);
        shown.field("timeout", &self.timeout).field("backoff", &self.backoff);
        shown.finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(address: Address, key: AuthKey) -> Self {
        Connector {
            address,
            key,
            #[cfg(feature = "tls")]
            trust: None,
            timeout: Duration::from_secs(10),
            backoff: None,
        }
    }

    /// Sets which server is trusted. TCP needs it. For a Unix socket it is not used: there the
    /// kernel says whose process listens. Needs the feature `tls`.
    #[cfg(feature = "tls")]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = Some(trust);
        self
    }

    /// Sets how long one attempt to connect may take. The default is ten seconds. If a host has
    /// several addresses, they are tried one after the other, each with a head start of at most a
    /// quarter of a second, and the first that answers is used. Looking up the name of a host may
    /// take longer.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects again when the connection is lost. Without this, every call returns
    /// [`ManagerError::Gone`] from then on.
    ///
    /// - Calls in flight fail at once. Those that change nothing, such as `get` and `len`, are made
    ///   again instead. Of the others it is not known whether they were done, and the error says
    ///   so.
    /// - Later calls wait for the new connection, as long as the [`Backoff`] says.
    /// - The server has ended what this process had: its locks are released, its permits are back,
    ///   and objects of which nobody else has a handle are gone. Guards know that, and release
    ///   nothing.
    /// - If the server was started again, its objects are other ones. The old handles return
    ///   [`ManagerError::NoObject`]. The manager itself goes on, and finds the new ones.
    ///
    /// The first connection, which [`connect`](Self::connect) makes, is tried once.
    pub fn reconnect(mut self, backoff: Backoff) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// - [`ManagerError::NotConnected`] if nobody listens there, or does not answer in time.
    /// - [`ManagerError::Auth`] if the server has another key.
    /// - [`ManagerError::Untrusted`] if it is not the server that is trusted, or if it is a process
    ///   of another user, at a Unix socket.
    /// - [`ManagerError::Gone`] if it does not let this process in, for example because it has as
    ///   many clients as it may have.
    /// - [`ManagerError::Protocol`] if it is something else than a manager.
    /// - [`ManagerError::Invalid`] for a TCP address without `trust` or without the feature `tls`,
    ///   and for an abstract name. Managers do not use those: every user could take the name, or
    ///   fill the queue of those that want to connect.
    pub fn connect(self) -> Result<Manager, ManagerError> {
        let impossible = |why: &str| {
            ManagerError::Invalid(format!("the address `{}`: {why}", self.address).into())
        };
        match &self.address {
            Address::Unix(_) => {}
            #[cfg(feature = "tls")]
            Address::Tcp(..) if self.trust.is_some() => {}
            #[cfg(feature = "tls")]
            Address::Tcp(..) => {
                return Err(impossible("`Connector::trust` says which server is the right one"));
            }
            #[cfg(not(feature = "tls"))]
            Address::Tcp(..) => return Err(impossible("TCP needs the feature `tls`")),
            Address::Abstract(_) => {
                return Err(impossible("every user can take an abstract name: use a path"));
            }
        }
        #[cfg(feature = "tls")]
        let tls = self.trust.as_ref().map(TlsClient::new).transpose();
        let options = RouteOptions {
            #[cfg(feature = "tls")]
            tls: tls.map_err(|error| impossible(&error.to_string()))?,
            #[cfg(feature = "tls")]
            trust: self.trust.clone(),
            address: self.address.clone(),
            key: self.key.clone(),
            timeout: self.timeout,
            backoff: self.backoff,
        };
        let (route, connection) = Route::open(options)?;
        Ok(Manager {
            started: None,
            route: Some(route),
            server: Arc::new(Reference::to_server_of(connection)),
            later: Mutex::default(),
            creator: Creator::here(),
        })
    }
}
