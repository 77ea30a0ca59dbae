//! Turns the bytes of tokens into text that may be sent: whole characters, and nothing of a stop string.

/// Collects one answer's bytes and releases what is certain.
pub(crate) struct TextStream {
    /// Bytes that begin a character.
    partial: Vec<u8>,
    /// Whole characters that may begin a stop string.
    held: String,
    stop: Vec<String>,
}

/// What may be sent after a token.
#[derive(Debug, PartialEq)]
pub(crate) enum Released {
    /// Text, and there may be more.
    More(String),
    /// The text before a stop string, which ends the answer.
    Stopped(String),
}

impl TextStream {
    pub(crate) fn new(stop: &[String]) -> Self {
        Self { partial: Vec::new(), held: String::new(), stop: stop.to_vec() }
    }

    /// Takes a token's bytes and returns the text that is now certain.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Released {
        self.partial.extend_from_slice(bytes);
        self.take_whole_characters();
        if let Some(end) = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.partial.clear();
            let mut text = std::mem::take(&mut self.held);
            text.truncate(end);
            return Released::Stopped(text);
        }
        let kept = self.held.split_off(self.held.len() - self.stop_prefix_length());
        Released::More(std::mem::replace(&mut self.held, kept))
    }

    /// Returns what was held back, when nothing can follow; an incomplete character becomes U+FFFD.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        text
    }

    fn take_whole_characters(&mut self) {
        let mut rest = self.partial.as_slice();
        for chunk in self.partial.utf8_chunks() {
            self.held.push_str(chunk.valid());
            rest = &rest[chunk.valid().len()..];
            if chunk.invalid().is_empty() || begins_a_character(rest) {
                break;
            }
            self.held.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[chunk.invalid().len()..];
        }
        self.partial = rest.to_vec();
    }

    /// Returns the length of the longest end of `held` that begins a stop string.
    fn stop_prefix_length(&self) -> usize {
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest);
        (first..self.held.len())
            .filter(|start| self.held.is_char_boundary(*start))
            .find(|start| self.stop.iter().any(|stop| stop.starts_with(&self.held[*start..])))
            .map_or(0, |start| self.held.len() - start)
    }
}

/// Says whether more bytes could make `bytes` a character.
fn begins_a_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(stop: &[&str]) -> TextStream {
        TextStream::new(&stop.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>())
    }

    fn more(text: &str) -> Released {
        Released::More(text.to_owned())
    }

    #[test]
    fn a_character_cut_in_four_comes_whole_with_its_last_byte() {
        let mut stream = stream(&[]);
        let emoji = "🙂".as_bytes();
        assert_eq!(stream.push(&[b'a', emoji[0]]), more("a"));
        assert_eq!(stream.push(&emoji[1..2]), more(""));
        assert_eq!(stream.push(&emoji[2..3]), more(""));
        assert_eq!(stream.push(&[emoji[3], b'b']), more("🙂b"));
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn broken_bytes_become_replacement_characters_without_holding_up_the_rest() {
        let mut stream = stream(&[]);
        assert_eq!(stream.push(b"a\xff\xfeb"), more("a\u{fffd}\u{fffd}b"));
        assert_eq!(stream.push(b"\xf0\x9f"), more(""));
        assert_eq!(stream.push(b"c"), more("\u{fffd}c"));
        assert_eq!(stream.push(b"\xe2\x82"), more(""));
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_sent() {
        let mut stream = stream(&["END", "\n\n"]);
        assert_eq!(stream.push(b"the E"), more("the "));
        assert_eq!(stream.push(b"N"), more(""));
        assert_eq!(stream.push(b"D of it"), Released::Stopped(String::new()));
    }

    #[test]
    fn a_false_alarm_is_sent_with_the_token_that_ends_it() {
        let mut stream = stream(&["END"]);
        assert_eq!(stream.push(b"EN"), more(""));
        assert_eq!(stream.push(b"EN"), more("EN"));
        assert_eq!(stream.push(b"!"), more("EN!"));
        assert_eq!(stream.push(b"E"), more(""));
        assert_eq!(stream.finish(), "E");
    }

    #[test]
    fn the_earliest_of_several_stop_strings_counts() {
        assert_eq!(stream(&["c", "bc"]).push(b"abcd"), Released::Stopped("a".to_owned()));
    }

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_gives_the_same_text(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0..64_usize) {
            let mut stream = stream(&["ab"]);
            let cut = cut.min(bytes.len());
            let mut text = String::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                match stream.push(part) {
                    Released::More(more) => text.push_str(&more),
                    Released::Stopped(last) => {
                        text.push_str(&last);
                        let whole = String::from_utf8_lossy(&bytes);
                        prop_assert_eq!(Some(text.as_str()), whole.split("ab").next());
                        return Ok(());
                    }
                }
            }
            text.push_str(&stream.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
