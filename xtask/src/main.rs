//! What a developer of this repository does daily, as one command. `.ci/run` calls it, too.
//!
//! ```text
//!  cargo xtask ARGUMENTS ─► plan: ARGUMENTS → steps ─► run: each step is one cargo
//!                           (pure, tested)             (ends at the first that fails)
//! ```
//!
//! It needs a Rust toolchain and no other package, so that it is built in a second.

use std::{
    env,
    path::Path,
    process::{Command, ExitCode},
};

const HELP: &str = "\
cargo xtask check [STEP]           formatting, clippy and documentation, or one of the three
cargo xtask test                   every test: `cargo test --workspace`
cargo xtask test NAME [FILTER…]    the test binary tests/NAME.rs or tests/NAME/main.rs; the tests of
                                   the file NAME.rs in one of these folders, or with a FILTER those
                                   of its test binary; the programs that must compile (`accepted`);
                                   the documentation (`doc`); or else the unit tests of executor-core
                                   whose path contains NAME
cargo xtask models [CHECKER] [FILTER]
                                   production code under loom and shuttle, or under one of them
cargo xtask deaths [ROUNDS] [FILTER]
                                   processes killed or stopped at every step; 300 rounds by default
cargo xtask stress [SECONDS]       random use of executors from many threads; 30 seconds by default
cargo xtask bench NAME [ARGUMENTS…]
                                   the benchmark benches/NAME, in release mode

A FILTER is a part of a test's name. Options of the test harness follow a `--`.
";

/// One call of cargo.
#[derive(Debug, Default, PartialEq)]
struct Step {
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

impl Step {
    /// A call with these arguments, separated by blanks.
    fn cargo(arguments: &str) -> Self {
        Step { arguments: arguments.split(' ').map(str::to_owned).collect(), variables: Vec::new() }
    }

    fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.arguments.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }
}

/// The parts of a plan that depend on the machine.
struct Surroundings<'a> {
    rust_flags: &'a str,
    target_folder: &'a str,
    /// Returns where the integration tests of this name are, if there are any.
    tests_of: &'a dyn Fn(&str) -> Option<Tests>,
}

/// Where integration tests are.
#[derive(Debug, PartialEq)]
enum Tests {
    /// In the test binary of this name.
    Binary,
    /// In a file with this name, which belongs to this test binary.
    FileOf(String),
}

/// Returns the calls of cargo that a command consists of, or what is wrong with the command.
fn plan(arguments: &[&str], surroundings: &Surroundings<'_>) -> Result<Vec<Step>, String> {
    match *arguments {
        ["check"] => Ok(["formatting", "clippy", "documentation"]
            .into_iter()
            .flat_map(check)
            .flatten()
            .collect()),
        ["check", step] => check(step).ok_or_else(|| format!("no such step: {step}")),
        ["test", ref rest @ ..] => Ok(vec![test(rest, surroundings)]),
        ["models", ref rest @ ..] => models(rest, surroundings),
        ["deaths", ref rest @ ..] => Ok(deaths(rest)),
        ["stress"] => Ok(vec![stress()]),
        ["stress", seconds] if seconds.parse::<u64>().is_ok() => {
            Ok(vec![stress().env("EXECUTOR_STRESS_SECONDS", seconds)])
        }
        ["stress", ..] => Err("`stress` takes a number of seconds".to_owned()),
        ["bench", name, ref rest @ ..] => {
            let rest = rest.strip_prefix(&["--"]).unwrap_or(rest);
            Ok(vec![
                Step::cargo("bench -p executor --bench")
                    .args([name, "--"])
                    .args(rest.iter().copied()),
            ])
        }
        ["bench"] => Err("`bench` needs the name of a benchmark".to_owned()),
        [unknown, ..] => Err(format!("no such command: {}", [unknown].concat())),
        [] => Err("no command".to_owned()),
    }
}

fn check(step: &str) -> Option<Vec<Step>> {
    Some(match step {
        "formatting" => vec![Step::cargo("fmt --all --check")],
        // The second call has the programs whose processes die at every step. They need a feature.
        // The third one has the library without any: the tests of the workspace enable `tls`.
        "clippy" => vec![
            Step::cargo("clippy --workspace --all-targets -- -D warnings"),
            Step::cargo(
                "clippy -p executor-test-programs --features kill-points --bins -- -D warnings",
            ),
            Step::cargo("clippy -p executor-core --lib -- -D warnings"),
        ],
        "documentation" => {
            vec![Step::cargo("doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings")]
        }
        _ => return None,
    })
}

fn test(arguments: &[&str], surroundings: &Surroundings<'_>) -> Step {
    let Some((&name, filters)) = arguments.split_first() else {
        return Step::cargo("test --workspace");
    };
    let step = match name {
        "doc" => Step::cargo("test --workspace --doc"),
        "accepted" => Step::cargo("test -p executor --test accepted_*"),
        _ => match (surroundings.tests_of)(name) {
            Some(Tests::Binary) => Step::cargo("test -p executor --test").args([name]),
            Some(Tests::FileOf(binary)) => {
                let step = Step::cargo("test -p executor --test").args([binary.as_str()]);
                // The harness runs what any of its filters matches, so the file's name would select
                // more than the filters do.
                if filters.first().is_some_and(|filter| *filter != "--") {
                    return step.args(harness(filters));
                }
                let file = format!("{name}::");
                let all: Vec<_> =
                    [file.as_str()].into_iter().chain(filters.iter().copied()).collect();
                return step.args(harness(&all));
            }
            None => {
                return Step::cargo("test -p executor-core --lib")
                    .args([name])
                    .args(harness(filters));
            }
        },
    };
    step.args(harness(filters))
}

/// Puts the arguments behind the `--` after which they are the test harness's.
fn harness<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let own = arguments.iter().copied().filter(|argument| *argument != "--");
    if arguments.is_empty() { Vec::new() } else { ["--"].into_iter().chain(own).collect() }
}

fn models(arguments: &[&str], surroundings: &Surroundings<'_>) -> Result<Vec<Step>, String> {
    let (checkers, filter) = match *arguments {
        [] => (vec!["loom", "shuttle"], "models"),
        [checker @ ("loom" | "shuttle")] => (vec![checker], "models"),
        [checker @ ("loom" | "shuttle"), filter] => (vec![checker], filter),
        [filter] => (vec!["loom", "shuttle"], filter),
        _ => return Err("`models` takes a checker and a filter".to_owned()),
    };
    // Each `--cfg` has a target folder of its own, so that nothing else is built anew.
    let step = |checker: &str| {
        let flags = format!("{} --cfg executor_{checker}", surroundings.rust_flags);
        let folder = format!("{}/{checker}", surroundings.target_folder);
        Step::cargo("test -p executor-core --release --lib --target-dir")
            .args([folder.as_str(), filter])
            .env("RUSTFLAGS", flags.trim_start())
    };
    Ok(checkers.into_iter().map(step).collect())
}

fn deaths(arguments: &[&str]) -> Vec<Step> {
    let (rounds, filters) = match arguments {
        [first, rest @ ..] if first.parse::<u64>().is_ok() => (Some(*first), rest),
        all => (None, all),
    };
    let step = Step::cargo("test -p executor --test deaths -- --nocapture")
        .args(filters.iter().copied().filter(|filter| *filter != "--"));
    vec![match rounds {
        Some(rounds) => step.env("EXECUTOR_ROUNDS", rounds),
        None => step,
    }]
}

fn stress() -> Step {
    Step::cargo("test -p executor --test stress -- --nocapture")
}

/// Looks for the integration tests of this name in the folder `tests`.
fn tests_of(tests: &Path, name: &str) -> Option<Tests> {
    let file = format!("{name}.rs");
    if tests.join(&file).exists() || tests.join(name).join("main.rs").exists() {
        return Some(Tests::Binary);
    }
    let folders = tests.read_dir().ok()?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let binary = folders
        .filter(|folder| folder.join("main.rs").exists())
        .find(|folder| folder.join(&file).exists())?;
    Some(Tests::FileOf(binary.file_name()?.to_str()?.to_owned()))
}

/// Runs the steps in order. Returns whether all of them succeeded.
fn run(steps: &[Step], root: &Path) -> bool {
    steps.iter().all(|step| {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // What the outer cargo says about this package is not meant for another build.
        let of_this_package =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in
            env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_this_package))
        {
            cargo.env_remove(name);
        }
        cargo.current_dir(root).args(&step.arguments);
        cargo.envs(step.variables.iter().map(|(name, value)| (name, value)));
        let variables = step.variables.iter().map(|(name, value)| format!("{name}='{value}' "));
        eprintln!("+ {}cargo {}", variables.collect::<String>(), step.arguments.join(" "));
        cargo
            .status()
            .inspect_err(|error| eprintln!("cargo: {error}"))
            .is_ok_and(|status| status.success())
    })
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package is in a folder");
    let [rust_flags, target_folder] =
        ["RUSTFLAGS", "CARGO_TARGET_DIR"].map(|name| env::var(name).unwrap_or_default());
    let surroundings = Surroundings {
        rust_flags: &rust_flags,
        target_folder: if target_folder.is_empty() { "target" } else { &target_folder },
        tests_of: &|name| tests_of(&root.join("tests"), name),
    };
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if matches!(arguments[..], ["help" | "--help" | "-h"]) {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match plan(&arguments, &surroundings) {
        Ok(steps) if run(&steps, root) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(mistake) => {
            eprint!("{mistake}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(command: &str) -> Result<Vec<String>, String> {
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let surroundings = Surroundings {
            rust_flags: "-g",
            target_folder: "/t",
            tests_of: &|name| match name {
                "large" | "objects" => Some(Tests::Binary),
                "queue" => Some(Tests::FileOf("objects".to_owned())),
                _ => None,
            },
        };
        let steps = plan(&arguments, &surroundings)?;
        let line = |step: Step| {
            let variables =
                step.variables.into_iter().map(|(name, value)| format!("{name}='{value}' "));
            variables.collect::<String>() + &step.arguments.join(" ")
        };
        Ok(steps.into_iter().map(line).collect())
    }

    #[track_caller]
    fn becomes(command: &str, line: &str) {
        assert_eq!(planned(command).unwrap(), [line]);
    }

    #[test]
    fn a_name_is_a_test_binary_or_a_file_of_one_or_else_a_unit_test() {
        becomes("test", "test --workspace");
        becomes("test large", "test -p executor --test large");
        becomes(
            "test large mib -- --nocapture",
            "test -p executor --test large -- mib --nocapture",
        );
        becomes("test objects", "test -p executor --test objects");
        becomes("test queue", "test -p executor --test objects -- queue::");
        becomes("test queue qu13", "test -p executor --test objects -- qu13");
        becomes(
            "test queue -- --nocapture",
            "test -p executor --test objects -- queue:: --nocapture",
        );
        becomes("test ring::slots", "test -p executor-core --lib ring::slots");
        becomes("test sim -- --nocapture", "test -p executor-core --lib sim -- --nocapture");
        becomes("test doc", "test --workspace --doc");
    }

    #[test]
    fn integration_tests_are_found_by_the_name_of_their_binary_or_file() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests");
        assert_eq!(tests_of(&tests, "large"), Some(Tests::Binary));
        assert_eq!(tests_of(&tests, "objects"), Some(Tests::Binary));
        assert_eq!(tests_of(&tests, "queue"), Some(Tests::FileOf("objects".to_owned())));
        assert_eq!(tests_of(&tests, "support"), None);
    }

    #[test]
    fn models_keep_the_flags_of_the_user_and_have_a_folder_for_each_checker() {
        let loom = "RUSTFLAGS='-g --cfg executor_loom' test -p executor-core --release --lib --target-dir /t/loom ";
        becomes("models loom", &(loom.to_owned() + "models"));
        becomes("models loom ring::models", &(loom.to_owned() + "ring::models"));
        assert_eq!(planned("models").unwrap().len(), 2);
        assert_eq!(planned("models ring::models").unwrap()[0], loom.to_owned() + "ring::models");
    }

    #[test]
    fn deaths_take_rounds_and_filters() {
        let tests = "test -p executor --test deaths -- --nocapture";
        becomes("deaths", tests);
        becomes("deaths 10000", &format!("EXECUTOR_ROUNDS='10000' {tests}"));
        becomes("deaths 9 named", &format!("EXECUTOR_ROUNDS='9' {tests} named"));
        becomes("deaths queue", &format!("{tests} queue"));
    }

    #[test]
    fn a_stress_takes_its_seconds() {
        let test = "test -p executor --test stress -- --nocapture";
        becomes("stress", test);
        becomes("stress 600", &format!("EXECUTOR_STRESS_SECONDS='600' {test}"));
        assert!(planned("stress long").is_err());
    }

    #[test]
    fn benchmarks_get_their_arguments() {
        let line = "bench -p executor --bench peers -- --only burst,map";
        becomes("bench peers --only burst,map", line);
        becomes("bench peers -- --only burst,map", line);
    }

    #[test]
    fn mistakes_are_reported() {
        assert_eq!(planned("check").unwrap().len(), 5);
        becomes("check formatting", "fmt --all --check");
        for mistake in ["", "chek", "check all", "bench", "models miri ring twice"] {
            planned(mistake).unwrap_err();
        }
    }
}
