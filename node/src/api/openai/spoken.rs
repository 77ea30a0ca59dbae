//! Which log probabilities are of the words of an answer, and which of calls in it, of which clients get none.

use std::collections::VecDeque;

use engine::frame::TokenLogprob;

/// Tokens whose log probabilities wait for it to be known whether they are words. Words come before the first call.
#[derive(Clone, Debug, Default)]
pub(super) struct Spoken {
    waiting: VecDeque<TokenLogprob>,
    /// Bytes of the tokens that were handed out.
    handed: usize,
    /// Bytes of the words so far.
    said: usize,
}

impl Spoken {
    /// Takes the tokens of the next part of the answer, whatever they are of.
    pub(super) fn take(&mut self, tokens: Vec<TokenLogprob>) {
        self.waiting.extend(tokens);
    }

    /// Returns the tokens that end within the words so far, of which `words` are the next.
    pub(super) fn said(&mut self, words: &str) -> Vec<TokenLogprob> {
        self.said += words.len();
        let mut said = Vec::new();
        while let Some(token) =
            self.waiting.pop_front_if(|token| self.handed + token.bytes.len() <= self.said)
        {
            self.handed += token.bytes.len();
            said.push(token);
        }
        said
    }

    /// Returns the token that is partly of the words, once no more come.
    pub(super) fn rest(&mut self) -> Option<TokenLogprob> {
        let is_begun = self.handed < self.said;
        self.waiting.pop_front().filter(|_| is_begun)
    }
}

/// Returns those of a whole answer that are of its words.
pub(super) fn of_words(tokens: Vec<TokenLogprob>, words: &str) -> Vec<TokenLogprob> {
    let mut spoken = Spoken::default();
    spoken.take(tokens);
    let mut said = spoken.said(words);
    said.extend(spoken.rest());
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(texts: &[&str]) -> Vec<TokenLogprob> {
        let token =
            |text: &&str| TokenLogprob { logprob: -1.0, bytes: text.as_bytes().to_vec(), top: Vec::new() };
        texts.iter().map(token).collect()
    }

    fn text(tokens: &[TokenLogprob]) -> String {
        tokens
            .iter()
            .map(|token| String::from_utf8_lossy(&token.bytes).into_owned())
            .collect::<Vec<_>>()
            .join("|")
    }

    #[test]
    fn tokens_of_words_are_told_from_those_of_calls_as_the_words_come() {
        let mut spoken = Spoken::default();
        spoken.take(tokens(&["Let", " me", " <"]));

        assert_eq!(text(&spoken.said("Let m")), "Let", "the rest of a token may be of no words");
        assert_eq!(text(&spoken.said("e ")), " me");
        spoken.take(tokens(&["tool_call>", "{}"]));
        assert_eq!(text(&spoken.said("")), "");
        assert_eq!(
            spoken.rest().map(|token| token.bytes),
            Some(b" <".to_vec()),
            "it has the end of the words"
        );
        assert_eq!(text(&of_words(tokens(&["a", "b<", "x"]), "ab")), "a|b<");
        assert_eq!(text(&of_words(tokens(&["<", "x"]), "")), "");
    }
}
