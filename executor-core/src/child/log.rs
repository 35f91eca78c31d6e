//! Log lines on standard error, from all processes of the program, like Python's
//! `multiprocessing.log_to_stderr`.
//!
//! The library logs with `tracing`, and the program chooses where that goes. This module is the
//! smallest choice: a subscriber that prints lines. Children get the level in their setup, and
//! install the same subscriber before their body runs.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
    subscriber::set_global_default,
};

use super::identity;

static LEVEL: OnceLock<Level> = OnceLock::new();
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

/// Returned by [`log_to_stderr`] if another `tracing` subscriber exists. That one stays in place.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this process has a `tracing` subscriber already: set its level instead")]
pub struct LoggerAlreadySet;

crate::debug::debug_is_display!(LoggerAlreadySet);

/// Prints everything that this library and the program log with `tracing` to standard error, in
/// this process and in all children that it starts from now on. The format is
/// `[LEVEL/process name] file:line: message`.
///
/// A program with its own subscriber does not need this. To install its own subscriber in each
/// child, it can use an initializer.
///
/// ```
/// executor::log_to_stderr(tracing::Level::INFO).unwrap();
/// assert_eq!(executor::log_level(), tracing::level_filters::LevelFilter::INFO);
/// tracing::info!("prints [INFO/MainProcess] src/main.rs:4: prints …");
/// ```
///
/// # Errors
/// If a subscriber exists already, including one from an earlier call.
pub fn log_to_stderr(level: Level) -> Result<(), LoggerAlreadySet> {
    set_global_default(Lines { level, spans: AtomicU64::new(1) }).map_err(|_| LoggerAlreadySet)?;
    let _ = LEVEL.set(level);
    Ok(())
}

/// Returns the level of what is logged: the level given to [`log_to_stderr`], here or in an
/// ancestor, or otherwise the level that `tracing`'s subscribers want.
pub fn log_level() -> LevelFilter {
    LEVEL.get().map_or_else(LevelFilter::current, |level| LevelFilter::from_level(*level))
}

/// Returns the level to send to children, as a number.
pub(crate) fn number_for_child() -> Option<u8> {
    let level = LEVEL.get()?;
    LEVELS.iter().position(|other| other == level).map(|at| at as u8)
}

/// Installs the parent's level in a child.
pub(crate) fn adopt() {
    let level = identity::told()
        .and_then(|told| told.log_level)
        .and_then(|at| LEVELS.get(usize::from(at)).copied());
    if let Some(level) = level {
        // A forked child already has its parent's subscriber.
        let _ = log_to_stderr(level);
    }
}

struct Lines {
    level: Level,
    spans: AtomicU64,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.level))
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed).max(1))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut line = format!("[{}/{}] ", metadata.level(), identity::name());
        if let (Some(file), Some(number)) = (metadata.file(), metadata.line()) {
            let _ = write!(line, "{file}:{number}: ");
        }
        event.record(&mut Fields(&mut line));
        line.push('\n');
        // Write the line at once, so that lines of several processes do not mix. A failure cannot
        // be reported to anyone.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
