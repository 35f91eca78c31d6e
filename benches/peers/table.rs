//! Collects figures and prints them: a table for each workload, a table of the goals, and JSON
//! lines.

use std::{collections::BTreeMap, fmt::Write};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::workload::{self, Figures, Workload};

/// The values of all repetitions, by workload, peer and figure.
#[derive(Default)]
pub(crate) struct Results(BTreeMap<(&'static str, &'static str, String), Vec<f64>>);

struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Results {
    pub(crate) fn add(&mut self, workload: &'static str, peer: &'static str, figures: Figures) {
        for (name, value) in figures {
            if let Some(value) = value.as_f64() {
                self.0.entry((workload, peer, name)).or_default().push(value);
            }
        }
    }

    pub(crate) fn median(&self, workload: &'static str, peer: &str, figure: &str) -> Option<f64> {
        let mut found =
            self.0.iter().filter(|(key, _)| key.0 == workload && key.1 == peer && key.2 == figure);
        found.next().map(|(_, values)| spread(values).median)
    }

    fn of<'a>(&'a self, workload: &'a str) -> impl Iterator<Item = (&'a str, &'a str, &'a [f64])> {
        self.0
            .iter()
            .filter(move |(key, _)| key.0 == workload)
            .map(|(key, values)| (key.1, key.2.as_str(), values.as_slice()))
    }
}

fn spread(values: &[f64]) -> Spread {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    };
    Spread { median, least: sorted[0], most: sorted[sorted.len() - 1] }
}

/// Formats a value with about three significant digits, and spaces between groups of three digits.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) =
        text.split_once('.').map_or((text.as_str(), String::new()), |(a, b)| (a, format!(".{b}")));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 && digit.is_ascii_digit() {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped + &rest
}

/// The table of a workload: figure by figure, with the peers in the workload's order. `executor /
/// it` is the ratio that was measured, `demanded` the ratio that is a goal.
pub(crate) fn workload(workload: &Workload, results: &Results) -> String {
    if workload.name == "grid" {
        return grid(results);
    }
    let mut figures: Vec<&str> = Vec::new();
    for (_, figure, _) in results.of(workload.name) {
        if !figures.contains(&figure) {
            figures.push(figure);
        }
    }
    // Sort by number: "64 KiB" comes before "1024 KiB".
    figures
        .sort_by_key(|figure| figure.split(' ').next().and_then(|word| word.parse::<u64>().ok()));
    let goals = workload::goals(results);
    let mut table =
        table(&["figure", "peer", "median", "least", "most", "executor / it", "demanded"]);
    for figure in figures {
        let ours = results.median(workload.name, "executor", figure);
        for peer in workload.peers {
            let Some((.., values)) =
                results.of(workload.name).find(|row| row.0 == *peer && row.1 == figure)
            else {
                continue;
            };
            let Spread { median, least, most } = spread(values);
            let ratio =
                ours.filter(|_| *peer != "executor").map(|ours| format!("{:.2}", ours / median));
            let demanded: Vec<&str> = goals
                .iter()
                .filter(|goal| goal.workload == workload.name)
                .filter_map(|goal| goal.demanded.as_ref())
                .filter(|demanded| demanded.peer == *peer && demanded.figure == figure)
                .map(|demanded| demanded.ratio.as_str())
                .collect();
            table.add_row([
                figure.to_owned(),
                (*peer).to_owned(),
                number(median),
                number(least),
                number(most),
                ratio.unwrap_or_default(),
                demanded.join(", "),
            ]);
        }
    }
    table.to_string()
}

/// The table of the grid: one row for each number of workers, one column for each number of
/// threads.
fn grid(results: &Results) -> String {
    let points: BTreeMap<(u64, u64), f64> = results
        .of("grid")
        .filter_map(|(_, figure, values)| {
            let mut words = figure.split(' ');
            let (workers, _, threads) =
                (words.next()?.parse().ok()?, words.next()?, words.next()?.parse().ok()?);
            Some(((workers, threads), spread(values).median))
        })
        .collect();
    let mut axis: Vec<u64> = points.keys().map(|point| point.0).collect();
    axis.dedup();
    let head: Vec<String> = std::iter::once("tasks/s, workers \\ threads".to_owned())
        .chain(axis.iter().map(u64::to_string))
        .collect();
    let mut table = table(&head.iter().map(String::as_str).collect::<Vec<_>>());
    for workers in &axis {
        let cells = axis.iter().map(|threads| {
            points.get(&(*workers, *threads)).copied().map_or(String::new(), number)
        });
        table.add_row(std::iter::once(workers.to_string()).chain(cells));
    }
    table.to_string()
}

/// The table of goals: each goal, the figure, and whether it was reached.
pub(crate) fn goals(results: &Results) -> String {
    let mut table =
        table(&["workload", "figure", "executor", "range", "goal", "is", "ratio", "reached"]);
    for goal in workload::goals(results) {
        let values =
            results.of(goal.workload).find(|row| row.0 == "executor" && row.1 == goal.figure);
        let Spread { least, most, .. } =
            spread(values.expect("a goal is about a figure of ours").2);
        table.add_row([
            goal.workload.to_owned(),
            goal.figure.clone(),
            number(goal.value),
            format!("{}–{}", number(least), number(most)),
            goal.text.clone(),
            number(goal.bound),
            format!("{:.2}", goal.ratio()),
            if goal.reached() { "yes" } else { "no" }.to_owned(),
        ]);
    }
    format!("Goals; a ratio of 1 or more is reached.\n{table}")
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(head.iter().copied());
    for (i, name) in head.iter().enumerate() {
        let text = matches!(*name, "workload" | "figure" | "peer" | "goal" | "reached");
        if let Some(column) = table.column_mut(i).filter(|_| !text) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

pub(crate) fn json_lines(results: &Results, facts: &Value) -> String {
    let goals = workload::goals(results);
    let mut lines = format!("{facts}\n");
    for ((workload, peer, figure), values) in &results.0 {
        let Spread { median, least, most } = spread(values);
        let mut line = json!({
            "workload": workload, "peer": peer, "figure": figure,
            "median": median, "min": least, "max": most, "runs": values,
        });
        let judged: Vec<Value> = goals
            .iter()
            .filter(|goal| *peer == "executor" && goal.workload == *workload && goal.figure == *figure)
            .map(|goal| {
                json!({ "goal": goal.text, "is": goal.bound, "ratio": goal.ratio(), "reached": goal.reached() })
            })
            .collect();
        if !judged.is_empty() {
            line["goals"] = judged.into();
        }
        let _ = writeln!(lines, "{line}");
    }
    lines
}
