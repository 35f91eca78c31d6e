//! Random numbers from the system.

use std::{
    fs::File,
    io::{self, Read},
};

use rustix::rand::{GetRandomFlags, getrandom};

use super::socket::retry;

/// Returns `N` random bytes. Early after the machine's start, it waits until the system has enough
/// randomness.
///
/// # Errors
/// If neither `getrandom`, which a sandbox may refuse, nor `/dev/urandom` provides them.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut out = [0; N];
    let mut filled = 0;
    while filled < N {
        match retry(|| getrandom(&mut out[filled..], GetRandomFlags::empty())) {
            Ok(more) => filled += more,
            Err(refused) => {
                let file = |error| {
                    io::Error::other(format!("getrandom: {refused}; /dev/urandom: {error}"))
                };
                File::open("/dev/urandom")
                    .and_then(|mut file| file.read_exact(&mut out))
                    .map_err(file)?;
                break;
            }
        }
    }
    Ok(out)
}
