//! The names under which `ps` and `top` show the children of a program: whose they are, and which.
//!
//! ```text
//!                      `ps -ef`: the whole line           `ps`, `top`: 15 bytes
//!  worker              /usr/bin/render: worker 3 …        render:3
//!  worker, named pool  /usr/bin/render: worker 3 of tiles render:tiles:3
//!  process             /usr/bin/render: Process-1 …       rende:Process-1
//!  fork server         /usr/bin/render: fork server …     rend:forkserver
//! ```
//!
//! The line is the child's `argv[0]`, which its start sets. A copy that a fork server has made
//! writes its own line into the memory of that argument, where the kernel reads it. There is room
//! for as many bytes as the server's line has, which says at least as much. A copy of a whole
//! program ([`StartMethod::Fork`](crate::StartMethod::Fork)) keeps its line, like every fork, and
//! has only the short name of its own.

use std::{
    ffi::{CString, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use crate::{
    os::process,
    wire::handshake::{Identity, Role},
};

/// Maximum length of the short name, in bytes. It is the kernel's.
const SHORT_BYTES_MAX: usize = 15;

/// Number of bytes of the short name that are left to the program's name, however long the other
/// part is. With fewer, it cannot be recognized. With more, little is left of the rest.
const PROGRAM_BYTES: usize = 4;

/// Maximum length of a process's name in its line, in bytes. The user may have chosen any name.
const NAME_BYTES_MAX: usize = 64;

/// Returns the first argument for a child: the program's, and what the child is.
pub(crate) fn line(identity: &Identity, role: &Role) -> OsString {
    let what = match role {
        Role::Worker(setup) => match &setup.place.pool {
            Some(pool) => format!("worker {} of {pool}", setup.place.index),
            None => format!("worker {}", setup.place.index),
        },
        Role::Body(_) => identity.name.clone(),
        Role::ForkServer(setup) => match &setup.pool {
            Some(pool) => format!("fork server of {pool}"),
            None => "fork server".to_owned(),
        },
    };
    let program = program_of(identity);
    let what = printable(&what);
    let what = &what[..what.floor_char_boundary(NAME_BYTES_MAX)];
    OsString::from_vec([program.as_slice(), b": ", what.as_bytes()].concat())
}

fn program_of(identity: &Identity) -> Vec<u8> {
    identity.args.first().map_or_else(|| b"executor".to_vec(), |arg| arg.to_vec())
}

/// Gives this process, a copy of a fork server, the line of such a child.
pub(crate) fn replace_line(identity: &Identity, role: &Role) {
    process::replace_first_argument(line(identity, role).as_bytes());
}

/// Gives this process the short name of such a child.
pub(crate) fn show(identity: &Identity, role: &Role) {
    let what = match role {
        Role::Worker(setup) => (setup.place.pool.as_deref(), setup.place.index.to_string()),
        Role::Body(_) => (None, identity.name.clone()),
        Role::ForkServer(_) => (None, "forkserver".to_owned()),
    };
    let program = identity.args.first().map(|arg| OsString::from_vec(arg.to_vec()));
    let program = program.unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
    if let Ok(name) = CString::new(short(&program, what.0, &what.1)) {
        process::set_short_name(&name);
    }
}

/// Joins the parts of a short name. Each keeps its beginning, and the last one is kept whole if
/// possible: it tells the children of a program apart.
fn short(program: &str, pool: Option<&str>, last: &str) -> String {
    let last = printable(last);
    let last = cut(&last, SHORT_BYTES_MAX - PROGRAM_BYTES.min(program.len()) - 1);
    let left = SHORT_BYTES_MAX - last.len() - 1;
    let pool = pool.map(printable).unwrap_or_default();
    let pool = cut(&pool, left.saturating_sub(PROGRAM_BYTES.min(program.len()) + 1));
    let between = if pool.is_empty() { "" } else { ":" };
    let program = printable(program);
    let program = cut(&program, left - pool.len() - between.len());
    format!("{program}{between}{pool}:{last}")
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Replaces characters that would change a terminal, or end the text.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_whole_and_each_other_part_keeps_its_beginning() {
        for (program, pool, last, name) in [
            ("render", None, "3", "render:3"),
            ("render", Some("tiles"), "3", "render:tiles:3"),
            ("tutorial_programs", Some("thumbnails"), "127", "tuto:thumbn:127"),
            ("tutorial_programs", None, "Process-12", "tuto:Process-12"),
            ("tutorial_programs", None, "a process of many words", "tuto:a process "),
            ("x", Some("p"), "0", "x:p:0"),
            ("", None, "7", ":7"),
            ("größe", Some("äöü"), "1\n", "grö:äöü:1?"),
        ] {
            let short = short(program, pool, last);
            assert!(short.len() <= SHORT_BYTES_MAX, "{short}");
            assert!(short.starts_with(name), "{short} is not {name}");
            assert!(!short.contains('\n'));
        }
    }
}
