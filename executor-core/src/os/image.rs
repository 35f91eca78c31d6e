//! What the system's loader has put into this process: here, the table of constructors that a program brings.

use std::{
    ffi::{c_char, c_int, c_void},
    ptr,
};

/// What runs before `main`, as the loader calls it.
pub type Constructor = unsafe extern "C" fn(c_int, *const *const c_char, *const *const c_char);

/// The constructors behind `own` in the table (`.init_array`) in which it lies, in their order; `None` if there is no telling where
/// the table ends.
pub(crate) fn constructors_behind(own: *const Constructor) -> Option<*const [Constructor]> {
    let end = end_of_table(own.addr())?;
    let next = own.addr().checked_add(size_of::<Constructor>())?;
    let count = end.checked_sub(next)? / size_of::<Constructor>();
    Some(ptr::slice_from_raw_parts(own.wrapping_add(1), count))
}

/// Asks the loader in which of the things that it has loaded the table lies.
fn end_of_table(own: usize) -> Option<usize> {
    struct Search {
        own: usize,
        end: Option<usize>,
    }
    extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, search: *mut c_void) -> c_int {
        // SAFETY: the loader passes a description that is valid for this call, and the pointer that it was given.
        let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
        // SAFETY: so says the description.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let base = info.dlpi_addr as usize;
        let Some(dynamic) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) else { return 0 };
        // Its tag and value; the list ends with a tag of zero.
        let mut entry =
            ptr::with_exposed_provenance::<[usize; 2]>(base.wrapping_add(dynamic.p_vaddr as usize));
        let (mut begin, mut len) = (None, 0);
        loop {
            // SAFETY: the loader has read this list, as far as its end, to load the object.
            let [tag, value] = unsafe { *entry };
            match tag {
                0 => break,
                DT_INIT_ARRAY => begin = Some(base.wrapping_add(value)),
                DT_INIT_ARRAYSZ => len = value,
                _ => {}
            }
            entry = entry.wrapping_add(1);
        }
        if let Some(begin) = begin
            && (begin..begin.wrapping_add(len)).contains(&search.own)
        {
            search.end = Some(begin.wrapping_add(len));
            return 1;
        }
        0
    }
    const DT_INIT_ARRAY: usize = 25;
    const DT_INIT_ARRAYSZ: usize = 27;
    let mut search = Search { own, end: None };
    // SAFETY: the function above, and what it is to be given, which lives until the call returns.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.end.or_else(end_without_a_loader)
}

/// A program that is linked as a whole and to a fixed place has no such list: its start code takes the bounds from the linker.
#[cfg(target_feature = "crt-static")]
fn end_without_a_loader() -> Option<usize> {
    unsafe extern "C" {
        static __init_array_end: u8;
    }
    Some((&raw const __init_array_end).addr())
}

#[cfg(not(target_feature = "crt-static"))]
fn end_without_a_loader() -> Option<usize> {
    None
}
