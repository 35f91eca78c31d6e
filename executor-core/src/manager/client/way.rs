//! The ways to servers that are reached over TCP, as they travel with handles to other processes of
//! this program.
//!
//! ```text
//!  this process                                          another process of this program
//!  Route ─► sealed file: address, key, whom to trust ─► descriptor, with each handle
//!                                                          └─► table ─► Route, which connects with
//!                                                                       the first call
//! ```
//!
//! The key is a secret that is worth an account, so it is never among the bytes of a message. It is
//! in a file without a name, and only the file's descriptor travels. So it goes nowhere where
//! descriptors do not: not over TCP, not into a manager, not to disk. A connection at an address
//! refuses it as well ([`attachment::is_secret`]), since another program, and for an abstract name
//! another user, may be at its other end.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    ptr,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    super::{
        error::ManagerError,
        link::tls::{TlsClient, Trust, TrustParts},
    },
    backoff::Backoff,
    door::ServerId,
    route::{Route, RouteOptions},
};
use crate::{
    ipc::{Address, AuthKey},
    os::{fork::PerProcess, sealed, std_or_model::lock},
    wire::attachment::{Attachment, SECRET_MARK},
};

/// Maximum length of such a file. With a higher value, a hostile process can make this one decode
/// more. With a lower value, a way that trusts many certificates cannot travel.
const BYTES_MAX: usize = 1 << 20;

/// What a process has to know to get to a server.
#[derive(Serialize, Deserialize)]
struct Way {
    address: String,
    key: Vec<u8>,
    trust: TrustParts,
    timeout: Duration,
    backoff: Option<(Duration, Duration, Duration)>,
}

/// Identifies a way by its contents, so that handles which came from different processes share a
/// connection.
type Name = [u8; 32];

/// The routes of this process.
static TABLE: PerProcess<Mutex<HashMap<Name, Known>>> = PerProcess::new(Mutex::default);

struct Known {
    route: Weak<Route>,
    /// Whether it came with a handle. Then it stays once it has connected.
    came: bool,
    /// The same route, if it stays. It stays with its connection until the server has ended: a
    /// worker that gets a handle with each task does not connect with each task. One that was never
    /// used goes with its handles, so that who sends many does not fill the memory of this process.
    kept: Option<Arc<Route>>,
}

/// Returns the way of a route, if it is one over TCP.
fn encode(options: &RouteOptions) -> Option<Vec<u8>> {
    let RouteOptions { address, key, trust, timeout, backoff, .. } = options;
    let Address::Tcp(..) = address else { return None };
    let way = Way {
        address: address.to_string(),
        key: key.as_bytes().to_vec(),
        trust: trust.as_ref()?.to_parts(),
        timeout: *timeout,
        backoff: backoff.map(|backoff| backoff.parts()),
    };
    let mut bytes = SECRET_MARK.to_vec();
    bytes.extend(postcard::to_stdvec(&way).ok()?);
    Some(bytes)
}

fn decode(bytes: &[u8]) -> Result<RouteOptions, String> {
    let malformed = || "what came with it is no way to a manager".to_owned();
    let rest = bytes.strip_prefix(&SECRET_MARK).ok_or_else(malformed)?;
    let way: Way = postcard::from_bytes(rest).map_err(|_| malformed())?;
    let address: Address = way.address.parse().map_err(|_| malformed())?;
    if !matches!(address, Address::Tcp(..)) {
        return Err(malformed());
    }
    let trust = Trust::from_parts(way.trust).map_err(|error| error.to_string())?;
    Ok(RouteOptions {
        address,
        key: AuthKey::new(way.key),
        tls: Some(TlsClient::new(&trust).map_err(|error| error.to_string())?),
        trust: Some(trust),
        timeout: way.timeout,
        backoff: way.backoff.map(Backoff::of_parts),
    })
}

fn name_of(bytes: &[u8]) -> Name {
    Sha256::digest(bytes).into()
}

/// Notes a route that this process has opened by an address. Handles that come back use it.
pub(super) fn opened(route: &Arc<Route>) {
    if let Some(bytes) = encode(route.options()) {
        let known = Known { route: Arc::downgrade(route), came: false, kept: None };
        let before = lock(TABLE.get()).insert(name_of(&bytes), known);
        // Its connection may be the last of it.
        drop(before);
    }
}

/// Lets a route stay that has connected, if it came with a handle.
pub(super) fn connected(route: &Arc<Route>) {
    let mut table = lock(TABLE.get());
    let known = table.values_mut().find(|known| ptr::eq(known.route.as_ptr(), Arc::as_ptr(route)));
    if let Some(known) = known.filter(|known| known.came) {
        known.kept.get_or_insert_with(|| Arc::clone(route));
    }
}

/// Forgets the routes to a server that was shut down. Handles may still have them.
pub(super) fn forget(server: ServerId) {
    let forgotten: Vec<_> = {
        let mut table = lock(TABLE.get());
        table.extract_if(|_, known| leads_to(known, server)).collect()
    };
    leave(forgotten);
}

/// Lets go of routes, while no lock is held. One that stays has its connection, which has the
/// route.
fn leave(forgotten: Vec<(Name, Known)>) {
    for route in forgotten.iter().filter_map(|(_, known)| known.kept.as_ref()) {
        route.leave();
    }
}

fn leads_to(known: &Known, server: ServerId) -> bool {
    known.route.upgrade().is_none_or(|route| {
        route.current().is_some_and(|connection| connection.door().id == server)
    })
}

/// Returns the file that travels with the handles of a route. `None` if the route is not over TCP.
pub(super) fn file(options: &RouteOptions) -> Option<Result<OwnedFd, ManagerError>> {
    let bytes = encode(options)?;
    let file = sealed::sealed_file(&bytes);
    Some(file.map_err(ManagerError::os("a file for the way to a manager")))
}

/// Returns the route that has come with a handle.
pub(super) fn received(file: &Attachment) -> Result<Arc<Route>, String> {
    let failed = |error: std::io::Error| format!("the way to its manager cannot be read: {error}");
    let view = sealed::SealedView::open(file).map_err(failed)?;
    match view.bytes() {
        bytes if bytes.len() > BYTES_MAX => Err("the way to its manager is too long".to_owned()),
        bytes => by_bytes(bytes),
    }
}

/// Returns the route by which a fork of the process that has opened this one gets to the server.
pub(super) fn in_fork(options: &RouteOptions) -> Option<Result<Arc<Route>, String>> {
    Some(by_bytes(&encode(options)?))
}

fn by_bytes(bytes: &[u8]) -> Result<Arc<Route>, String> {
    let name = name_of(bytes);
    let usable = |known: &Known| known.route.upgrade().filter(|route| route.is_of_use());
    if let Some(route) = lock(TABLE.get()).get(&name).and_then(usable) {
        return Ok(route);
    }
    let route = Route::later(decode(bytes)?);
    let mut table = lock(TABLE.get());
    // Another thread may have come first.
    if let Some(route) = table.get(&name).and_then(usable) {
        return Ok(route);
    }
    // A good moment to forget those that nobody can use any more.
    let forgotten: Vec<_> = table.extract_if(|_, known| usable(known).is_none()).collect();
    table.insert(name, Known { route: Arc::downgrade(&route), came: true, kept: None });
    drop(table);
    leave(forgotten);
    Ok(route)
}

#[cfg(any(all(test, not(any(executor_loom, executor_shuttle))), fuzzing))]
pub(in super::super) mod fuzzed {
    use super::*;

    /// Decodes a way, and checks that it leads to a place over TCP and can travel on.
    pub(in super::super::super) fn way(data: &[u8]) {
        let Ok(options) = decode(data) else { return };
        assert!(matches!(options.address, Address::Tcp(..)), "{:?}", options.address);
        let bytes = encode(&options).expect("it is over TCP");
        let again = decode(&bytes).expect("it was encoded here");
        assert_eq!((&again.address, &again.key), (&options.address, &options.key));
        assert_eq!((again.timeout, again.backoff), (options.timeout, options.backoff));
        assert_eq!(encode(&again).expect("it is over TCP"), bytes, "its trust is the same");
    }

    /// Returns inputs for [`way`].
    #[cfg(test)]
    pub(in super::super::super) fn seeds() -> Vec<Vec<u8>> {
        let anchor = |byte| (vec![byte; 20], vec![byte; 40], (byte == 2).then(|| vec![3; 9]));
        let roots = TrustParts::Certificates {
            roots: vec![anchor(1), anchor(2)],
            name: "executor-manager".to_owned(),
        };
        let way = |address: &str, trust: TrustParts, backoff: Option<Backoff>| {
            let trust = Trust::from_parts(trust).expect("a name");
            let options = RouteOptions {
                address: address.parse().expect("an address"),
                key: AuthKey::new("the key of a seed"),
                tls: None,
                trust: Some(trust),
                timeout: Duration::from_secs(3),
                backoff,
            };
            encode(&options).expect("it is over TCP")
        };
        let plain = way("host.example:7", TrustParts::Fingerprint([7; 32]), None);
        let mut elsewhere = plain.clone();
        // Its first character: a path is no place over TCP.
        let at = elsewhere.iter().position(|byte| *byte == b'h').expect("the host's name");
        elsewhere[at] = b'/';
        vec![
            vec![],
            SECRET_MARK.to_vec(),
            way("[::1]:65535", roots, Some(Backoff::default())),
            plain[..plain.len() - 1].to_vec(),
            plain[1..].to_vec(),
            plain,
            elsewhere,
        ]
    }
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use super::{super::super::link::tls::Identity, *};

    #[test]
    fn a_way_arrives_as_it_was() {
        let identity = Identity::generate().unwrap();
        let (pem, _) = identity.to_pem();
        let trusts = [
            Trust::fingerprint(identity.fingerprint()),
            Trust::certificates(pem.as_bytes(), "executor-manager").unwrap(),
            Trust::certificates(pem.as_bytes(), "127.0.0.1").unwrap(),
        ];
        let backoff = Backoff::default().first(Duration::from_millis(7)).total(Duration::MAX);
        for trust in trusts {
            for (address, backoff) in [("host.example:7", None), ("[::1]:65535", Some(backoff))] {
                let options = RouteOptions {
                    address: address.parse().unwrap(),
                    key: AuthKey::new([0, 255, 7]),
                    tls: Some(TlsClient::new(&trust).unwrap()),
                    trust: Some(trust.clone()),
                    timeout: Duration::from_nanos(3),
                    backoff,
                };
                let bytes = encode(&options).unwrap();
                let arrived = decode(&bytes).unwrap();
                assert_eq!(arrived.address, options.address);
                assert_eq!(arrived.key, options.key);
                assert_eq!((arrived.timeout, arrived.backoff), (options.timeout, backoff));
                assert_eq!(encode(&arrived).unwrap(), bytes, "its trust is the same");
                for len in 0..bytes.len() {
                    assert!(decode(&bytes[..len]).is_err());
                }
            }
        }
    }

    #[test]
    fn a_way_that_is_never_used_goes_with_its_handles() {
        let trust = Trust::fingerprint(Identity::generate().unwrap().fingerprint());
        let way = |key: u64| {
            let options = RouteOptions {
                address: "127.0.0.1:1".parse().unwrap(),
                key: AuthKey::new(key.to_le_bytes()),
                tls: None,
                trust: Some(trust.clone()),
                timeout: Duration::from_secs(1),
                backoff: None,
            };
            encode(&options).unwrap()
        };
        let kept = by_bytes(&way(0)).unwrap();
        for key in 1..1200 {
            let unused = Arc::downgrade(&by_bytes(&way(key)).unwrap());
            assert_eq!(unused.strong_count(), 0, "{key}");
            // Other tests of this process have some, too.
            assert!(lock(TABLE.get()).len() < 100, "{key}");
        }
        assert!(Arc::ptr_eq(&by_bytes(&way(0)).unwrap(), &kept), "as long as somebody has it");
        // As after its first attempt that succeeds.
        connected(&kept);
        let weak = Arc::downgrade(&kept);
        drop(kept);
        assert!(Arc::ptr_eq(&by_bytes(&way(0)).unwrap(), &weak.upgrade().unwrap()));
        drop(lock(TABLE.get()).remove(&name_of(&way(0))));
        assert_eq!(weak.strong_count(), 0);
    }

    #[test]
    fn only_a_server_over_tcp_has_a_way_that_travels() {
        let trust = Trust::fingerprint(Identity::generate().unwrap().fingerprint());
        let options = RouteOptions {
            address: "/a/socket".parse().unwrap(),
            key: AuthKey::new("key"),
            tls: None,
            trust: Some(trust),
            timeout: Duration::ZERO,
            backoff: None,
        };
        assert!(encode(&options).is_none());
    }
}
