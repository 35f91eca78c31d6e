//! Names what was asked for in errors of the system.

use std::io;

/// "Operation not permitted" alone helps nobody: with the words of what was tried it does.
pub(crate) trait Asked<T> {
    /// In an error, says what was asked for, before the system's answer. The kind of the error stays.
    ///
    /// # Errors
    /// The same, in more words.
    fn asked(self, what: &str) -> io::Result<T>;
}

impl<T, E: Into<io::Error>> Asked<T> for Result<T, E> {
    fn asked(self, what: &str) -> io::Result<T> {
        self.map_err(|error| {
            let error = error.into();
            io::Error::new(error.kind(), format!("{what}: {error}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_system_says_what_was_asked() {
        let refused = Err::<(), _>(rustix::io::Errno::PERM).asked("a wish").unwrap_err();
        assert_eq!(refused.to_string(), "a wish: Operation not permitted (os error 1)");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
