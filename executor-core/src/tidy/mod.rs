//! Checks rules of the sources that no compiler checks: which folder may use which other folder,
//! that each folder's head has a picture, that public functions call a timeout a timeout, and that
//! prose is at most 100 columns wide. The module `pages` checks that what the Markdown pages name
//! exists, and the module `sleeps` that no test sleeps to come after something else.
//!
//! ```text
//!  src/**/*.rs ─► code without comments, string contents and tests ─► the folders that it names
//!              ─► none of them lies above its own
//! ```

mod pages;
mod sleeps;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The folders (and files) of `src`, from the bottom up. Each may use those in front of it. The
/// table in `ARCHITECTURE.md` shows the same layers.
const LAYERS: [&str; 22] = [
    "kill_point",
    "debug",
    "sealed",
    "unwind",
    "shield",
    "os",
    "id",
    "segment",
    "wire",
    "error",
    "registry",
    "task",
    "heap",
    "sync",
    "shm",
    "ipc",
    "transport",
    "child",
    "worker",
    "future",
    "process",
    "pool",
];
/// Pairs of folders that do not use each other, although one of them lies above: the first uses
/// nothing of the second.
const STRANGERS: [(&str, &str); 2] = [("pool", "worker"), ("pool", "process")];
/// The layers above all others: what users call, and what generated code calls.
const TOP: [&str; 4] = ["executor", "manager", "private", "lib"];
/// The modules that only tests and fuzzers see. They may use everything.
const BESIDE: [&str; 3] = ["auto_traits", "fuzz", "tidy"];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn all_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            all_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns every Rust file of this crate, sorted by path.
pub(crate) fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    all_below(&sources(), &mut files);
    files.sort();
    files
}

/// Returns a text with its comments and the contents of its string literals replaced by blanks.
/// Length and line breaks stay the same.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let blank = |code: &mut Vec<u8>, from: usize, to: usize| {
        code[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    };
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let end = if rest.starts_with("//") {
            at + rest.find('\n').unwrap_or(rest.len())
        } else if let Some(literal) = rest.strip_prefix("r#\"") {
            at + 3 + literal.find("\"#").expect("a literal ends") + 2
        } else if rest.starts_with("'\"'") || rest.starts_with("b'\"'") {
            // A quotation mark in a character literal begins no string.
            at + 4
        } else if rest.starts_with('"') {
            let mut end = at + 1;
            while bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            end + 1
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        blank(&mut code, at, end.min(bytes.len()));
        at = end;
    }
    String::from_utf8(code).expect("blanks in place of whole characters")
}

/// Returns the end of the block that begins at the next brace from `at` on.
fn block_end(code: &str, at: usize) -> usize {
    let mut depth = 0;
    for (offset, byte) in code[at..].bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + offset + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Replaces the test modules in a file's code by blanks. Returns the names of the test modules that
/// are files of their own.
fn without_tests(code: &mut String) -> Vec<String> {
    let mut files = Vec::new();
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(") {
        let at = from + found;
        let end = at + code[at..].find(")]").expect("an attribute ends") + 2;
        from = end;
        let attribute = &code[at..end];
        if !attribute.contains("test") || attribute.starts_with("#[cfg(not(") {
            continue;
        }
        // Other attributes may follow in front of the item.
        let mut item = code[end..].trim_start();
        while item.starts_with("#[") {
            item = item[item.find(']').expect("an attribute ends") + 1..].trim_start();
        }
        let item = item.trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        let item = item.trim_start_matches("pub ");
        let Some(name) = item.strip_prefix("mod ") else { continue };
        let name: String =
            name.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
        let start = code.len() - item.len();
        if code[start..]
            .trim_start_matches("mod ")
            .trim_start_matches(name.as_str())
            .starts_with(';')
        {
            files.push(name);
        } else {
            let end = block_end(code, start);
            let blanks: String =
                code[start..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
            code.replace_range(start..end, &blanks);
        }
    }
    files
}

fn word(code: &str) -> &str {
    let end = code.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(code.len());
    &code[..end]
}

/// Returns the names with which a path from the crate's root begins, and the line of each: one
/// name, or the names of a list in braces.
fn named(code: &str, at: usize) -> Vec<(String, usize)> {
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    if !code[at..].starts_with('{') {
        return vec![(word(&code[at..]).to_owned(), line(at))];
    }
    let end = block_end(code, at) - 1;
    let (mut names, mut depth, mut begins) = (Vec::new(), 0, true);
    for (offset, char) in code[at + 1..end].char_indices() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            char if begins && !char.is_whitespace() => {
                let at = at + 1 + offset;
                names.push((word(&code[at..]).to_owned(), line(at)));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// Returns the names at the crate's root that a file uses, and the line of each. `depth` is the
/// number of modules between the file and the root.
fn used(code: &str, depth: usize) -> Vec<(String, usize)> {
    let mut roots = vec!["crate::".to_owned()];
    roots.push("super::".repeat(depth));
    let mut found = Vec::new();
    for root in roots {
        for (at, _) in code.match_indices(&root) {
            // `mycrate::` and `a::crate::` do not name the root.
            let before = code[..at].chars().next_back();
            let is_longer =
                before.is_some_and(|char| char.is_alphanumeric() || char == '_' || char == ':');
            if !is_longer && !code[at + root.len()..].starts_with("super::") {
                found.extend(named(code, at + root.len()));
            }
        }
    }
    found
}

/// Returns each use of a layer that lies above the file's own, as `file:line: …`.
fn arrows_that_run_up(file: &str, code: &str) -> Vec<String> {
    let modules: Vec<_> =
        file.trim_end_matches(".rs").trim_end_matches("/mod").split('/').collect();
    let own = modules[0];
    if TOP.contains(&own) || BESIDE.contains(&own) {
        return Vec::new();
    }
    let rank = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let Some(height) = rank(own) else {
        return vec![format!("{file}:1: `{own}` has no place among the layers of tidy/mod.rs")];
    };
    let lies_above = |name: &str| {
        rank(name).is_some_and(|other| other > height) || TOP.contains(&name) && name != "lib"
    };
    used(code, modules.len())
        .into_iter()
        .filter_map(|(name, line)| {
            let why = match &*name {
                name if lies_above(name) => "which lies above it",
                name if STRANGERS.contains(&(own, name)) => "of which it knows nothing",
                _ => return None,
            };
            Some(format!("{file}:{line}: `{own}` uses `{name}`, {why}"))
        })
        .collect()
}

/// Returns the sources without the files that consist of tests: their paths from `src` on, and
/// their code.
pub(crate) fn library() -> Vec<(String, String)> {
    let (root, paths) = (sources(), rust_files());
    let mut tests = BTreeSet::new();
    let mut files = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("it can be read");
        let mut code = code_of(&text);
        // The submodules of `mod.rs` and `lib.rs` lie beside them, those of `x.rs` in a folder `x`.
        let folder = match path.file_stem().and_then(|name| name.to_str()) {
            Some("mod" | "lib") => path.parent().expect("below src").to_owned(),
            _ => path.with_extension(""),
        };
        tests.extend(without_tests(&mut code).into_iter().map(|name| folder.join(name)));
        files.push((path, code));
    }
    files
        .retain(|(path, _)| !path.ancestors().any(|part| tests.contains(&part.with_extension(""))));
    let name = |path: &Path| path.strip_prefix(&root).expect("below src").display().to_string();
    files.into_iter().map(|(path, code)| (name(&path), code)).collect()
}

#[test]
fn no_folder_uses_one_that_lies_above_it() {
    let files = library();
    assert!(files.len() > 100, "{} files were found", files.len());
    let up: Vec<_> = files.iter().flat_map(|(file, code)| arrows_that_run_up(file, code)).collect();
    assert!(up.is_empty(), "arrows run up:\n{}", up.join("\n"));
    // Each layer exists. A name without a file would forbid nothing.
    for layer in LAYERS {
        let is_it = |file: &str| {
            file.split('/').next().unwrap_or_default().trim_end_matches(".rs") == layer
        };
        assert!(files.iter().any(|(file, _)| is_it(file)), "there is no `{layer}`");
    }
}

#[test]
fn a_use_of_what_lies_above_is_found_wherever_it_is_written() {
    let up = |file: &str, text: &str| {
        let mut code = code_of(text);
        without_tests(&mut code);
        arrows_that_run_up(file, &code)
    };
    let found = "sync/lock.rs:2: `sync` uses `pool`, which lies above it";
    assert_eq!(up("sync/lock.rs", "\nuse crate::pool::Pool;"), [found]);
    assert_eq!(up("sync/lock.rs", "use crate::{os::{file, fork},\n    pool::Pool};"), [found]);
    assert_eq!(up("sync/lock.rs", "\nfn f() { crate::pool::run() }"), [found]);
    assert_eq!(up("sync/lock.rs", "\nuse super::super::pool::Pool;"), [found]);
    assert_eq!(up("os/mod.rs", "use super::sync;").len(), 1);
    assert_eq!(up("wire/frame.rs", "use crate::executor::Pool;").len(), 1);
    assert_eq!(up("what/is.rs", "").len(), 1);
    let stranger = "pool/mod.rs:1: `pool` uses `worker`, of which it knows nothing";
    assert_eq!(up("pool/mod.rs", "use crate::worker::entry;"), [stranger]);
    assert_eq!(up("pool/mod.rs", "use crate::{child::launch, os::process};"), [""; 0]);
    for fine in [
        "// crate::pool",
        "const TEXT: &str = \"crate::pool \\\" crate::pool\";",
        "use crate::os::{pool, executor};",
        "use super::pool;",
        "#[cfg(test)]\nmod tests { use crate::pool::Pool; }",
        "#[cfg(all(test, unix))]\n#[path = \"x\"]\npub(crate) mod tests { mod inner { use crate::pool::Pool; } }",
    ] {
        assert_eq!(up("sync/lock.rs", fine), [""; 0], "{fine}");
    }
    assert_eq!(
        up("sync/lock.rs", "#[cfg(test)]\nmod tests { }\n\nuse crate::pool::Pool;").len(),
        1
    );
    let not_of_models =
        "#[cfg(not(all(test, executor_loom)))]\nmod real { use crate::pool::Pool; }";
    assert_eq!(up("sync/lock.rs", not_of_models).len(), 1);
}

#[test]
fn each_folder_opens_with_a_picture() {
    let mut without = Vec::new();
    for entry in fs::read_dir(sources()).expect("the sources") {
        let folder = entry.expect("it can be read").path();
        if !folder.is_dir() {
            continue;
        }
        let head = fs::read_to_string(folder.join("mod.rs")).expect("each folder has a `mod.rs`");
        let opening = head.lines().take_while(|line| line.starts_with("//!"));
        if !opening.into_iter().any(|line| line.trim_end() == "//! ```text") {
            without.push(format!(
                "{}:1: no picture (```text) in its opening",
                folder.join("mod.rs").display()
            ));
        }
    }
    assert!(without.is_empty(), "{}", without.join("\n"));
}

/// Returns the public functions of a file that take a `Duration` as a `limit`, as `file:line: …`.
fn durations_named_limit(file: &str, code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("pub ") {
        let head = &code[at..];
        let head = &head[..head.find(['{', ';']).unwrap_or(head.len())];
        if head.contains("fn ")
            && ["limit: Duration", "limit: Option<Duration>"]
                .iter()
                .any(|limit| head.contains(limit))
        {
            let number = code[..at].matches('\n').count() + 1;
            found.push(format!("{file}:{number}: a `limit` that is a `Duration` is a `timeout`"));
        }
    }
    found
}

#[test]
fn a_duration_after_which_a_call_gives_up_is_called_timeout() {
    let mut found = Vec::new();
    for path in rust_files() {
        let name = path.strip_prefix(sources()).expect("below").display().to_string();
        let code = code_of(&fs::read_to_string(&path).expect("it can be read"));
        found.extend(durations_named_limit(&name, &code));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_duration_that_is_called_limit_is_found() {
    let found = |code: &str| durations_named_limit("a.rs", code).len();
    assert_eq!(found("pub fn wait(&self, limit: Duration) -> bool {"), 1);
    assert_eq!(found("pub async fn wait(\n    &self,\n    limit: Option<Duration>,\n) {"), 1);
    assert_eq!(found("pub fn wait(&self, timeout: Duration) {}\nfn own(limit: Duration) {}"), 0);
    assert_eq!(found("pub struct Limit { pub limit: Duration }"), 0);
}

/// The widest line of prose. rustfmt breaks lines of code at the same width.
const PROSE_MAX: usize = 100;

/// Returns the lines of prose that are too wide, as `file:line: …`: comments of a Rust file, and
/// everything in a page except tables and the targets of links. Code in a fence is not prose.
fn wide_prose(file: &str, text: &str) -> Vec<String> {
    let is_page = file.ends_with(".md");
    let mut fenced = false;
    let mut wide = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let prose = match line.trim_start() {
            line if is_page => line,
            line if line.starts_with("//") => line.trim_start_matches(['/', '!']).trim_start(),
            _ => {
                fenced = false;
                continue;
            }
        };
        if prose.starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let is_table = prose.starts_with('|');
        let is_target = prose.starts_with('[') && prose.contains("]: ");
        let width = line.chars().count();
        if width > PROSE_MAX && !fenced && !is_table && !is_target {
            wide.push(format!("{file}:{}: prose of {width} columns", number + 1));
        }
    }
    wide
}

#[test]
fn prose_is_at_most_a_hundred_columns_wide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut paths = Vec::new();
    // A package of this crate alone contains only the first.
    for folder in ["executor-core/src", "executor-macros", "src", "examples", "tests", "benches"] {
        let folder = root.join(folder);
        if folder.is_dir() {
            all_below(&folder, &mut paths);
        }
    }
    let pages = [
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "README.md",
        "docs/performance.md",
        "docs/security.md",
    ];
    paths.extend(pages.into_iter().map(|page| root.join(page)).filter(|page| page.exists()));
    assert!(paths.len() > 100, "{} files were found", paths.len());
    let mut wide = Vec::new();
    for path in &paths {
        let name = path.strip_prefix(&root).expect("below the root").display().to_string();
        wide.extend(wide_prose(&name, &fs::read_to_string(path).expect("it can be read")));
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}

#[test]
fn wide_prose_is_found_and_code_is_not_prose() {
    let long = "x".repeat(PROSE_MAX);
    let wide = |file: &str, text: &str| wide_prose(file, text).len();
    assert_eq!(wide("a.rs", &format!("    // {long}")), 1);
    assert_eq!(wide("a.rs", &format!("/// {long}\nfn f() {{}}\n//! {long}")), 2);
    assert_eq!(wide("a.rs", &format!("let a = \"{long}\";")), 0);
    assert_eq!(wide("a.rs", &format!("/// ```\n/// {long}\n/// ```\n/// {long}")), 1);
    assert_eq!(wide("a.md", &format!("{long}{long}")), 1);
    assert_eq!(wide("a.md", &format!("| {long} |\n[a]: {long}\n```\n{long}y\n```")), 0);
    assert_eq!(wide("a.rs", &format!("// {}", "ß".repeat(PROSE_MAX - 3))), 0);
}
