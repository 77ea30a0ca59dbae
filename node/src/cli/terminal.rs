//! The one place that prints: data to standard output, everything else to standard error.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::api::views::ErrorView;
use crate::exit::Failure;
use crate::models::Progress;

/// Where a command's words go.
pub struct Terminal {
    json: bool,
    data_to_person: bool,
    messages_to_person: bool,
    colour: bool,
    data: Mutex<Box<dyn Write + Send>>,
    messages: Mutex<Box<dyn Write + Send>>,
}

impl Terminal {
    /// Uses the streams of this process.
    #[must_use]
    pub fn of_process(json: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            json,
            data_to_person: io::stdout().is_terminal(),
            messages_to_person: io::stderr().is_terminal(),
            colour: !set("NO_COLOR") && !dumb,
            data: Mutex::new(Box::new(io::stdout())),
            messages: Mutex::new(Box::new(io::stderr())),
        }
    }

    /// Returns whether `--json` was given.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns whether standard error may have colours.
    #[must_use]
    pub fn colours_messages(&self) -> bool {
        self.colour && self.messages_to_person
    }

    /// Writes data as it is, at once.
    pub fn data(&self, text: &str) -> io::Result<()> {
        let mut stream = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(text.as_bytes())?;
        stream.flush()
    }

    /// Writes lines of data.
    pub fn lines(&self, text: &str) -> io::Result<()> {
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        self.data(&format!("{text}{end}"))
    }

    /// Writes one object as JSON.
    pub fn object(&self, value: &impl Serialize) -> io::Result<()> {
        let json = if self.data_to_person {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        self.lines(&json.map_err(io::Error::other)?)
    }

    /// Writes a value as JSON or as people read it.
    pub fn show<T: Serialize>(&self, value: &T, words: impl FnOnce(&T) -> String) -> io::Result<()> {
        if self.json { self.object(value) } else { self.lines(&words(value)) }
    }

    /// Writes a message.
    pub fn message(&self, text: &str) {
        let mut stream = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nowhere to complain that complaints cannot be written.
        let _ = writeln!(stream, "{text}").and_then(|()| stream.flush());
    }

    /// Writes why the command failed.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            let view = serde_json::to_string(&ErrorView::from(failure.clone()));
            return self.message(&view.unwrap_or_else(|_| failure.to_string()));
        }
        let label = if self.colours_messages() { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        self.message(&format!("{label} {failure}"));
    }

    /// Shows what is going on: a bar on a terminal, and elsewhere a line for each step.
    #[must_use]
    pub fn bar(&self, what: &str) -> Bar<'_> {
        let target = if self.messages_to_person && !self.json {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{prefix} {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_prefix(what.to_owned());
        Bar { terminal: self, bar, what: what.to_owned(), step: Mutex::new("") }
    }
}

/// Shows the progress of one thing; gone when dropped.
pub struct Bar<'a> {
    terminal: &'a Terminal,
    bar: ProgressBar,
    what: String,
    step: Mutex<&'static str>,
}

impl Bar<'_> {
    /// Takes a step.
    pub fn step(&self, progress: &Progress) {
        match progress {
            Progress::Waiting => self.enter("waiting for another process that fetches it"),
            Progress::Fetching { done, total } => {
                self.enter("fetching");
                self.position(*done, *total);
            }
            Progress::Checking { done, total } => {
                self.enter("checking");
                self.position(*done, *total);
            }
            Progress::Retrying { attempt, reason, in_ms } => {
                let wait = Duration::from_millis(*in_ms).as_secs_f32();
                let text = format!("{}: interrupted ({reason}); attempt {attempt} in {wait:.1} s", self.what);
                self.bar.suspend(|| self.terminal.message(&text));
            }
        }
    }

    fn position(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    fn enter(&self, step: &'static str) {
        let mut current = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == step {
            return;
        }
        *current = step;
        self.bar.set_message(step);
        if self.bar.is_hidden() && !self.terminal.json {
            self.terminal.message(&format!("{}: {step}", self.what));
        }
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Lays out rows under a head so that columns line up.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(head.to_vec())).chain(rows).collect()
}

/// Lays out names and values so that values line up; values that are empty are left out.
#[must_use]
pub fn facts(facts: &[(&str, String)]) -> String {
    let facts: Vec<_> = facts.iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// Returns the beginning of an id, enough to tell it from others.
#[must_use]
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Returns a node's name, where it has one, and the beginning of its id.
#[must_use]
pub fn named(name: &str, id: &str) -> String {
    if name.is_empty() { short(id).to_owned() } else { format!("{name} {}", short(id)) }
}

/// Returns a model's name, or the beginning of its id where only that is known.
#[must_use]
pub fn model(name: &str) -> &str {
    let is_id = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { short(name) } else { name }
}

/// Returns a number of bytes as people read it.
#[must_use]
pub fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// Returns a duration as people read it.
#[must_use]
pub fn duration(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    /// Keeps what a command prints.
    #[derive(Clone, Default)]
    pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("alone").clone()).expect("text")
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("alone").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Terminal {
        /// Returns a terminal and what goes to its data and its messages.
        pub(crate) fn kept(json: bool) -> (Self, Kept, Kept) {
            let (data, messages) = (Kept::default(), Kept::default());
            let terminal = Self {
                json,
                data_to_person: false,
                messages_to_person: false,
                colour: false,
                data: Mutex::new(Box::new(data.clone())),
                messages: Mutex::new(Box::new(messages.clone())),
            };
            (terminal, data, messages)
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["bbbb".to_owned(), "2".to_owned()]];

        assert_eq!(table(&["id", "n"], &rows), "id    n\na     1\nbbbb  2\n");
        assert_eq!(facts(&[("a", "1".to_owned()), ("bb", String::new())]), "a  1\n");
    }

    #[test]
    fn no_bar_is_drawn_off_a_terminal() {
        let (terminal, data, messages) = Terminal::kept(false);

        let bar = terminal.bar("m");
        for done in 0..100 {
            bar.step(&Progress::Fetching { done, total: 100 });
        }
        drop(bar);

        assert_eq!(data.text(), "");
        assert_eq!(messages.text(), "m: fetching\n");
    }

    #[test]
    fn a_failure_is_an_object_for_scripts() {
        let (terminal, data, messages) = Terminal::kept(true);

        terminal.failure(&Failure::usage("no"));

        assert_eq!(data.text(), "");
        assert!(messages.text().starts_with(r#"{"error":{"message":"no","type":"invalid_request_error""#));
    }
}
