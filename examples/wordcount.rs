//! Counts the words of every file below a directory, one task for each batch of files.
//!
//! ```text
//! cargo run --release --example wordcount                                  # this repository
//! cargo run --release --example wordcount -- ~/.cargo/registry/src         # something to do
//! cargo run --release --example wordcount -- ~/.cargo/registry/src --serial
//! ```
//!
//! Options: `--workers N` sets the number of workers. `--serial` does the same work in this process
//! as well, compares the totals, and prints both times and the speed-up. `--all` lists every file
//! that was left out.

use std::{
    collections::HashMap,
    error::Error,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use comfy_table::{CellAlignment, Table, presets};
use executor::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

/// Bounds for the size of a batch in bytes. Within them, a batch has about half of each worker's
/// share of the remaining bytes. The first batches are large, because each batch is one more result
/// to merge in this one process. The last batches are small, so that all workers end at about the
/// same time.
const BATCH_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(64 << 20);
const TOP: usize = 20;
const SKIPPED_SHOWN: usize = 20;

/// The counts of one batch, or of all files.
#[derive(Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    /// How often each word occurs. The words of a batch are sent as a list instead, because
    /// building a table is most of the time it takes to decode one, and the table of a single batch
    /// is never searched.
    #[serde(skip)]
    words: HashMap<String, u64>,
    total: u64,
    lines: u64,
    bytes: u64,
    files: u64,
    /// Files that could not be read or are not UTF-8, each with the reason.
    skipped: Vec<(OsString, String)>,
}

impl Counts {
    fn add_file(&mut self, path: &OsStr) {
        let text = match std::fs::read(path).map_err(|error| error.to_string()).and_then(|bytes| {
            String::from_utf8(bytes).map_err(|error| format!("not UTF-8: {}", error.utf8_error()))
        }) {
            Ok(text) => text,
            Err(reason) => return self.skipped.push((path.to_owned(), reason)),
        };
        self.files += 1;
        self.bytes += text.len() as u64;
        self.lines += text.lines().count() as u64;
        let mut lower = String::new();
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            self.total += 1;
            lower.clear();
            lower.extend(word.chars().flat_map(char::to_lowercase));
            match self.words.get_mut(&lower) {
                Some(count) => *count += 1,
                None => _ = self.words.insert(lower.clone(), 1),
            }
        }
    }

    fn merge(&mut self, other: Counts, words: Vec<(String, u64)>) {
        self.words.reserve(words.len().saturating_sub(self.words.len()));
        for (word, count) in words {
            *self.words.entry(word).or_default() += count;
        }
        self.total += other.total;
        self.lines += other.lines;
        self.bytes += other.bytes;
        self.files += other.files;
        self.skipped.extend(other.skipped);
    }
}

/// The task: counts one batch of files. Paths are sent as `OsString`, because the name of a file
/// need not be UTF-8.
#[task]
fn count(files: &[OsString]) -> (Counts, Vec<(String, u64)>) {
    let mut counts = Counts::default();
    files.iter().for_each(|path| counts.add_file(path));
    let words = std::mem::take(&mut counts.words).into_iter().collect();
    (counts, words)
}

#[executor::main]
fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse()?;
    let (batches, mut unseen) = batches(&options.directory, options.workers);
    if options.serial {
        // Read all files once, so that both runs below find them in the page cache.
        batches.iter().flatten().for_each(|path| drop(std::fs::read(path)));
    }

    let started = Instant::now();
    let pool = ProcessPoolExecutor::builder().max_workers(options.workers).build()?;
    let bar = progress_bar(batches.len());
    let mut counts = Counts::default();
    let mut lost = Vec::new();
    for batch in pool.map(|batch| count::task(batch), &batches).unordered() {
        match batch {
            Ok((batch, words)) => counts.merge(batch, words),
            Err(error) => lost.push(error),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    pool.shutdown(true);
    let parallel = started.elapsed();
    counts.skipped.append(&mut unseen);
    counts.skipped.sort();

    print(&counts, options.all);
    for error in &lost {
        println!("a batch was lost: {error}");
    }
    println!("{} workers: {}", options.workers, seconds(parallel));
    if options.serial {
        compare(counts, &batches, parallel)?;
    }
    if lost.is_empty() { Ok(()) } else { Err(format!("{} batches were lost", lost.len()).into()) }
}

/// Does the same work in this process and compares the totals.
fn compare(
    parallel: Counts,
    batches: &[Vec<OsString>],
    parallel_time: Duration,
) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let mut serial = Counts::default();
    let bar = progress_bar(batches.len());
    for batch in batches {
        batch.iter().for_each(|path| serial.add_file(path));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let serial_time = started.elapsed();
    println!("in one process: {}", seconds(serial_time));
    println!("speed-up: {:.2}", serial_time.as_secs_f64() / parallel_time.as_secs_f64());
    // Unreadable directories are only in the parallel run's list, so the lists are not compared.
    serial.skipped.clone_from(&parallel.skipped);
    if serial != parallel {
        return Err("the totals differ from those of one process".into());
    }
    println!("the totals are the same");
    Ok(())
}

/// Returns every regular file below `directory`, in batches, and the entries that could not be
/// read.
fn batches(directory: &Path, workers: usize) -> (Vec<Vec<OsString>>, Vec<(OsString, String)>) {
    let (mut files, mut unseen, mut left) = (Vec::new(), Vec::new(), 0);
    let not_ours = |name: &OsStr| name != ".git" && name != "target";
    let walk = walkdir::WalkDir::new(directory).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || not_ours(entry.file_name())) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => {
                let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
                left += bytes;
                files.push((entry.into_path().into_os_string(), bytes));
            }
            Ok(_) => {}
            Err(error) => {
                unseen.push((error.path().unwrap_or(directory).into(), error.to_string()));
            }
        }
    }
    let (mut batches, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (path, size) in files {
        batch.push(path);
        bytes += size;
        if bytes
            >= (left / (2 * workers.max(1) as u64)).clamp(*BATCH_BYTES.start(), *BATCH_BYTES.end())
        {
            batches.push(std::mem::take(&mut batch));
            left -= std::mem::take(&mut bytes);
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    (batches, unseen)
}

fn print(counts: &Counts, all: bool) {
    let mut words: Vec<_> = counts.words.iter().collect();
    words.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    table(
        ["word", "count"],
        words.iter().take(TOP).map(|(word, count)| [word.to_string(), count.to_string()]),
    );
    let totals = [
        ("files", counts.files),
        ("bytes", counts.bytes),
        ("lines", counts.lines),
        ("words", counts.total),
        ("different words", counts.words.len() as u64),
        ("files left out", counts.skipped.len() as u64),
    ];
    table(["total", ""], totals.map(|(name, count)| [name.to_owned(), count.to_string()]));
    let shown = if all { counts.skipped.len() } else { SKIPPED_SHOWN };
    for (path, reason) in counts.skipped.iter().take(shown) {
        println!("left out: {}: {reason}", path.display());
    }
    if counts.skipped.len() > shown {
        println!("left out: {} more (`--all` lists them)", counts.skipped.len() - shown);
    }
}

fn table(header: [&str; 2], rows: impl IntoIterator<Item = [String; 2]>) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}\n");
}

/// A progress bar on stderr. It is drawn only if stderr is a terminal.
fn progress_bar(batches: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} batches, {eta} left")
        .expect("a valid template");
    ProgressBar::new(batches as u64).with_style(style)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

struct Options {
    directory: PathBuf,
    workers: usize,
    serial: bool,
    all: bool,
}

impl Options {
    fn parse() -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Options {
            directory: env!("CARGO_MANIFEST_DIR").into(),
            workers: executor::usable_cpus(),
            serial: false,
            all: false,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("workers") => options.workers = parser.value()?.parse()?,
                Long("serial") => options.serial = true,
                Long("all") => options.all = true,
                Value(directory) => options.directory = directory.into(),
                other => return Err(other.unexpected()),
            }
        }
        if !options.directory.is_dir() {
            return Err(format!("{} is not a directory", options.directory.display()).into());
        }
        Ok(options)
    }
}
