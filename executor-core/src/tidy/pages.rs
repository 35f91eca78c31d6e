//! Checks the Markdown pages against the sources: the paths and the tests that they name exist, the
//! ids that they list have tests, and the totals of the parity page are the sums of its tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{all_below, code_of};

/// The pages that name tests.
const PAGES: [&str; 7] = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "README.md",
    "docs/behaviours.md",
    "docs/parity.md",
    "docs/performance.md",
    "docs/security.md",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the text of a page. A package of this crate alone does not contain the pages.
fn page(name: &str) -> Option<String> {
    fs::read_to_string(root().join(name)).ok()
}

/// Returns what stands between backticks in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn the_paths_that_the_architecture_names_exist() {
    let Some(text) = page("ARCHITECTURE.md") else { return };
    let mut missing = Vec::new();
    let mut named = 0;
    for (number, line) in text.lines().enumerate() {
        let is_path = |name: &&str| {
            let name = name.trim_end_matches(|char: char| char == ':' || char.is_numeric());
            (name.ends_with(".rs") || name.ends_with(".md"))
                && !name.contains(|char: char| char.is_whitespace() || char == '*')
        };
        for path in quoted(line).filter(is_path) {
            named += 1;
            let below = |folder: &str| root().join(folder).join(path).exists();
            if !["", "executor-core/src", "executor-macros/src", "tests"].into_iter().any(below) {
                missing.push(format!("ARCHITECTURE.md:{}: `{path}` is not there", number + 1));
            }
        }
    }
    assert!(named > 20, "{named} paths were found");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// A block of code whose fences share a line with something else is shown as prose. This happens
/// when a block is wrapped.
#[test]
fn code_blocks_are_blocks() {
    let mut wrong = Vec::new();
    for name in PAGES.into_iter().chain(["CHANGELOG.md"]) {
        let text = page(name).unwrap_or_default();
        let lines = (1..).zip(text.lines()).filter(|(_, line)| line.contains("```"));
        let is_fence = |line: &str| {
            let language = line.trim_start().strip_prefix("```");
            language.is_some_and(|rest| !rest.contains(['`', ' ']))
        };
        wrong.extend(
            lines
                .clone()
                .filter(|(_, line)| !is_fence(line))
                .map(|(at, line)| format!("{name}:{at}: {line}")),
        );
        if lines.count() % 2 == 1 {
            wrong.push(format!("{name}: the last block has no end"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The words in the code of each file that may contain tests, by the file's path from the root.
type Words = BTreeMap<String, BTreeSet<String>>;

/// Tests are functions, names that a macro of the file makes functions of, and the names that a
/// program with its own `main` lists: so each is a word of the code, outside of comments and texts.
fn words_of_tests() -> Words {
    let mut paths = Vec::new();
    for folder in ["executor-core/src", "executor-macros/src", "tests", "xtask/src"] {
        if root().join(folder).is_dir() {
            all_below(&root().join(folder), &mut paths);
        }
    }
    let words = |path: &PathBuf| {
        let code = code_of(&fs::read_to_string(path).expect("it can be read"));
        let words = code.split(|char: char| !char.is_alphanumeric() && char != '_');
        words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let name = |path: &PathBuf| path.strip_prefix(root()).expect("below").display().to_string();
    paths.iter().map(|path| (name(path), words(path))).collect()
}

/// Returns whether a name in a page looks like that of a test: of a behaviour, by its id
/// (`ex04_…`), or a sentence.
fn is_test_name(name: &str) -> bool {
    let is_word = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_';
    if let Some(begin) = name.strip_suffix("_…") {
        return begin.chars().all(is_word);
    }
    name.chars().all(is_word) && name.split('_').filter(|word| !word.is_empty()).count() > 3
}

/// Returns the names of tests in a page that no file has.
fn missing_names(page: &str, text: &str, words: &Words) -> Vec<String> {
    let exists = |name: &str| match name.strip_suffix('…') {
        Some(begin) => words.values().flatten().any(|word| word.starts_with(begin)),
        None => words.values().any(|words| words.contains(name)),
    };
    let lines = text.lines().enumerate();
    let names = lines.flat_map(|(number, line)| quoted(line).map(move |name| (number, name)));
    names
        .filter(|(_, name)| is_test_name(name) && !exists(name))
        .map(|(number, name)| format!("{page}:{}: there is no test `{name}`", number + 1))
        .collect()
}

/// Returns what is wrong with a cell that says by which tests something is shown:
/// `` `a`, `b` (file.rs); `c` (other.rs) ``. A file is in `tests` or in a folder there, if no
/// folder is named. Returns also how many tests it names.
fn wrong_citations(cell: &str, words: &Words) -> (usize, Vec<String>) {
    let (mut wrong, mut number) = (Vec::new(), 0);
    for part in cell.split(')') {
        let Some((names, place)) = part.split_once('(') else {
            let left = quoted(part).collect::<Vec<_>>();
            wrong.extend(left.iter().map(|name| format!("`{name}` has no file")));
            continue;
        };
        let file = place.split(',').next().unwrap_or_default().trim();
        let is_it = |path: &str| {
            path == file
                || !file.contains('/')
                    && path.strip_prefix("tests/").is_some_and(|below| {
                        below == file || below.split_once('/').is_some_and(|(_, name)| name == file)
                    })
        };
        let of_file: Vec<_> =
            words.iter().filter(|(path, _)| is_it(path)).map(|(_, words)| words).collect();
        match of_file[..] {
            [of_file] => {
                for name in quoted(names) {
                    number += 1;
                    if !of_file.contains(name) {
                        wrong.push(format!("`{name}` is not in {file}"));
                    }
                }
            }
            [] => wrong.push(format!("there is no {file}")),
            _ => wrong.push(format!("there are several {file}")),
        }
    }
    (number, wrong)
}

/// Returns the cells of a line of a table.
fn cells(line: &str) -> Vec<String> {
    let line = line.replace("\\|", "¦");
    let cells = line.trim().trim_matches('|').split('|');
    cells.map(|cell| cell.trim().to_owned()).collect()
}

#[test]
fn the_tests_that_pages_name_exist() {
    let words = words_of_tests();
    let mut missing = Vec::new();
    for name in PAGES {
        let Some(text) = page(name) else { continue };
        if name != "docs/parity.md" {
            missing.extend(missing_names(name, &text, &words));
            continue;
        }
        let mut all = 0;
        for (number, line) in text.lines().enumerate() {
            let cells = cells(line);
            let [id, _, _, shown] = &cells[..] else { continue };
            if id.starts_with(|char: char| char.is_ascii_uppercase()) {
                let (named, wrong) = wrong_citations(shown, &words);
                all += named;
                let at = |wrong| format!("{name}:{}: {id}: {wrong}", number + 1);
                missing.extend(wrong.into_iter().map(at));
            }
        }
        assert!(all > 300, "{all} tests were found");
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn the_test_binaries_that_pages_name_exist() {
    let mut missing = Vec::new();
    for name in PAGES {
        for (number, line) in page(name).unwrap_or_default().lines().enumerate() {
            for binary in line.split("--test ").skip(1) {
                let end = binary.find(|char: char| !char.is_alphanumeric() && char != '_');
                let binary = &binary[..end.unwrap_or(binary.len())];
                let tests = root().join("tests");
                if !tests.join(format!("{binary}.rs")).exists()
                    && !tests.join(binary).join("main.rs").exists()
                {
                    missing.push(format!("{name}:{}: there is no `{binary}`", number + 1));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Returns the words of a text that are ids of behaviours or rows: `EX04`, `X05`.
fn ids_in(text: &str) -> impl Iterator<Item = &str> {
    text.split(|char: char| !char.is_alphanumeric()).filter(|word| {
        let digits = word.trim_start_matches(|char: char| char.is_ascii_uppercase());
        (1..=2).contains(&(word.len() - digits.len()))
            && digits.len() == 2
            && digits.chars().all(|char| char.is_ascii_digit())
    })
}

/// Returns the ids that the name of a test begins with. It may be several:
/// `se07_se08_d11_tickets`.
fn ids_of(name: &str) -> impl Iterator<Item = String> {
    let is_id = |word: &String| ids_in(word).next().is_some();
    name.split('_').take(4).map(str::to_ascii_uppercase).take_while(is_id)
}

#[test]
fn the_behaviours_of_the_checklist_have_a_test_or_a_reason() {
    let Some(text) = page("docs/behaviours.md") else { return };
    let (mut ids, mut explained) = (BTreeSet::new(), BTreeSet::new());
    let mut part = "";
    for line in text.lines() {
        part = line.strip_prefix("## ").unwrap_or(part);
        match (part, &cells(line)[..]) {
            ("The checklist", [_, listed]) => ids.extend(ids_in(listed).map(str::to_owned)),
            (_, [id, _, _]) => explained.extend(ids_in(id).map(str::to_owned)),
            _ => {}
        }
    }
    assert!(ids.len() > 300, "{} ids were found", ids.len());
    let words = words_of_tests();
    let with: BTreeSet<_> = words.values().flatten().flat_map(|name| ids_of(name)).collect();
    let without: Vec<_> = ids.difference(&explained).filter(|id| !with.contains(*id)).collect();
    assert!(without.is_empty(), "no test has a name that begins with {without:?}");
    let unlisted: Vec<_> = explained.difference(&ids).collect();
    assert!(unlisted.is_empty(), "the checklist has no {unlisted:?}");
}

#[test]
fn the_rows_that_have_tests_of_their_own_name_them() {
    const LIST: &str = "have tests whose names begin with the id of the row";
    let Some(text) = page("docs/parity.md") else { return };
    let paragraphs: Vec<_> = text.split("\n\n").map(|text| text.replace('\n', " ")).collect();
    let list = paragraphs.iter().find_map(|text| Some(text.split_once(LIST)?.1));
    let ids: BTreeSet<_> = ids_in(list.expect("a paragraph lists them")).collect();
    assert!(ids.len() > 20, "{ids:?}");
    let mut with = BTreeSet::new();
    for line in text.lines() {
        if let [id, _, _, shown] = &cells(line)[..]
            && quoted(shown).flat_map(ids_of).any(|of_test| of_test == *id)
        {
            with.insert(id.clone());
        }
    }
    let without: Vec<_> = ids.iter().filter(|id| !with.contains(**id)).collect();
    assert!(without.is_empty(), "they name no test that begins with their id: {without:?}");
}

#[test]
fn ids_are_found_in_texts_and_in_names_of_tests() {
    let ids: Vec<_> = ids_in("EX04, X05 (in part), d11 `x05_…`: A1, FX110 and UTF8").collect();
    assert_eq!(ids, ["EX04", "X05"]);
    let ids = |name: &str| ids_of(name).collect::<Vec<_>>();
    assert_eq!(ids("x05_a_test_of_x08"), ["X05"]);
    assert_eq!(ids("se07_se08_d11_tickets"), ["SE07", "SE08", "D11"]);
    assert!(ids("a_test_x05").is_empty());
}

/// The rows of one table of the parity page: all; done, partly, not yet; without a test although
/// they are not "not yet".
type Counts = [usize; 5];

/// Returns the counts of a row of the parity page.
fn counts(here: &str, shown: &str) -> Counts {
    let (not_yet, partly) = (here.starts_with('–'), here.starts_with("partly"));
    let without = shown == "not yet" && !not_yet;
    [true, !not_yet && !partly, partly, not_yet, without].map(usize::from)
}

#[test]
fn the_totals_of_the_parity_page_are_the_sums_of_its_tables() {
    let Some(text) = page("docs/parity.md") else { return };
    let (mut said, mut counted) = (BTreeMap::new(), BTreeMap::new());
    let (mut part, mut all) = (String::new(), Counts::default());
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.clone_into(&mut part);
        }
        match &cells(line)[..] {
            [part, numbers @ ..] if numbers.len() == 5 && numbers[0].parse::<u64>().is_ok() => {
                let numbers: Vec<usize> =
                    numbers.iter().map(|number| number.parse().expect("a number")).collect();
                said.insert(part.clone(), Counts::try_from(numbers).expect("five"));
            }
            [id, _, here, shown] if id.starts_with(|char: char| char.is_ascii_uppercase()) => {
                let row = counts(here, shown);
                for sum in [counted.entry(part.clone()).or_insert([0; 5]), &mut all] {
                    sum.iter_mut().zip(row).for_each(|(sum, one)| *sum += one);
                }
            }
            _ => {}
        }
    }
    counted.insert("**all**".to_owned(), all);
    assert_eq!(said, counted);
}

#[test]
fn wrong_names_of_tests_are_found() {
    let words = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let all = Words::from([
        ("tests/a.rs".to_owned(), words(&["one_test", "in04_two"])),
        ("tests/pool/b.rs".to_owned(), words(&["another_test"])),
        ("executor-core/src/c.rs".to_owned(), words(&["a_third_test_of_a_unit"])),
    ]);
    for (cell, named, wrong) in [
        ("`one_test`, `in04_two` (a.rs); `another_test` (b.rs)", 3, 0),
        ("`a_third_test_of_a_unit` (executor-core/src/c.rs)", 1, 0),
        ("the compiler", 0, 0),
        ("`another_test` (a.rs)", 1, 1),
        ("`one_test` (c.rs)", 0, 1),
        ("`one_test`", 0, 1),
    ] {
        let (names, wrongs) = wrong_citations(cell, &all);
        assert_eq!((names, wrongs.len()), (named, wrong), "{cell}: {wrongs:?}");
    }
    let missing = |text: &str| missing_names("a.md", text, &all).len();
    assert_eq!(missing("`in04_…` and `a_third_test_of_a_unit` and `not_a_test`"), 0);
    assert_eq!(missing("`in05_…` and `a_third_test_of_no_unit`"), 2);
}
