//! Collects the figures of all rounds and prints tables of their medians.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};

use crate::{
    measure::{Figure, Figures, Work},
    memory::Most,
    ours, python, redis,
};

/// The peers, in the order of the tables.
const PEERS: [&str; 5] =
    [ours::NAME, ours::NAME_FAR, python::NAME, redis::NAME, redis::NAME_PIPELINED];

/// The goals of the section `dict`: number of clients, which of ours, peer, and how many times its
/// rate.
const GOALS: [(usize, &str, &str, f64); 5] = [
    (1, ours::NAME, python::NAME, 15.0),
    (1, ours::NAME, redis::NAME, 4.0),
    (8, ours::NAME, python::NAME, 10.0),
    (1, ours::NAME_FAR, redis::NAME, 1.0),
    (8, ours::NAME_FAR, redis::NAME, 1.0),
];
/// The goal of the memory of one object.
const BYTES_MAX: f64 = 300.0;

/// The values of all rounds, by number of the work, peer and figure.
#[derive(Default)]
pub(crate) struct Results(BTreeMap<(usize, &'static str, Figure), Vec<f64>>);

impl Results {
    pub(crate) fn add(&mut self, work: usize, peer: &'static str, figures: Figures) {
        for (figure, value) in figures {
            self.0.entry((work, peer, figure)).or_default().push(value);
        }
    }

    fn sorted(&self, work: usize, peer: &'static str, figure: Figure) -> Option<Vec<f64>> {
        let mut values = self.0.get(&(work, peer, figure))?.clone();
        values.sort_by(f64::total_cmp);
        Some(values)
    }

    fn median(&self, work: usize, peer: &'static str, figure: Figure) -> Option<f64> {
        self.sorted(work, peer, figure).map(|values| values[values.len() / 2])
    }
}

/// Rates and latencies. With several clients, `slowest / fastest` is the ratio of their times.
pub(crate) fn calls(works: &[Work], results: &Results) -> String {
    let mut table = table(&[
        "call",
        "peer",
        "calls/s",
        "least–most",
        "MB/s",
        "p50 µs",
        "p99 µs",
        "worst µs",
        "slowest / fastest",
        "executor / it",
    ]);
    for (i, work) in works.iter().enumerate() {
        let ours = results.median(i, ours::NAME, Figure::CallsPerSecond);
        for peer in PEERS {
            let Some(rates) = results.sorted(i, peer, Figure::CallsPerSecond) else { continue };
            let rate = rates[rates.len() / 2];
            let cell = |figure| results.median(i, peer, figure).map(number).unwrap_or_default();
            let only_if =
                |is_wanted: bool, text: String| if is_wanted { text } else { String::new() };
            let ratio = ours.map(|ours| format!("{:.2}", ours / rate)).unwrap_or_default();
            table.add_row([
                work.to_string(),
                peer.to_owned(),
                number(rate),
                format!("{}–{}", number(rates[0]), number(rates[rates.len() - 1])),
                only_if(work.bytes > 0, number(rate * work.bytes as f64 / 1e6)),
                cell(Figure::P50),
                cell(Figure::P99),
                cell(Figure::Worst),
                only_if(work.clients > 1, cell(Figure::Spread)),
                only_if(peer != ours::NAME, ratio),
            ]);
        }
    }
    format!("Calls, medians of the rounds\n{table}")
}

/// The processor time of one call.
pub(crate) fn processor_times(works: &[Work], results: &Results) -> String {
    let mut table = table(&["call", "peer", "µs in the client", "µs in the server", "sum"]);
    for (i, work) in works.iter().enumerate() {
        for peer in PEERS {
            let times = [Figure::InClient, Figure::InServer];
            if let [Some(client), Some(server)] = times.map(|time| results.median(i, peer, time)) {
                let cells = [client, server, client + server].map(number);
                table.add_row([work.to_string(), peer.to_owned()].into_iter().chain(cells));
            }
        }
    }
    format!("\nProcessor time of one call\n{table}")
}

/// The table of goals: each goal, the figure, and whether it was reached.
pub(crate) fn goals(works: &[Work], results: &Results, memory: Option<&Most>) -> String {
    let mut table = table(&["figure", "executor", "goal", "is", "ratio", "reached"]);
    let mut add = |figure: String, is: f64, goal: String, bound: f64, ratio: f64| {
        let reached = if ratio >= 1.0 { "yes" } else { "no" }.to_owned();
        table.add_row([figure, number(is), goal, number(bound), format!("{ratio:.2}"), reached]);
    };
    for (clients, name, peer, factor) in GOALS {
        for (i, work) in works.iter().enumerate() {
            if work.section != "dict" || work.clients != clients {
                continue;
            }
            let rates = [name, peer].map(|peer| results.median(i, peer, Figure::CallsPerSecond));
            if let [Some(rate), Some(theirs)] = rates {
                let bound = theirs * factor;
                let goal = format!("at least {factor} × {peer}");
                let figure = match name {
                    ours::NAME => format!("{work}, calls/s"),
                    name => format!("{work}, calls/s ({name})"),
                };
                add(figure, rate, goal, bound, rate / bound);
            }
        }
    }
    if let Some(Most { kind, bytes }) = memory {
        let goal = format!("at most {BYTES_MAX}");
        add(format!("bytes an object, most: {kind}"), *bytes, goal, BYTES_MAX, BYTES_MAX / bytes);
    }
    format!("Goals; a ratio of 1 or more is reached.\n{table}")
}

/// Formats a value with about three significant digits, and spaces between groups of three digits.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let whole = text.find('.').unwrap_or(text.len());
    let mut grouped = String::new();
    for (i, digit) in text.chars().enumerate() {
        if i > 0 && i < whole && (whole - i) % 3 == 0 && grouped != "-" {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

pub(crate) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(head.iter().copied());
    for (i, name) in head.iter().enumerate() {
        let text = matches!(*name, "call" | "peer" | "kind" | "figure" | "goal" | "reached");
        if let Some(column) = table.column_mut(i).filter(|_| !text) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
