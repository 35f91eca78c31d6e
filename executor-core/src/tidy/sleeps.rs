//! Checks that no test sleeps in order to come after something else. A busy machine breaks such a
//! test, or lets it pass without a reason.

use std::{fs, path::Path};

use super::{all_below, code_of};

/// What a comment says about a sleep that is neither a task nor a question that is asked again.
const REASON: &str = "not enforce an order";

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Returns the lines of a formatted file that sleep without a reason, as `file:line: …`. Reasons
/// are: a task, which may take any time; a loop that asks for something again and again; a comment.
fn sleeps_without_a_reason(file: &str, text: &str) -> Vec<String> {
    let code = code_of(text);
    let (lines, text): (Vec<_>, Vec<_>) = (code.lines().collect(), text.lines().collect());
    let sleeps = |line: &str| {
        let call = line.split_once("sleep(").map(|(before, _)| before.trim_start());
        call.is_some_and(|before| before.is_empty() || before.ends_with([':', ' ', '(']))
            && !line.contains("fn sleep(")
    };
    let mut found = Vec::new();
    for at in (0..lines.len()).filter(|at| sleeps(lines[*at])) {
        // The lines that the sleep is nested in, up to its function.
        let (mut inside, mut has_reason, mut head) = (indent(lines[at]), false, at);
        for (above, line) in lines[..at].iter().enumerate().rev() {
            head = above;
            has_reason |= text[above].contains(REASON);
            if line.trim().is_empty() || indent(line) >= inside {
                continue;
            }
            inside = indent(line);
            let words: Vec<_> = line.split(|char: char| !char.is_alphanumeric()).collect();
            let is_loop = ["while", "loop", "for", "eventually"].iter().any(|w| words.contains(w));
            has_reason |= is_loop && !words.contains(&"fn");
            if words.contains(&"fn") || has_reason {
                break;
            }
        }
        let attributes = lines[..head].iter().rev().take_while(|line| {
            let line = line.trim_start();
            line.is_empty() || line.starts_with(['#', '/'])
        });
        has_reason |= attributes.into_iter().any(|line| line.contains("#[task"));
        if !has_reason {
            found.push(format!("{file}:{}: {}", at + 1, lines[at].trim()));
        }
    }
    found
}

#[test]
fn no_test_sleeps_to_come_after_something_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut paths = Vec::new();
    // A package of this crate alone does not contain them.
    if root.join("tests").is_dir() {
        all_below(&root.join("tests"), &mut paths);
    }
    let mut found = Vec::new();
    for path in &paths {
        let name = path.strip_prefix(&root).expect("below the root").display().to_string();
        // Processes die there at random moments.
        if !name.starts_with("tests/programs") {
            found.extend(sleeps_without_a_reason(&name, &fs::read_to_string(path).expect("text")));
        }
    }
    assert!(
        found.is_empty(),
        "wait for the event itself, or say in a comment that the sleep does {REASON}:\n{}",
        found.join("\n")
    );
}

#[test]
fn a_sleep_without_a_reason_is_found() {
    let found = |text: &str| sleeps_without_a_reason("a.rs", text).len();
    assert_eq!(found("fn a() {\n    thread::sleep(MOMENT);\n}"), 1);
    assert_eq!(found("#[task]\nfn a() {\n    thread::sleep(MOMENT);\n}"), 0);
    assert_eq!(found("fn a() {\n    while b() {\n        thread::sleep(MOMENT);\n    }\n}"), 0);
    assert_eq!(found("fn a() {\n    loop {\n    }\n    thread::sleep(MOMENT);\n}"), 1);
    assert_eq!(
        found(&format!("fn a() {{\n    // This does {REASON}.\n    thread::sleep(MOMENT);\n}}")),
        0
    );
    assert_eq!(found("#[task]\nfn a() {}\n\nfn b() {\n    thread::sleep(MOMENT);\n}"), 1);
}
