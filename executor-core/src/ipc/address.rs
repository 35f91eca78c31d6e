//! The address of a listener.

use std::{
    ffi::OsStr,
    fmt,
    net::SocketAddr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The address of a [`Listener`](crate::Listener).
///
/// Its text form selects the kind. `127.0.0.1:5000`, `[::1]:5000` and `localhost:5000` are TCP.
/// Text that begins with `/` or `.` is the path of a Unix socket. Text that begins with `@` is the
/// name of an abstract Unix socket, which has no file. Anything else is an error.
///
/// ```
/// use executor::Address;
///
/// assert_eq!("localhost:80".parse(), Ok(Address::Tcp("localhost".into(), 80)));
/// assert_eq!("/run/me.socket".parse(), Ok(Address::Unix("/run/me.socket".into())));
/// assert_eq!("@me".parse(), Ok(Address::Abstract("me".into())));
/// assert!("me".parse::<Address>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A host, by name or number, and a port. With port 0 the system chooses a free port.
    Tcp(String, u16),
    /// The path of a Unix socket. It must be shorter than 108 bytes.
    Unix(PathBuf),
    /// The name of an abstract Unix socket, which only Linux has. It has no file and disappears
    /// with its listener. With an empty name the library chooses one. Any user of the machine can
    /// connect to it, so use a key.
    Abstract(Vec<u8>),
}

impl Address {
    /// Returns an address that lets the library choose an unused abstract name. It leaves no file
    /// behind.
    pub fn any() -> Self {
        Address::Abstract(Vec::new())
    }
}

/// The error for text that is not a valid address.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address here: {reason}; write `host:port`, `/path` or `@name`")]
pub struct AddressError {
    text: String,
    reason: &'static str,
}

crate::debug::debug_is_display!(AddressError);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = |reason| AddressError { text: text.to_owned(), reason };
        if text.starts_with(r"\\") {
            return Err(wrong("named pipes are Windows'"));
        }
        if let Some(name) = text.strip_prefix(['@', '\0']) {
            return Ok(Address::Abstract(name.into()));
        }
        if text.starts_with(['/', '.']) {
            return Ok(Address::Unix(text.into()));
        }
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| wrong("it has no port, and is no path"))?;
        let port = port.parse().map_err(|_| wrong("its port is no number up to 65535"))?;
        let is_bracketed = host.starts_with('[');
        let host = match host.strip_prefix('[') {
            Some(host) => host.strip_suffix(']').ok_or_else(|| wrong("a bracket is missing"))?,
            None if host.contains(':') => return Err(wrong("an IPv6 address stands in brackets")),
            None => host,
        };
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        // Without the brackets, which only an IPv6 address is written with, it could be read as
        // something else: `[@name]:1` as an abstract name.
        if is_bracketed && !host.contains(':') {
            return Err(wrong("only an IPv6 address stands in brackets"));
        }
        Ok(Address::Tcp(host.to_owned(), port))
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp(address.ip().to_string(), address.port())
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Address::Unix(path.to_owned())
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Address::Unix(path)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Abstract(name) => write!(f, "@{}", OsStr::from_bytes(name).display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_other_way_round() {
        for text in ["127.0.0.1:0", "[::1]:65535", "localhost:1", "/a/b", "./a", "@name", "@"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_forms_are_errors() {
        for text in [
            "",
            "name",
            "::1:80",
            "[::1:80",
            "[@name]:80",
            "[host]:80",
            ":80",
            "host:",
            "host:65536",
            "host:-1",
            r"\\.\pipe\x",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("host:port"), "{error}");
        }
    }
}
