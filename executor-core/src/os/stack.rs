//! The bounds of the calling thread's stack, and how much of it is left.

use std::{cell::Cell, mem::MaybeUninit, ops::Range, ptr};

use super::local;

/// Returns the addresses of the calling thread's stack, as far as it may grow. Returns `None` if
/// the system does not tell, for example on the main thread of a program without `/proc`.
pub(crate) fn bounds() -> Option<Range<usize>> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: `pthread_getattr_np` initialises the attributes, and they are destroyed below.
    if unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    let mut low = ptr::null_mut();
    let mut size = 0;
    // SAFETY: the attributes are initialised above, both out-pointers are valid, and the attributes
    // are destroyed exactly once.
    let found = unsafe {
        let found = libc::pthread_attr_getstack(attributes.as_ptr(), &mut low, &mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        found
    };
    (found == 0).then(|| low as usize..(low as usize).saturating_add(size))
}

thread_local! {
    /// The stack's bounds, requested once. A fork keeps them, because its only thread goes on with
    /// the same stack. `(0, 0)` means not requested yet; `(1, 1)` means that the system does not
    /// tell.
    static BOUNDS: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Returns how many bytes are left of the calling thread's stack. Returns `None` if this is not
/// known: the system does not tell the bounds, or the caller runs on a stack of its own, as
/// coroutines do.
#[inline]
pub(crate) fn left() -> Option<usize> {
    let here = 0_u8;
    let address = ptr::from_ref(&here) as usize;
    let (mut low, mut high) = local::get(&BOUNDS);
    if high == 0 {
        (low, high) = bounds().map_or((1, 1), |bounds| (bounds.start, bounds.end));
        local::set(&BOUNDS, (low, high));
    }
    (low..high).contains(&address).then(|| address - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn deeper(levels: usize) -> usize {
        let room = std::hint::black_box([levels as u8; 1024]);
        match levels {
            0 => left().expect("the system tells"),
            _ => deeper(levels - 1).min(usize::from(room[0]) + (1 << 30)),
        }
    }

    #[test]
    fn what_is_left_of_a_stack_is_less_than_it_is_large_and_shrinks_by_use() {
        let thread = std::thread::Builder::new().stack_size(1 << 20);
        let (first, later) =
            thread.spawn(|| (left().unwrap(), deeper(100))).unwrap().join().unwrap();
        // The system may give a thread the larger stack of one that has ended.
        assert!(first > 900 << 10, "{first}");
        assert!(first - later >= 100 << 10, "{first} {later}");
    }
}
