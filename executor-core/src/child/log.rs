//! Log lines on standard error, from the whole family of processes: `multiprocessing.log_to_stderr`.
//!
//! The library itself logs with `tracing`, and to whom is the program's business. This is the smallest answer: a subscriber
//! that prints lines. Children are told the level in their setup, and do the same before their body runs.

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

/// Another subscriber of `tracing` is there, and keeps the log: [`log_to_stderr`].
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this process has a `tracing` subscriber already: set its level instead")]
pub struct LoggerAlreadySet;

crate::debug::debug_is_display!(LoggerAlreadySet);

/// Prints what is logged with `tracing`, by this library and by the program, to standard error: in this process and in all
/// children that it starts from now on, as `[LEVEL/process name] file:line: message`.
///
/// A program with a subscriber of its own does not need it; one in each child is set up by an initializer.
///
/// ```
/// executor::log_to_stderr(tracing::Level::INFO).unwrap();
/// assert_eq!(executor::log_level(), tracing::level_filters::LevelFilter::INFO);
/// tracing::info!("prints [INFO/MainProcess] src/main.rs:4: prints …");
/// ```
///
/// # Errors
/// If there is a subscriber already, also by an earlier call.
pub fn log_to_stderr(level: Level) -> Result<(), LoggerAlreadySet> {
    set_global_default(Lines { level, spans: AtomicU64::new(1) }).map_err(|_| LoggerAlreadySet)?;
    let _ = LEVEL.set(level);
    Ok(())
}

/// What is logged: what [`log_to_stderr`] was told, here or in an ancestor; otherwise what `tracing`'s subscribers want.
pub fn log_level() -> LevelFilter {
    LEVEL.get().map_or_else(LevelFilter::current, |level| LevelFilter::from_level(*level))
}

/// What children are told.
pub(crate) fn number_for_child() -> Option<u8> {
    let level = LEVEL.get()?;
    LEVELS.iter().position(|other| other == level).map(|at| at as u8)
}

/// In a child: as the parent does.
pub(crate) fn adopt() {
    let level =
        identity::told().and_then(|told| told.log_level).and_then(|at| LEVELS.get(usize::from(at)).copied());
    if let Some(level) = level {
        // A forked child has its parent's already.
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
        // At once, so that lines of several processes do not mix. Nobody is left to be told if that fails.
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
