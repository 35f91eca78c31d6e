//! Facts about the machine on which the figures were measured.

use std::{collections::BTreeMap, process::Command};

use serde_json::{Value, json};

pub(crate) fn machine(versions: &BTreeMap<String, String>) -> Value {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // Keep only the release number: the rest of a kernel's name may name a place.
    let kernel: String = kernel.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .arg("--version")
        .output();
    let rustc = rustc
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    json!({
        "machine": {
            "cpu": cpu,
            "cores": std::thread::available_parallelism().map_or(1, usize::from),
            "kernel": kernel,
            "rustc": rustc,
            "python": versions,
        }
    })
}

/// The same facts in one line of text.
pub(crate) fn line(facts: &Value) -> String {
    let machine = &facts["machine"];
    let text = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
    let mut peers: Vec<&str> = machine["python"]
        .as_object()
        .into_iter()
        .flat_map(|map| map.values())
        .filter_map(Value::as_str)
        .collect();
    peers.sort_unstable();
    peers.dedup();
    let peers: String = peers.iter().map(|peer| format!(", {peer}")).collect();
    format!(
        "{}, {} cores, Linux {}, {}{peers}",
        text("cpu"),
        machine["cores"],
        text("kernel"),
        text("rustc")
    )
}
