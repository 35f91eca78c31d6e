//! Random numbers of the system.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

use super::socket::retry;

/// So many random bytes. Waits, early after the machine's start, until there are some.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut out = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += retry(|| getrandom(&mut out[filled..], GetRandomFlags::empty()))?;
    }
    Ok(out)
}
