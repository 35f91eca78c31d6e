//! Waits until descriptors are ready.

use std::{io, sync::OnceLock, thread, time::Duration};

use rustix::{
    event::{PollFd, Timespec, poll},
    io::Errno,
};

use super::socket::retry;

/// Sleeps until one of these descriptors is ready, for at most `timeout`. It may return early, so
/// it is for a loop that checks for itself afterwards.
///
/// If the system refuses to wait, this is a short sleep. The loop then notices events a little
/// later, and does not use the processor meanwhile.
pub(crate) fn doze(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) {
    const A_MOMENT: Duration = Duration::from_millis(10);
    if let Err(error) = retry(|| poll(fds, timeout)) {
        tracing::error!(%error, "poll failed");
        let timeout = timeout.map_or(A_MOMENT, |timeout| {
            Duration::new(
                timeout.tv_sec.max(0).unsigned_abs(),
                timeout.tv_nsec.unsigned_abs() as u32,
            )
        });
        thread::sleep(timeout.min(A_MOMENT));
    }
}

/// Whether the system lets this process wait for descriptors. It is called before anything is
/// started that will be waited for through descriptors. So in a sandbox that refuses to wait, the
/// start fails, instead of a wait that never ends.
pub(crate) fn check() -> io::Result<()> {
    static REFUSED: OnceLock<Option<Errno>> = OnceLock::new();
    let refused = REFUSED.get_or_init(|| retry(|| poll(&mut [], Some(&Timespec::default()))).err());
    refused.map_or(Ok(()), |error| Err(error.into()))
}
