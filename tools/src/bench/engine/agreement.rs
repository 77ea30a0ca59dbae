//! How far the answers of two devices to the same prompts agree.

use serde::Serialize;

use super::worker::Answer;

/// What two devices have in common that always took the likeliest token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Agreement {
    prompts: usize,
    /// Answers that are the same to their end.
    same: usize,
    /// Tokens before the first difference, in all answers together.
    tokens: usize,
    /// The largest difference between the log probabilities of these tokens, in nats.
    logprob_difference_max: f32,
    differences: Vec<Difference>,
}

/// The first token at which two answers differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Difference {
    prompt: usize,
    token: usize,
    /// By how much the first device preferred its token to the next likeliest, in nats: near 0 it might have taken
    /// either.
    margin: f32,
}

impl Agreement {
    /// Compares answers with two alternatives for each token; the first device is the reference.
    pub(super) fn of(reference: &[Answer], other: &[Answer]) -> Self {
        let mut agreement = Self {
            prompts: reference.len(),
            same: 0,
            tokens: 0,
            logprob_difference_max: 0.0,
            differences: Vec::new(),
        };
        for (prompt, (reference, other)) in reference.iter().zip(other).enumerate() {
            agreement.add(prompt, reference, other);
        }
        agreement
    }

    fn add(&mut self, prompt: usize, reference: &Answer, other: &Answer) {
        let same = reference.ids.iter().zip(&other.ids).take_while(|(left, right)| left == right).count();
        self.tokens += same;
        for (left, right) in reference.logprobs.iter().zip(&other.logprobs).take(same) {
            let difference = (left.logprob - right.logprob).abs();
            self.logprob_difference_max = self.logprob_difference_max.max(difference);
        }
        if same == reference.ids.len() && same == other.ids.len() {
            self.same += 1;
            return;
        }
        let margin = reference.logprobs.get(same).map_or(0.0, |token| match token.top.as_slice() {
            [first, second, ..] => first.logprob - second.logprob,
            _ => 0.0,
        });
        self.differences.push(Difference { prompt, token: same, margin });
    }

    /// Returns lines of a table: what, and the value.
    pub(super) fn lines(&self) -> Vec<(String, String)> {
        let mut lines = vec![
            (
                "answers that are the CPU's to the end".to_owned(),
                format!("{} of {}", self.same, self.prompts),
            ),
            ("  tokens before the first difference".to_owned(), self.tokens.to_string()),
            (
                "  largest difference of their log probabilities".to_owned(),
                format!("{:.4}", self.logprob_difference_max),
            ),
        ];
        lines.extend(self.differences.iter().map(|difference| {
            let what = format!("  prompt {} differs at token {}", difference.prompt, difference.token);
            (what, format!("CPU's margin {:.4}", difference.margin))
        }));
        lines
    }
}

#[cfg(test)]
mod tests {
    use engine::frame::{Alternative, TokenLogprob};

    use super::*;

    /// An answer whose tokens have this log probability, and alternatives 0.5 below.
    fn answer(ids: &[u32], logprob: f32) -> Answer {
        let alternative = |id, logprob| Alternative { id, logprob, bytes: Vec::new() };
        let token = |id: &u32| TokenLogprob {
            logprob,
            bytes: Vec::new(),
            top: vec![alternative(*id, logprob), alternative(id + 1, logprob - 0.5)],
        };
        Answer { ids: ids.to_vec(), logprobs: ids.iter().map(token).collect(), ..Answer::default() }
    }

    #[test]
    fn the_same_answers_agree_to_the_end() {
        let answers = [answer(&[1, 2, 3], -1.0), answer(&[], -1.0)];

        let agreement = Agreement::of(&answers, &answers);

        assert_eq!((agreement.prompts, agreement.same, agreement.tokens), (2, 2, 3));
        assert_eq!((agreement.logprob_difference_max, agreement.differences), (0.0, Vec::new()));
    }

    #[test]
    fn an_answer_that_differs_or_goes_on_says_where_and_by_how_much() {
        let reference = [answer(&[1, 2, 3], -1.0), answer(&[1], -1.0)];
        let other = [answer(&[1, 9, 3], -1.25), answer(&[1, 2], -1.0)];

        let agreement = Agreement::of(&reference, &other);

        assert_eq!((agreement.same, agreement.tokens), (0, 2));
        // What follows a difference is another text and not compared.
        assert_eq!(agreement.logprob_difference_max, 0.25);
        let expected = [
            Difference { prompt: 0, token: 1, margin: 0.5 },
            Difference { prompt: 1, token: 1, margin: 0.0 },
        ];
        assert_eq!(agreement.differences, expected);
    }
}
