//! Whether other users can put another file in the place of a socket.
//!
//! ```text
//!  /run/me/socket     /      ── may others rename `run`?
//!                     /run   ── may others rename `me`?
//!                     /run/me ─ may others replace `socket`?
//!  a symbolic link on the way: may others replace it, and then the same for where it leads
//! ```

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, Stat, lstat, readlink, stat},
    process::geteuid,
};

/// Maximum number of symbolic links on the way, as in the kernel.
const LINKS_MAX: usize = 40;

/// Checks that no other user can replace a file in this folder, or the folder itself, or one above
/// it.
///
/// Whoever owns the root folder is trusted as root is. In a user namespace without the real root,
/// everything that belongs to root seems to be another user's.
pub(super) fn check_folder(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let mut left: VecDeque<OsString> = parts_of(&path).collect();
    let mut at = PathBuf::from("/");
    let top = stat(&at)?;
    let trusted = [0, geteuid().as_raw(), top.st_uid];
    check(&at, &top, &trusted)?;
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        if part == ".." {
            // What it leads to has been checked.
            at.pop();
            continue;
        }
        let next = at.join(&part);
        let found = lstat(&next)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
            check(&next, &found, &trusted)?;
            at = next;
            continue;
        }
        if !trusted.contains(&found.st_uid) {
            return Err(refused(&next));
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = readlink(&next, Vec::new())?;
        let target = Path::new(OsStr::from_bytes(target.to_bytes()));
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for part in parts_of(target).collect::<Vec<_>>().into_iter().rev() {
            left.push_front(part);
        }
    }
    Ok(())
}

fn parts_of(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// Checks that nobody but these users can replace what is in a folder.
fn check(path: &Path, folder: &Stat, trusted: &[u32]) -> io::Result<()> {
    let mode = Mode::from_raw_mode(folder.st_mode);
    // In a sticky folder, only the owner of a file can replace it. That is checked next.
    let others_write = mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX);
    match trusted.contains(&folder.st_uid) && !others_write {
        true => Ok(()),
        false => Err(refused(path)),
    }
}

fn refused(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "other users may change `{}`; use a folder that belongs to this user and that only \
             this user may write to, in folders of which the same is true",
            path.display()
        ),
    )
}

#[cfg(all(test, not(any(executor_loom, executor_shuttle))))]
mod tests {
    use std::{
        fs::{Permissions, create_dir, set_permissions},
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    fn allow(path: &Path, mode: u32) {
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Returns whether a folder is refused, and the reason names `culprit`.
    fn is_refused(path: &Path, culprit: &Path) -> bool {
        let Err(error) = check_folder(path) else { return false };
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains(&format!("`{}`", culprit.display())), "{error}");
        true
    }

    #[test]
    fn a_folder_above_that_others_may_write_is_refused_unless_it_is_sticky() {
        let folder = tempfile::tempdir().unwrap();
        let (above, own) = (folder.path().join("above"), folder.path().join("above/own"));
        create_dir(&above).unwrap();
        create_dir(&own).unwrap();
        for mode in [0o700, 0o755, 0o1777] {
            allow(&above, mode);
            check_folder(&own).unwrap();
        }
        for mode in [0o777, 0o775, 0o770] {
            allow(&above, mode);
            assert!(is_refused(&own, &above), "{mode:o}");
            assert!(is_refused(&own.join("../own/."), &above), "{mode:o}");
        }
        allow(&above, 0o755);
        allow(&own, 0o777);
        assert!(is_refused(&own, &own));
    }

    #[test]
    fn links_are_followed_and_a_circle_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (open, own) = (folder.path().join("open"), folder.path().join("open/own"));
        create_dir(&open).unwrap();
        create_dir(&own).unwrap();
        allow(&open, 0o777);
        let relative = Path::new("..").join(folder.path().file_name().unwrap()).join("open/own");
        for (name, target) in [("absolute", own.as_path()), ("relative", &relative)] {
            let link = folder.path().join(name);
            symlink(target, &link).unwrap();
            assert!(is_refused(&link, &open), "{name}");
        }
        symlink("missing/own", folder.path().join("nowhere")).unwrap();
        let error = check_folder(&folder.path().join("nowhere")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let link = folder.path().join("safe");
        symlink("open/../plain", &link).unwrap();
        create_dir(folder.path().join("plain")).unwrap();
        // The way leads through a folder that others may change.
        assert!(is_refused(&link, &open));
        allow(&open, 0o755);
        check_folder(&link).unwrap();
        symlink("circle", folder.path().join("circle")).unwrap();
        let error = check_folder(&folder.path().join("circle")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_link_of_another_user_is_refused() {
        if !geteuid().is_root() {
            // Only root can give a file to another user.
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        create_dir(&shared).unwrap();
        allow(&shared, 0o1777);
        let link = shared.join("link");
        symlink(folder.path(), &link).unwrap();
        check_folder(&link).unwrap();
        std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
        assert!(is_refused(&link, &link));
    }
}
