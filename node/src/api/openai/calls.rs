//! Finds the calls of tools in an answer as it comes.
//!
//! The provider's grammar keeps calls to one way of writing; whatever is written otherwise is the provider's fault.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::frame::{Generate, Prompt};
use engine::tools::{BEFORE_ARGUMENTS, BEFORE_NAME, CLOSE, NAME_BYTES_MAX, OPEN, Tool};
use serde::de::IgnoredAny;

/// What part of an answer is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Words beside the calls.
    Text(String),
    /// A call begins.
    Call {
        /// Its number in the answer.
        index: usize,
        /// The tool.
        name: String,
    },
    /// More of the arguments of the call with this number.
    Arguments {
        /// The call.
        index: usize,
        /// JSON, part of it.
        text: String,
    },
}

/// A call that is written as no model that is kept to its form writes one, or that is of none of the tools.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads an answer part by part.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    /// The tools that may be called.
    names: Arc<BTreeSet<String>>,
    /// What was not handed out yet.
    held: String,
    place: Place,
    /// Calls that have begun.
    begun: usize,
    /// The arguments so far of the call that is read.
    arguments: String,
}

#[derive(Clone, Debug)]
enum Place {
    /// In words; a call may follow.
    Words,
    /// At the beginning of an answer that is of a form or calls.
    Start,
    /// In an answer of a form, in which nothing is a call.
    Formed,
    /// After a call's beginning, before its arguments.
    Name,
    Arguments(Nesting),
    /// After arguments, before the call's end.
    Close,
    /// After a call: another one or nothing.
    After,
}

impl Calls {
    /// Returns what reads the answers to a request; none if they can have no calls.
    pub(super) fn of(generate: &Generate) -> Option<Self> {
        let Prompt::Tools(chat) = &generate.prompt else { return None };
        let names: BTreeSet<String> = chat.callable().map(|tool: &Tool| tool.name.clone()).collect();
        chat.may_call().then(|| Self::new(names, generate.form.is_some()))
    }

    fn new(names: BTreeSet<String>, is_formed: bool) -> Self {
        let place = if is_formed { Place::Start } else { Place::Words };
        Self { names: Arc::new(names), held: String::new(), place, begun: 0, arguments: String::new() }
    }

    /// Takes the next part of the answer; returns what is certain by now.
    pub(super) fn take(&mut self, text: &str) -> Result<Vec<Piece>, Malformed> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces)? {}
        Ok(pieces)
    }

    /// Returns the words that were held back because a call might have begun with them.
    pub(super) fn rest(&mut self) -> Option<Piece> {
        let is_words =
            matches!(self.place, Place::Words | Place::Start | Place::Formed) && !self.held.is_empty();
        is_words.then(|| Piece::Text(std::mem::take(&mut self.held)))
    }

    /// Says whether there are calls, and all that were handed out have all their arguments.
    pub(super) fn are_whole(&self) -> bool {
        self.begun > 0 && !self.is_cut()
    }

    /// Says whether the arguments of a call broke off.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self.place, Place::Arguments(_))
    }

    /// Reads on by one place; says whether more can be read.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> Result<bool, Malformed> {
        match &mut self.place {
            Place::Words => Ok(self.words(pieces)),
            Place::Start => Ok(self.start()),
            Place::Formed => {
                pieces.extend(self.rest());
                Ok(false)
            }
            Place::Name => self.name(pieces),
            Place::Arguments(nesting) => {
                let end = nesting.read(&self.held);
                let text: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
                self.arguments.push_str(&text);
                if !text.is_empty() {
                    pieces.push(Piece::Arguments { index: self.begun - 1, text });
                }
                if end.is_none() {
                    return Ok(false);
                }
                self.place = Place::Close;
                if is_object(&std::mem::take(&mut self.arguments)) { Ok(true) } else { Err(Malformed) }
            }
            Place::Close => self.expect(CLOSE, Place::After),
            Place::After => self.expect(&format!("\n{OPEN}"), Place::Name),
        }
    }

    /// An answer of a form is a call only if it begins with one: texts in it may have anything.
    fn start(&mut self) -> bool {
        if let Some(rest) = self.held.strip_prefix(OPEN) {
            self.held = rest.to_owned();
            self.place = Place::Name;
            return true;
        }
        let is_certain = !OPEN.starts_with(&self.held);
        if is_certain {
            self.place = Place::Formed;
        }
        is_certain
    }

    fn words(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let (end, found) = match self.held.find(OPEN) {
            Some(at) => (at, true),
            None => (self.held.len() - beginning(&self.held, OPEN), false),
        };
        if end > 0 {
            pieces.push(Piece::Text(self.held.drain(..end).collect()));
        }
        if found {
            self.held.drain(..OPEN.len());
            self.place = Place::Name;
        }
        found
    }

    fn name(&mut self, pieces: &mut Vec<Piece>) -> Result<bool, Malformed> {
        let Some(after) = self.held.strip_prefix(BEFORE_NAME) else {
            return if BEFORE_NAME.starts_with(&self.held) { Ok(false) } else { Err(Malformed) };
        };
        let Some(end) = after.find('"') else {
            return if after.len() <= NAME_BYTES_MAX { Ok(false) } else { Err(Malformed) };
        };
        let (name, rest) = after.split_at(end);
        let Some(arguments) = rest.strip_prefix(BEFORE_ARGUMENTS) else {
            return if BEFORE_ARGUMENTS.starts_with(rest) { Ok(false) } else { Err(Malformed) };
        };
        if !self.names.contains(name) {
            return Err(Malformed);
        }
        pieces.push(Piece::Call { index: self.begun, name: name.to_owned() });
        self.held = arguments.to_owned();
        self.begun += 1;
        self.place = Place::Arguments(Nesting::default());
        Ok(true)
    }

    fn expect(&mut self, wanted: &str, then: Place) -> Result<bool, Malformed> {
        if let Some(rest) = self.held.strip_prefix(wanted) {
            self.held = rest.to_owned();
            self.place = then;
            return Ok(true);
        }
        if wanted.starts_with(&self.held) { Ok(false) } else { Err(Malformed) }
    }
}

fn is_object(json: &str) -> bool {
    json.starts_with('{') && serde_json::from_str::<IgnoredAny>(json).is_ok()
}

/// Returns how many bytes at the end of `text` may begin `wanted`.
fn beginning(text: &str, wanted: &str) -> usize {
    (1..wanted.len()).rev().find(|length| text.ends_with(&wanted[..*length])).unwrap_or(0)
}

/// Where in a JSON object the reader is.
#[derive(Clone, Debug, Default)]
struct Nesting {
    depth: u32,
    in_text: bool,
    escaped: bool,
}

impl Nesting {
    /// Reads on; returns the number of bytes up to the object's end, if it is there.
    fn read(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                b'{' | b'[' if !self.in_text => self.depth += 1,
                b'}' | b']' if !self.in_text => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.depth == 0 {
                return Some(at + 1);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &str = "Let < me see.<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"a\": \"}\\\"]é\", \"b\": [{}]}}\n</tool_call>\n\
        <tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";

    fn reader(is_formed: bool) -> Calls {
        Calls::new(["f", "weather", "time"].map(str::to_owned).into(), is_formed)
    }

    /// Reads an answer in parts; returns its words, and the calls with their arguments.
    fn read(parts: &[&str]) -> Result<(String, Vec<(String, String)>), Malformed> {
        let (mut calls, mut words, mut found) = (reader(false), String::new(), Vec::new());
        let mut pieces = Vec::new();
        for part in parts {
            pieces.extend(calls.take(part)?);
        }
        pieces.extend(calls.rest());
        for piece in pieces {
            match piece {
                Piece::Text(text) => words += &text,
                Piece::Call { index, name } => {
                    assert_eq!(index, found.len());
                    found.push((name, String::new()));
                }
                Piece::Arguments { index, text } => found[index].1 += &text,
            }
        }
        Ok((words, found))
    }

    #[test]
    fn words_that_only_look_like_a_call_are_words() {
        for text in ["", "a < b", "<tool_calls", "<tool_", "x<tool_call"] {
            assert_eq!(read(&[text]), Ok((text.to_owned(), Vec::new())));
        }
    }

    #[test]
    fn whatever_no_grammar_lets_through_is_malformed() {
        let head = "<tool_call>\n{\"name\": \"f\", \"arguments\": ";
        for text in [
            "<tool_call>{}".to_owned(),
            "<tool_call>\n{\"name\": f".to_owned(),
            format!("<tool_call>\n{{\"name\": \"{}", "f".repeat(65)),
            "<tool_call>\n{\"name\": \"f\", \"args\"".to_owned(),
            format!("{head}{{}}]"),
            format!("{head}5"),
            format!("{head}[]"),
            format!("{head}{{\"a\": tru}}"),
            "<tool_call>\n{\"name\": \"none_such\", \"arguments\": ".to_owned(),
            format!("{head}{{}}}}\n</tool_call> and more"),
        ] {
            assert_eq!(reader(false).take(&text), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn an_answer_of_a_form_is_a_call_only_if_it_begins_with_one() {
        let text = "{\"a\": \"<tool_call>\\n{}\"}";
        for cut in [0, 1, 10, 15] {
            let mut calls = reader(true);
            let mut pieces = calls.take(&text[..cut]).expect("words");
            pieces.extend(calls.take(&text[cut..]).expect("words"));
            pieces.extend(calls.rest());
            let words = pieces.into_iter().map(|piece| match piece {
                Piece::Text(text) => text,
                Piece::Call { .. } | Piece::Arguments { .. } => panic!("there are no calls"),
            });
            assert_eq!(words.collect::<String>(), text);
        }
        let pieces = reader(true).take(&ANSWER["Let < me see.".len()..]).expect("calls");
        assert_eq!(pieces[0], Piece::Call { index: 0, name: "weather".to_owned() });
    }

    #[test]
    fn calls_are_whole_once_all_their_arguments_came() {
        for (end, are_whole) in
            [("Let <", false), ("{\"a\": \"}", false), ("\"b\": [{}]}", true), ("{\"name\": \"time", true)]
        {
            let mut calls = reader(false);
            let end = ANSWER.rfind(end).expect("part of it") + end.len();
            calls.take(&ANSWER[..end]).expect("well formed");
            assert_eq!(calls.are_whole(), are_whole, "{}", &ANSWER[..end]);
        }
    }

    proptest! {
        #[test]
        fn any_cut_of_an_answer_gives_the_same_calls(mut cuts in prop::collection::vec(0..ANSWER.len(), 0..8)) {
            cuts.retain(|cut| ANSWER.is_char_boundary(*cut));
            cuts.extend([0, ANSWER.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|cut| &ANSWER[cut[0]..cut[1]]).collect();
            let (words, calls) = read(&parts).expect("well formed");
            prop_assert_eq!(words, "Let < me see.");
            prop_assert_eq!(calls.len(), 2);
            prop_assert_eq!(&calls[0], &("weather".to_owned(), "{\"a\": \"}\\\"]é\", \"b\": [{}]}".to_owned()));
            prop_assert_eq!(&calls[1], &("time".to_owned(), "{}".to_owned()));
        }

        #[test]
        fn no_answer_whatever_it_is_makes_a_panic(text in "(<tool_call>|\n|\\{\"name\": \"|[{}\"\\\\a-c]|\", \"arguments\": ){0,20}") {
            let _ = reader(false).take(&text);
            let _ = reader(true).take(&text);
        }
    }
}
