//! Settings from environment variables. No other file reads the environment. So a value that is not
//! understood always causes an error or a warning, and is never treated as if it were unset.

use std::{
    ffi::{OsStr, OsString},
    sync::atomic::{AtomicBool, Ordering},
};

/// An environment variable of this library.
#[derive(Debug)]
pub(crate) struct Setting<T> {
    name: &'static str,
    /// Describes the values that `parse` accepts.
    understood: &'static str,
    parse: fn(&str) -> Option<T>,
    warned: AtomicBool,
}

impl<T> Setting<T> {
    pub(crate) const fn new(
        name: &'static str,
        understood: &'static str,
        parse: fn(&str) -> Option<T>,
    ) -> Self {
        Setting { name, understood, parse, warned: AtomicBool::new(false) }
    }

    /// Returns the variable's value, or `None` if it is unset or empty. The error names the
    /// variable, its value, and the accepted values.
    pub(crate) fn read(&self) -> Result<Option<T>, String> {
        self.parse(std::env::var_os(self.name))
    }

    /// Returns the value as [`read`](Self::read) does, for callers that cannot return an error. A
    /// value that is not understood gives `None`. The first such call in a process logs a warning.
    pub(crate) fn read_or_warn(&self) -> Option<T> {
        self.read().unwrap_or_else(|problem| {
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!("{problem}; it is ignored");
            }
            None
        })
    }

    fn parse(&self, value: Option<OsString>) -> Result<Option<T>, String> {
        let Some(value) = value else { return Ok(None) };
        if value.is_empty() {
            return Ok(None);
        }
        match value.to_str().and_then(|text| (self.parse)(text.trim())) {
            Some(value) => Ok(Some(value)),
            None => Err(format!(
                "the environment variable {} is {value:?}; {} is understood",
                self.name, self.understood
            )),
        }
    }
}

/// Returns the directory for temporary files that the system's variable names.
pub(crate) fn temporary_directory() -> Option<OsString> {
    std::env::var_os("TMPDIR")
}

/// Logs, once per process, that [`temporary_directory`] is not used.
pub(crate) fn temporary_directory_refused(directory: &OsStr, why: &str) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "the environment variable TMPDIR is {directory:?}, {why}; another directory is used"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::tidy;

    #[test]
    fn a_value_that_is_not_understood_is_an_error_that_says_what_is() {
        let setting = Setting::new("EXECUTOR_TOES", "a number", |text| text.parse::<u8>().ok());
        assert_eq!(setting.parse(None), Ok(None));
        assert_eq!(setting.parse(Some(OsString::new())), Ok(None));
        assert_eq!(setting.parse(Some(" 3\n".into())), Ok(Some(3)));
        for (value, shown) in [
            ("many".into(), "\"many\""),
            ("256".into(), "\"256\""),
            (OsString::from_vec(vec![b'3', 0xff]), r#""3\xFF""#),
        ] {
            assert_eq!(
                setting.parse(Some(value)),
                Err(format!(
                    "the environment variable EXECUTOR_TOES is {shown}; a number is understood"
                ))
            );
        }
    }

    /// Elsewhere, it would be tempting to write `.ok()`, which treats a value that is not
    /// understood as unset.
    #[test]
    fn the_environment_is_read_in_this_file_only() {
        let reads = |code: &str| {
            ["env::var(", "env::var_os(", "getenv("].iter().any(|call| code.contains(call))
        };
        let readers: Vec<_> = tidy::library()
            .into_iter()
            .filter(|(_, code)| reads(code))
            .map(|(file, _)| file)
            .collect();
        assert_eq!(readers, ["os/setting.rs"]);
    }
}
