//! Results as a table for people: a line for each number, with its floor or target where there is one.

use serde::Serialize;

use super::release;
use super::samples::Spread;

/// Where and when it was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    commit: String,
    cores: usize,
    processor: String,
    /// Runnable processes over the last minute before the benchmark: above 0 others had a share of the machine.
    load_before: f64,
}

impl Machine {
    pub(super) fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = read("/proc/loadavg");
        Self {
            commit: release::commit(),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            processor: processor.map_or("unknown", |(_, name)| name).to_owned(),
            load_before: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
        }
    }
}

/// The numbers of one benchmark in the order in which they are printed.
pub(super) struct Table {
    about: String,
    rows: Vec<[String; 6]>,
}

impl Table {
    pub(super) fn new(machine: &Machine) -> Self {
        let Machine { commit, cores, processor, load_before } = machine;
        let about = format!("commit {commit}, {cores} cores of {processor}, load before {load_before:.2}");
        Self { about, rows: vec![["", "median", "p99", "max", "runs", "target"].map(str::to_owned)] }
    }

    /// Adds times in milliseconds.
    pub(super) fn times(&mut self, what: &str, spread: &Spread, target: &str) {
        let ms = |value: f64| format!("{value:.2} ms");
        // The 99th percentile of fewer runs is the maximum.
        let p99 = if spread.runs >= 100 { ms(spread.p99) } else { String::new() };
        self.row(what, [ms(spread.p50), p99, ms(spread.max), spread.runs.to_string()], target);
    }

    /// Adds one number.
    pub(super) fn number(&mut self, what: &str, value: &str, runs: usize, target: &str) {
        self.row(what, [value.to_owned(), String::new(), String::new(), runs.to_string()], target);
    }

    fn row(&mut self, what: &str, [median, p99, max, runs]: [String; 4], target: &str) {
        self.rows.push([what.to_owned(), median, p99, max, runs, target.to_owned()]);
    }

    pub(super) fn print(&self) {
        println!("{}", self.about);
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        for row in &self.rows {
            let [what, numbers @ .., target] = row;
            let mut line = format!("{what:<0$}", widths[0]);
            for (number, width) in numbers.iter().zip(&widths[1..]) {
                line += &format!("  {number:>width$}");
            }
            println!("{}", format!("{line}  {target}").trim_end());
        }
    }
}

/// Returns a target and whether it was reached.
pub(super) fn target(text: &str, reached: bool) -> String {
    format!("{text}: {}", if reached { "reached" } else { "MISSED" })
}
