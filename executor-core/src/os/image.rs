//! Queries about what the loader has mapped: the program's table of constructors, and the program's
//! file if the kernel has started the loader in its place.

use std::{
    ffi::{OsStr, OsString, c_char, c_int, c_void},
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
    ptr,
};

/// A function that runs before `main`, as the loader calls it.
pub type Constructor = unsafe extern "C" fn(c_int, *const *const c_char, *const *const c_char);

/// Returns the constructors that follow `own` in its table (`.init_array`), in their order. Returns
/// `None` if the end of the table cannot be found.
pub(crate) fn constructors_behind(own: *const Constructor) -> Option<*const [Constructor]> {
    let end = end_of_table(own.addr())?;
    let next = own.addr().checked_add(size_of::<Constructor>())?;
    let count = end.checked_sub(next)? / size_of::<Constructor>();
    Some(ptr::slice_from_raw_parts(own.wrapping_add(1), count))
}

/// Finds, among the objects that the loader has loaded, the one whose table contains `own`, and
/// returns the end of that table.
fn end_of_table(own: usize) -> Option<usize> {
    struct Search {
        own: usize,
        end: Option<usize>,
    }
    extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, search: *mut c_void) -> c_int {
        // SAFETY: the loader passes a description that is valid during this call, and the pointer
        // that it was given.
        let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
        // SAFETY: the description gives this address and this count.
        let headers =
            unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let base = info.dlpi_addr as usize;
        let Some(dynamic) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) else {
            return 0;
        };
        // Pairs of a tag and a value. The list ends with a tag of zero.
        let mut entry =
            ptr::with_exposed_provenance::<[usize; 2]>(base.wrapping_add(dynamic.p_vaddr as usize));
        let (mut begin, mut len) = (None, 0);
        loop {
            // SAFETY: the loader has read this list up to its end when it loaded the object.
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
    // SAFETY: `visit` gets the pointer to `search`, which lives until the call returns.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.end.or_else(end_without_a_loader)
}

/// Returns the end of the table in a statically linked program at a fixed address. Such a program
/// has no list of objects; its startup code takes the bounds from the linker.
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

/// How a program was started through the dynamic loader: `/lib64/ld-linux-x86-64.so.2 [options]
/// ./program`. The `/proc/self/exe` of such a program is the loader.
#[derive(Debug, PartialEq)]
pub(crate) struct ByLoader {
    /// The loader's arguments before the program.
    pub(crate) options: Vec<OsString>,
    /// The program's file as the kernel names it: an absolute path, followed by ` (deleted)` if the
    /// file is gone.
    pub(crate) program: PathBuf,
}

/// Returns how this program was started, if through the loader. Also returns `None` if `/proc`
/// cannot be read.
pub(crate) fn by_loader() -> Option<ByLoader> {
    // Here the kernel reports the address of the loader that it has mapped for the program. It is 0
    // if the started program is a loader itself, or is statically linked.
    //
    // SAFETY: returns a number.
    if cfg!(target_feature = "crt-static") || unsafe { libc::getauxval(libc::AT_BASE) } != 0 {
        return None;
    }
    // The kernel reports the headers of the program that it has started. A loader that is started
    // directly replaces them with the headers of the actual program.
    //
    // SAFETY: returns a number.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) };
    let program = file_mapped_at(&fs::read("/proc/self/maps").ok()?, headers)?;
    let started = fs::read_link("/proc/self/exe").ok()?;
    // The two are equal if the kernel has started the program after all, in a way that is not known
    // here.
    if program == started {
        return None;
    }
    let options = options_of_loader(
        &fs::read("/proc/self/cmdline").unwrap_or_default(),
        std::env::args_os().len(),
        |path| is_same_file(path, &program),
    );
    Some(ByLoader { options, program })
}

/// Returns the file that is mapped at this address.
fn file_mapped_at(maps: &[u8], address: u64) -> Option<PathBuf> {
    maps.split(|byte| *byte == b'\n').find_map(|line| {
        // `55d0c0a00000-55d0c0a01000 r--p 00000000 fd:00 1234       /path`
        let mut words = line.splitn(6, |byte| *byte == b' ');
        let (begin, end) = str::from_utf8(words.next()?).ok()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        if !(number(begin)?..number(end)?).contains(&address) {
            return None;
        }
        let path = words.nth(4)?.trim_ascii_start();
        (path.first() == Some(&b'/')).then(|| PathBuf::from(unescaped(path)))
    })
}

/// Decodes a path of `/proc/self/maps`, where a line break is written as `\012`.
fn unescaped(path: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, behind @ ..] = rest {
        (plain, rest) = match rest.strip_prefix(br"\012") {
            Some(behind) => ([&plain[..], b"\n"].concat(), behind),
            None => {
                plain.push(*first);
                (plain, behind)
            }
        };
    }
    OsString::from_vec(plain)
}

/// Returns the loader's options from `all`, the arguments that the kernel reports.
///
/// The loader removes its own name and options from the arguments that the program gets, which are
/// `own` in number. The result is empty if the next argument is not the program. Then the program
/// has overwritten its arguments, for `ps` to show.
fn options_of_loader(all: &[u8], own: usize, is_program: impl Fn(&Path) -> bool) -> Vec<OsString> {
    let all: Vec<&[u8]> = all.strip_suffix(&[0]).unwrap_or(all).split(|byte| *byte == 0).collect();
    let taken = all.len().saturating_sub(own);
    match all.get(taken) {
        Some(program) if taken > 1 && is_program(Path::new(OsStr::from_bytes(program))) => {
            all[1..taken].iter().map(|option| OsStr::from_bytes(option).to_owned()).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether both paths name the same file. If a path cannot be looked up, for example because it is
/// relative and the working directory has changed, it compares the file names.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => one.file_name() == other.file_name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_at_an_address_is_found_whatever_its_name_is() {
        let maps = b"1000-2000 r--p 00000000 fd:00 1234       /usr/lib/ld.so\n\
            2000-3000 r-xp 00000000 fd:00 1235       /home/a b\\012c (deleted)\n\
            3000-4000 rw-p 00000000 00:00 0 \n\
            4000-5000 rw-p 00000000 00:00 0          [heap]\n";
        let at = |address| file_mapped_at(maps, address);
        assert_eq!(at(0x1fff), Some("/usr/lib/ld.so".into()));
        assert_eq!(at(0x2000), Some("/home/a b\nc (deleted)".into()));
        for none in [0, 0x3000, 0x4000, 0x5000] {
            assert_eq!(at(none), None);
        }
    }

    #[test]
    fn the_loaders_options_are_those_before_the_program() {
        let of = |all: &str, own| {
            options_of_loader(all.as_bytes(), own, |path| path == Path::new("./p"))
        };
        assert_eq!(of("ld\0./p\0", 1), [""; 0]);
        assert_eq!(of("ld\0--library-path\0/x\0./p\0one\0\0", 3), ["--library-path", "/x"]);
        assert_eq!(of("ld\0--argv0\0q\0./p\0", 1), ["--argv0", "q"]);
        for written_over in ["p: idle", "p: one\0two\0three\0four\0", ""] {
            assert_eq!(of(written_over, 1), [""; 0], "{written_over:?}");
        }
    }
}
