//! Adds to an error of the system what the program asked the system for.

use std::io;

/// Adds the attempted operation to an error. "Operation not permitted" alone does not help a user.
pub(crate) trait Asked<T> {
    /// In an error, puts `what` was asked for before the system's message. The kind of the error
    /// stays the same.
    ///
    /// # Errors
    /// The same error, with a longer message.
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
