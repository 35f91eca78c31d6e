//! What users may set by the environment: read here and nowhere else, so that a value that is not understood is an error or a
//! warning everywhere, and never taken for none.

use std::{
    ffi::{OsStr, OsString},
    sync::atomic::{AtomicBool, Ordering},
};

/// One environment variable of this library.
#[derive(Debug)]
pub(crate) struct Setting<T> {
    name: &'static str,
    /// The values that `parse` accepts, in words.
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

    /// Its value; `None` if it is unset, or empty. The error names the variable, its value and the values that are understood.
    pub(crate) fn read(&self) -> Result<Option<T>, String> {
        self.parse(std::env::var_os(self.name))
    }

    /// As [`read`](Self::read), for callers that have no error to give: `None` for a value that is not understood. The first such
    /// call in a process logs a warning.
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

/// Where the system's variable says that temporary files belong.
pub(crate) fn temporary_directory() -> Option<OsString> {
    std::env::var_os("TMPDIR")
}

/// Logs, once in a process, that [`temporary_directory`] is not used.
pub(crate) fn temporary_directory_refused(directory: &OsStr, why: &str) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!("the environment variable TMPDIR is {directory:?}, {why}; another directory is used");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::ffi::OsStringExt,
        path::{Path, PathBuf},
    };

    use super::*;

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
                Err(format!("the environment variable EXECUTOR_TOES is {shown}; a number is understood"))
            );
        }
    }

    fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the sources are there when they are tested") {
            let path = entry.expect("as above").path();
            match path.is_dir() {
                true => sources(&path, into),
                false if path.extension().is_some_and(|extension| extension == "rs") => into.push(path),
                false => {}
            }
        }
    }

    /// Elsewhere `.ok()` is near, and takes a value that is not understood for none.
    #[test]
    fn the_environment_is_read_in_this_file_only() {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let readers: Vec<_> = files
            .iter()
            .filter(|file| {
                let text = fs::read_to_string(file).expect("a source file");
                // Tests may ask for what they like: in a module at the end of a file, or in a file of their own.
                let text = text.split("#[cfg(test)]").next().unwrap_or_default();
                let is_test = ["tests.rs", "models.rs", "sim.rs"].iter().any(|name| file.ends_with(name));
                !is_test && ["env::var(", "env::var_os(", "getenv("].iter().any(|call| text.contains(call))
            })
            .collect();
        let [only] = readers[..] else { panic!("{readers:?}") };
        assert!(only.ends_with("os/setting.rs"), "{only:?}");
    }
}
