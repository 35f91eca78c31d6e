//! Waits until descriptors are ready.

use std::{io, sync::OnceLock, thread, time::Duration};

use rustix::{
    event::{PollFd, Timespec, poll},
    io::Errno,
};

use super::socket::retry;

/// Sleeps until one of these is ready, at most `limit`. For a loop that looks for itself afterwards: it may return early.
///
/// Where the system refuses to wait it is a short sleep, so that the loop sees what it sees a little later, and takes no
/// processor meanwhile.
pub(crate) fn doze(fds: &mut [PollFd<'_>], limit: Option<&Timespec>) {
    const A_MOMENT: Duration = Duration::from_millis(10);
    if let Err(error) = retry(|| poll(fds, limit)) {
        tracing::error!(%error, "poll failed");
        let limit = limit.map_or(A_MOMENT, |limit| {
            Duration::new(limit.tv_sec.max(0).unsigned_abs(), limit.tv_nsec.unsigned_abs() as u32)
        });
        thread::sleep(limit.min(A_MOMENT));
    }
}

/// Whether the system lets this process wait for descriptors. Asked where something is started that others wait for by
/// them: a sandbox that refuses it is told then, and nobody waits for ever.
pub(crate) fn check() -> io::Result<()> {
    static REFUSED: OnceLock<Option<Errno>> = OnceLock::new();
    let refused = REFUSED.get_or_init(|| retry(|| poll(&mut [], Some(&Timespec::default()))).err());
    refused.map_or(Ok(()), |error| Err(error.into()))
}
