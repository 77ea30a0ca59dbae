//! The result of each step, as a table for people and as JSON for programs.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::steps::Step;

/// How a step ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict", content = "why")]
pub(super) enum Verdict {
    /// It ran, and what it says holds.
    Passed,
    /// It ran and does not hold, or could not be run though it must.
    Failed(String),
    /// It did not run, and why.
    Skipped(String),
}

/// One step and its result.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// Name of the step.
    pub(super) step: &'static str,
    /// How long it took.
    pub(super) seconds: f64,
    /// How it ended.
    #[serde(flatten)]
    pub(super) verdict: Verdict,
}

impl Row {
    /// Returns the row of a step that was not started.
    pub(super) fn skipped(step: &'static str, why: String) -> Self {
        Self { step, seconds: 0.0, verdict: Verdict::Skipped(why) }
    }
}

impl fmt::Display for Row {
    /// Writes one line: the whole of a long reason was said when it came up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = |why: &str| why.lines().next().unwrap_or_default().to_owned();
        write!(f, "{:<12} {:>7.1} s  ", self.step, self.seconds)?;
        match &self.verdict {
            Verdict::Passed => write!(f, "passed"),
            Verdict::Failed(why) => write!(f, "FAILED: {}", first(why)),
            Verdict::Skipped(why) => write!(f, "skipped: {}", first(why)),
        }
    }
}

/// All results, in the order of the steps.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// The results.
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// Counts the steps that failed.
    pub(super) fn failed(&self) -> usize {
        self.rows.iter().filter(|row| matches!(row.verdict, Verdict::Failed(_))).count()
    }

    /// Returns the table; its last line is the count, in a form that programs may rely on.
    pub(super) fn table(&self) -> String {
        let rows: String = self.rows.iter().map(|row| format!("{row}\n")).collect();
        format!("\n{rows}\n{}", self.count())
    }

    /// Returns the results as JSON.
    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&serde_json::json!({ "steps": self.rows, "count": self.count() }))?)
    }

    fn count(&self) -> String {
        let passed = self.rows.iter().filter(|row| matches!(row.verdict, Verdict::Passed)).count();
        let skipped = self.rows.len() - passed - self.failed();
        format!("{passed} passed, {} failed, {skipped} skipped", self.failed())
    }
}

/// Returns the names of `steps` and what each says.
pub(super) fn list(steps: &[Step], json: bool) -> Result<String> {
    if json {
        let steps: Vec<_> =
            steps.iter().map(|step| serde_json::json!({ "step": step.name, "about": step.about })).collect();
        return Ok(serde_json::to_string_pretty(&steps)?);
    }
    Ok(steps.iter().map(|step| format!("{:<12} {}", step.name, step.about)).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::{Report, Row, Verdict};

    fn report() -> Report {
        let row = |step, verdict| Row { step, seconds: 1.25, verdict };
        let failed = Verdict::Failed("exit status 1".to_owned());
        Report {
            rows: vec![
                row("fmt", Verdict::Passed),
                row("test", failed),
                Row::skipped("cuda", "no nvcc".to_owned()),
            ],
        }
    }

    #[test]
    fn the_table_ends_with_the_count_and_says_why() {
        let table = report().table();

        assert_eq!(table.lines().last(), Some("1 passed, 1 failed, 1 skipped"));
        assert!(table.contains("skipped: no nvcc") && table.contains("FAILED: exit status 1"), "{table}");
    }

    #[test]
    fn the_json_carries_every_row_and_its_reason() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();

        assert_eq!(json["steps"][0]["verdict"], "passed");
        assert_eq!(json["steps"][2]["why"], "no nvcc");
        assert_eq!(json["count"], "1 passed, 1 failed, 1 skipped");
    }
}
