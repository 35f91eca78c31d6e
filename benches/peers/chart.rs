//! The chart of the README: tasks per second for several ways of using a pool, one bar for each
//! peer, on a logarithmic scale.
//!
//! ```text
//!  Tasks per second, two workers
//!  all submitted, then all results      one group for each workload of `GROUPS`
//!      executor ████████████ 1 800 076
//!         rayon ████████ 768 164        in a group: executor, processes, threads; the fastest first
//!  256 in flight …
//! ```

use std::fmt::Write;

use serde_json::Value;

use crate::{
    facts,
    table::{Results, number},
    workload::PROCESS_PEERS,
};

const WIDTH: f64 = 760.0;
/// The x coordinates at which bars begin, and at which the longest bar ends.
const LEFT: f64 = 190.0;
const RIGHT: f64 = 670.0;
const TOP: f64 = 72.0;
/// The heights of a group's title, of a bar with the space below it, and of a bar.
const TITLE: f64 = 26.0;
const ROW: f64 = 22.0;
const BAR: f64 = 15.0;
/// The space below a group.
const GAP: f64 = 10.0;

/// Each peer with the colour of its bar.
const BARS: &[(&str, &str)] = &[
    ("executor", "#c2410c"),
    ("procspawn", "#64748b"),
    ("multiprocessing.Pool", "#64748b"),
    ("ProcessPoolExecutor", "#64748b"),
    ("loky", "#64748b"),
    ("pebble", "#64748b"),
    ("mpire", "#64748b"),
    ("rayon", "#b6c2d1"),
    ("rayon, oneshot", "#b6c2d1"),
    ("spawn_blocking", "#b6c2d1"),
];

/// The workloads of the chart: name, figure, and the title of the group.
const GROUPS: &[(&str, &str, &str)] = &[
    ("burst", "tasks/s", "all submitted, then all results"),
    ("window", "tasks/s", "256 in flight, results in order"),
    ("callbacks", "tasks/s", "a callback for each task"),
    ("await-64", "awaits/s", ".await in 64 tokio tasks"),
    ("map", "items/s", "map"),
];

/// A workload's title with its bars: peer, colour and rate.
struct Group {
    title: &'static str,
    bars: Vec<(&'static str, &'static str, f64)>,
}

impl Group {
    fn height(&self) -> f64 {
        TITLE + ROW * self.bars.len() as f64 + GAP
    }
}

/// The groups of the workloads that were run.
fn groups(results: &Results) -> Vec<Group> {
    // `executor` comes first, then processes, then threads. In each kind, the fastest comes first.
    let kind = |peer: &str| {
        if peer == "executor" { 0 } else { 2 - i32::from(PROCESS_PEERS.contains(&peer)) }
    };
    let group = |&(workload, figure, title)| {
        let mut bars: Vec<_> = BARS
            .iter()
            .filter_map(|&(peer, colour)| {
                Some((peer, colour, results.median(workload, peer, figure)?))
            })
            .collect();
        bars.sort_by(|a, b| kind(a.0).cmp(&kind(b.0)).then(b.2.total_cmp(&a.2)));
        Group { title, bars }
    };
    GROUPS.iter().map(group).filter(|group| !group.bars.is_empty()).collect()
}

pub(crate) fn svg(results: &Results, facts: &Value) -> String {
    let groups = groups(results);
    let rates = || groups.iter().flat_map(|group| &group.bars).map(|bar| bar.2.max(1.0).log10());
    let low = rates().fold(f64::INFINITY, f64::min).min(3.0).floor();
    let high = rates().fold(low + 1.0, f64::max).ceil();
    let x = |exponent: f64| LEFT + (RIGHT - LEFT) * (exponent - low) / (high - low);
    let bottom = TOP + groups.iter().map(Group::height).sum::<f64>();
    let height = bottom + 52.0;

    let mut svg = String::new();
    let mut put = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(svg, "{line}");
    };
    put(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" role="img" aria-label="Tasks per second of executor and its peers">"#
    ));
    put(format_args!(r##"<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>"##));
    put(format_args!(
        r##"<text x="24" y="34" font-size="17" font-weight="600" fill="#0f172a">Tasks per second, two workers</text>"##
    ));
    put(format_args!(
        r##"<text x="24" y="56" font-size="12.5" fill="#475569">no-op tasks; each line to the right is ten times as many</text>"##
    ));
    for exponent in low as i32..=high as i32 {
        let at = x(f64::from(exponent));
        put(format_args!(
            r##"<line x1="{at:.1}" y1="{TOP:.1}" x2="{at:.1}" y2="{bottom:.1}" stroke="#e2e8f0"/>"##
        ));
        let label = match exponent {
            6.. => format!("{} M", 10_u64.pow(exponent as u32 - 6)),
            3.. => format!("{} k", 10_u64.pow(exponent as u32 - 3)),
            _ => 10_u64.pow(exponent.max(0) as u32).to_string(),
        };
        put(format_args!(
            r##"<text x="{at:.1}" y="{:.1}" font-size="11.5" fill="#64748b" text-anchor="middle">{label}</text>"##,
            bottom + 15.0
        ));
    }
    let mut top = TOP;
    for group in &groups {
        put(format_args!(
            r##"<text x="24" y="{:.1}" font-size="13" font-weight="600" fill="#0f172a" stroke="#ffffff" stroke-width="4" paint-order="stroke">{}</text>"##,
            top + 17.0,
            group.title
        ));
        for (i, (peer, colour, rate)) in group.bars.iter().enumerate() {
            let top = top + TITLE + ROW * i as f64;
            let end = x(rate.max(1.0).log10()).max(LEFT + 2.0);
            let text = top + BAR / 2.0 + 4.5;
            let weight = if *peer == "executor" { "700" } else { "400" };
            put(format_args!(
                r##"<text x="{:.1}" y="{text:.1}" font-size="12.5" font-weight="{weight}" fill="#0f172a" text-anchor="end">{peer}</text>"##,
                LEFT - 10.0
            ));
            put(format_args!(
                r#"<rect x="{LEFT}" y="{top:.1}" width="{:.1}" height="{BAR}" rx="2" fill="{colour}"/>"#,
                end - LEFT
            ));
            put(format_args!(
                r##"<text x="{:.1}" y="{text:.1}" font-size="12" font-weight="{weight}" fill="#0f172a" stroke="#ffffff" stroke-width="4" paint-order="stroke">{}</text>"##,
                end + 7.0,
                number(*rate)
            ));
        }
        top += group.height();
    }
    legend(&mut put, bottom + 38.0, facts);
    put(format_args!("</svg>"));
    svg
}

/// The last line: what the colours mean, and the machine.
fn legend(put: &mut impl FnMut(std::fmt::Arguments<'_>), y: f64, facts: &Value) {
    let mut at = 24.0;
    for (colour, text, wide) in
        [("#64748b", "processes", 84.0), ("#b6c2d1", "threads of the same process", 190.0)]
    {
        put(format_args!(
            r#"<rect x="{at}" y="{:.1}" width="10" height="10" rx="2" fill="{colour}"/>"#,
            y - 9.0
        ));
        put(format_args!(
            r##"<text x="{}" y="{y:.1}" font-size="11.5" fill="#475569">{text}</text>"##,
            at + 15.0
        ));
        at += wide;
    }
    let machine = facts::line(facts)
        .split(", rustc")
        .next()
        .unwrap_or_default()
        .replace('&', "&amp;")
        .replace('<', "&lt;");
    put(format_args!(
        r##"<text x="{}" y="{y:.1}" font-size="11.5" fill="#64748b" text-anchor="end">{machine}</text>"##,
        WIDTH - 24.0
    ));
}
