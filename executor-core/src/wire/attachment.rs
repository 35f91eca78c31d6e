//! Attachments: descriptors that travel with arguments and results.
//!
//! ```text
//!  Serialize of a handle:    attach(descriptor) ─► its index goes among the bytes
//!  the frame:                bytes, and the flag ATTACHED
//!  the control socket:       one message for each such frame, in the frames' order:
//!                            task id, descriptors
//!  Deserialize of a handle:  index ─► detach(index) ─► the descriptor
//! ```
//!
//! serde has no place for anything besides the value. So the descriptors that an encoding collects,
//! or that a decoding may use, are kept in thread-local variables meanwhile. This is the only
//! hidden mode of this crate, and all of it is in this file. An encoding within an encoding (a
//! `Serialize` that submits a task) has a list of its own, and restores the thread's state at its
//! end, also when it panics.
//!
//! The sender keeps an attachment until the task is resolved, because a task that has not begun may
//! be sent to another worker.

use std::{
    cell::{Cell, RefCell},
    mem::ManuallyDrop,
    os::fd::OwnedFd,
    sync::Arc,
};

use crate::os::local;

/// A descriptor that travels with a value.
pub(crate) type Attachment = Arc<OwnedFd>;

/// The first bytes of a file that holds a secret, such as the key of a manager. The file's
/// descriptor travels to processes of this program only.
pub(crate) const SECRET_MARK: [u8; 8] = *b"xsecret\x01";

/// Whether a descriptor is a file that holds a secret.
pub(crate) fn is_secret(attachment: &Attachment) -> bool {
    let mut bytes = [0; SECRET_MARK.len()];
    // Sockets and pipes cannot be read at a position, so nothing is taken from them.
    matches!(rustix::io::pread(attachment, &mut bytes, 0), Ok(len) if len == bytes.len())
        && bytes == SECRET_MARK
}

/// Maximum number of descriptors of one task, of one result, and of one message. It is the system's
/// limit for one message.
pub(crate) const ATTACHMENTS_MAX: usize = 253;

thread_local! {
    /// How many encodings this thread is inside of.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// The number of descriptors that were attached in the innermost encoding. It is separate from
    /// the list below because nearly every value has none, and looking at the list takes as long as
    /// encoding a small value.
    static COUNT: Cell<u32> = const { Cell::new(0) };
    /// All descriptors that were attached and not collected yet, each with its depth. Outside of
    /// all encodings, the list is empty and owns no memory. So nothing has to be dropped when the
    /// thread ends, and `ManuallyDrop` leaks nothing. A variable without a destructor can also be
    /// used until the very end of the thread.
    static LEAVING: RefCell<ManuallyDrop<Vec<(u32, Attachment)>>> = const { RefCell::new(ManuallyDrop::new(Vec::new())) };
    /// The descriptors that came with the bytes being decoded. `None` outside of all decodings.
    static ARRIVED: RefCell<ManuallyDrop<Option<Vec<Attachment>>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

fn leaving<R>(change: impl FnOnce(&mut Vec<(u32, Attachment)>) -> R) -> R {
    local::with(&LEAVING, |leaving| change(&mut leaving.borrow_mut()))
}

/// Sets the descriptors that a decoding may use. Returns the previous ones.
fn arrive(attachments: Option<Vec<Attachment>>) -> Option<Vec<Attachment>> {
    local::with(&ARRIVED, |arrived| std::mem::replace(&mut **arrived.borrow_mut(), attachments))
}

/// One encoding. Its drop restores the thread's state.
struct Encoding {
    count_before: u32,
}

impl Encoding {
    #[inline]
    fn begin() -> Self {
        local::set(&DEPTH, local::get(&DEPTH) + 1);
        let count_before = local::get(&COUNT);
        local::set(&COUNT, 0);
        Encoding { count_before }
    }

    #[inline]
    fn attached(&self) -> Vec<Attachment> {
        if local::get(&COUNT) == 0 { Vec::new() } else { self.take() }
    }

    #[cold]
    fn take(&self) -> Vec<Attachment> {
        local::set(&COUNT, 0);
        let depth = local::get(&DEPTH);
        leaving(|leaving| {
            let first = leaving.partition_point(|(other, _)| *other < depth);
            // The list is sorted by depth, so the descriptors of the innermost encoding are its
            // tail.
            let own =
                leaving.split_off(first).into_iter().map(|(_, attachment)| attachment).collect();
            if leaving.is_empty() {
                // Free the memory, too. Nothing else would, because the thread's end does not drop
                // the list.
                *leaving = Vec::new();
            }
            own
        })
    }
}

impl Drop for Encoding {
    #[inline]
    fn drop(&mut self) {
        // Descriptors are left here only after a panic. They must not reach the outer encoding.
        drop(self.attached());
        local::set(&COUNT, self.count_before);
        local::set(&DEPTH, local::get(&DEPTH) - 1);
    }
}

/// Runs code that encodes, and returns the descriptors that it attached.
#[inline]
pub(crate) fn collect<R>(encode: impl FnOnce() -> R) -> (R, Vec<Attachment>) {
    let encoding = Encoding::begin();
    let result = encode();
    (result, encoding.attached())
}

/// Does the same as [`collect`], and puts the descriptors into `attached`, which is empty before.
/// Without any, it is not touched: moving even an empty vector costs as much as encoding a number.
#[inline]
pub(crate) fn collect_into<R>(attached: &mut Vec<Attachment>, encode: impl FnOnce() -> R) -> R {
    let encoding = Encoding::begin();
    let result = encode();
    if local::get(&COUNT) > 0 {
        *attached = encoding.take();
    }
    result
}

/// Restores the previous descriptors for decodings when it is dropped.
struct Restore(Option<Vec<Attachment>>);

impl Drop for Restore {
    fn drop(&mut self) {
        drop(arrive(self.0.take()));
    }
}

/// Runs code that decodes bytes which came with these descriptors.
#[inline]
pub(crate) fn offer<R>(attachments: &[Attachment], decode: impl FnOnce() -> R) -> R {
    if attachments.is_empty() {
        return decode();
    }
    let _restore = Restore(arrive(Some(attachments.to_vec())));
    decode()
}

/// Returns how many encodings this thread is inside of.
pub(crate) fn depth() -> u32 {
    local::get(&DEPTH)
}

/// Returns whether descriptors can travel with the value that a serializer of type `S` encodes.
pub(crate) fn is_for<S>() -> bool {
    // Another serializer writes its bytes somewhere else, where the index means nothing. Type names
    // are meant for people, but all that depends on them here is whether the error comes early or
    // late.
    local::get(&DEPTH) > 0 && std::any::type_name::<S>().contains("executor_core::wire::codec")
}

/// Attaches a descriptor to the value that a serializer of type `S` encodes. Returns the
/// descriptor's index in the message.
pub(crate) fn attach<S>(descriptor: &Attachment) -> Result<u8, String> {
    let depth = local::get(&DEPTH);
    if !is_for::<S>() {
        let serializer = std::any::type_name::<S>();
        return Err(format!(
            "it travels in the arguments and results of tasks only, and through connections and queues: its memory cannot be written by `{serializer}`"
        ));
    }
    leaving(|leaving| {
        let first = leaving.partition_point(|(other, _)| *other < depth);
        let own = &leaving[first..];
        // A descriptor that is attached twice is sent only once.
        let at =
            own.iter().position(|(_, other)| Arc::ptr_eq(other, descriptor)).unwrap_or(own.len());
        if at >= ATTACHMENTS_MAX {
            return Err(format!(
                "the handles in one message need more than {ATTACHMENTS_MAX} descriptors, which is the \
                 system's limit"
            ));
        }
        if at == own.len() {
            leaving.push((depth, Arc::clone(descriptor)));
            local::set(&COUNT, local::get(&COUNT) + 1);
        }
        u8::try_from(at).map_err(|error| error.to_string())
    })
}

/// Attaches the descriptors again that belong to bytes which were encoded before. Their indexes are
/// in those bytes, so no descriptor may be attached yet.
pub(crate) fn adopt(attachments: &[Attachment]) {
    if !attachments.is_empty() {
        debug_assert_eq!(local::get(&COUNT), 0, "indexes would mean other descriptors");
        let depth = local::get(&DEPTH);
        local::set(&COUNT, attachments.len() as u32);
        leaving(|leaving| leaving.extend(attachments.iter().map(|one| (depth, Arc::clone(one)))));
    }
}

/// Returns the descriptor with this index, of those that came with the bytes being decoded.
pub(crate) fn detach(index: u8) -> Result<Attachment, &'static str> {
    local::with(&ARRIVED, |arrived| match &**arrived.borrow() {
        None => Err(
            "its descriptor did not come with these bytes; if it should have, the process that received it may \
                     have too many open files",
        ),
        Some(list) => {
            list.get(usize::from(index)).cloned().ok_or("no such descriptor came with these bytes")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> Attachment {
        Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap())
    }

    struct Ours;

    fn name_of_ours() -> bool {
        std::any::type_name::<Ours>().contains("executor_core::wire::attachment")
    }

    #[test]
    fn lists_nest_and_come_back_after_a_panic() {
        assert!(name_of_ours());
        type Writer = crate::wire::codec::Postcard;
        let (a, b) = (descriptor(), descriptor());
        let ((), outer) = collect(|| {
            assert_eq!(attach::<Writer>(&a), Ok(0));
            let ((), inner) = collect(|| assert_eq!(attach::<Writer>(&b), Ok(0)));
            assert_eq!(inner.len(), 1);
            let panicked = std::panic::catch_unwind(|| collect(|| panic!("in a Serialize")));
            assert!(panicked.is_err());
            assert_eq!(attach::<Writer>(&b), Ok(1));
            assert_eq!(attach::<Writer>(&a), Ok(0), "the same one travels once");
        });
        assert_eq!(outer.len(), 2);
        assert!(attach::<Writer>(&a).is_err(), "nothing is being encoded");
        offer(&outer, || {
            assert!(Arc::ptr_eq(&detach(1).unwrap(), &b));
            assert!(detach(2).is_err());
        });
        assert!(detach(0).is_err());
    }

    #[test]
    fn other_serialisers_are_refused() {
        let (refused, _) = collect(|| {
            attach::<serde::de::value::StringDeserializer<serde::de::value::Error>>(&descriptor())
        });
        assert!(refused.unwrap_err().contains("arguments and results of tasks only"));
    }

    #[test]
    fn there_is_a_bound() {
        let ((), attached) = collect(|| {
            for _ in 0..ATTACHMENTS_MAX {
                attach::<crate::wire::codec::Postcard>(&descriptor()).unwrap();
            }
            assert!(attach::<crate::wire::codec::Postcard>(&descriptor()).is_err());
        });
        assert_eq!(attached.len(), ATTACHMENTS_MAX);
    }
}
