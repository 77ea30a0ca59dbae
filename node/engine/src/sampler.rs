//! Chooses the next token from logits, as a pure function of the settings, the tokens before and the index.

use crate::frame::Sampling;

/// How many of the last tokens a repetition penalty looks at; llama.cpp's default, so that settings carry over.
const REPETITION_WINDOW: usize = 64;

/// Leaves out tokens this much less likely than the likeliest: together they would come up about once in a
/// hundred answers, and most of a vocabulary is among them.
const WEIGHT_MIN: f32 = 1e-7;

/// Chooses the token with the index `index` of an answer, given the tokens before it; `None` if no logit is a
/// number. `logits` are scratch space afterwards.
pub(crate) fn choose(logits: &mut [f32], before: &[u32], index: u32, sampling: &Sampling) -> Option<u32> {
    penalise_repetition(logits, before, sampling.repetition_penalty);
    penalise_answer(logits, answer(before, index), sampling);
    shift(logits, &sampling.logit_bias);
    let (likeliest, highest) = likeliest(logits)?;
    if sampling.temperature == 0.0 || highest == f32::INFINITY {
        return Some(likeliest);
    }
    let mut candidates = weigh(logits, highest, sampling.temperature);
    keep_top_k(&mut candidates, sampling.top_k as usize);
    keep_top_p(&mut candidates, sampling.top_p);
    draw(&candidates, sampling.seed, index)
}

/// Returns the log of the sum of the exponentials, which turns logits to log probabilities.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f32 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !highest.is_finite() {
        return highest;
    }
    highest + logits.iter().map(|logit| (logit - highest).exp()).sum::<f32>().ln()
}

/// Returns the `count` highest logits with their ids, best first.
pub(crate) fn highest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut all = logits.iter().zip(0..).map(|(logit, id)| (id, *logit)).collect();
    keep_top_k_exactly(&mut all, count);
    all
}

/// Divides positive and multiplies negative logits of recent tokens, once each (Keskar et al. 2019, section 4.1).
fn penalise_repetition(logits: &mut [f32], before: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut recent = before[before.len().saturating_sub(REPETITION_WINDOW)..].to_vec();
    recent.sort_unstable();
    recent.dedup();
    for id in recent {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// Returns the tokens of the answer so far, which follow the prompt's.
fn answer(before: &[u32], index: u32) -> &[u32] {
    &before[before.len().saturating_sub(index as usize)..]
}

/// Subtracts from the logits of tokens that the answer has, once for being there and once for each time.
fn penalise_answer(logits: &mut [f32], answer: &[u32], sampling: &Sampling) {
    let Sampling { presence_penalty, frequency_penalty, .. } = *sampling;
    if presence_penalty == 0.0 && frequency_penalty == 0.0 {
        return;
    }
    let mut sorted = answer.to_vec();
    sorted.sort_unstable();
    for same in sorted.chunk_by(|left, right| left == right) {
        if let Some(logit) = logits.get_mut(same[0] as usize) {
            *logit -= presence_penalty + frequency_penalty * same.len() as f32;
        }
    }
}

/// Adds to the logits of tokens that the request names; one that the model does not have changes nothing.
fn shift(logits: &mut [f32], bias: &[(u32, f32)]) {
    for (id, bias) in bias {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
}

/// Returns the first of the highest logits and its id, passing over NaN.
fn likeliest(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = None;
    for (id, logit) in (0..).zip(logits.iter().copied()) {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, highest)| highest) {
            best = Some((id, logit));
        }
    }
    best
}

fn weigh(logits: &[f32], highest: f32, temperature: f32) -> Vec<(u32, f32)> {
    let weights = logits.iter().map(|logit| ((logit - highest) / temperature).exp());
    (0..).zip(weights).filter(|(_, weight)| *weight >= WEIGHT_MIN).collect()
}

fn keep_top_k(candidates: &mut Vec<(u32, f32)>, top_k: usize) {
    if top_k != 0 {
        keep_top_k_exactly(candidates, top_k);
    }
}

fn keep_top_k_exactly(candidates: &mut Vec<(u32, f32)>, count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, best_first);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(best_first);
}

fn keep_top_p(candidates: &mut Vec<(u32, f32)>, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    candidates.sort_unstable_by(best_first);
    let mut left = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f32>();
    let kept = candidates.iter().take_while(|(_, weight)| {
        let needed = left > 0.0;
        left -= weight;
        needed
    });
    let kept = kept.count();
    candidates.truncate(kept.max(1));
}

fn best_first(left: &(u32, f32), right: &(u32, f32)) -> std::cmp::Ordering {
    right.1.total_cmp(&left.1).then(left.0.cmp(&right.0))
}

/// Draws by an exponential race, the same as the Gumbel-max trick: the smallest of `-ln(u) / weight` wins. Each
/// token has a random number of its own, so that a small difference in one logit seldom changes who wins.
fn draw(candidates: &[(u32, f32)], seed: u64, index: u32) -> Option<u32> {
    let finish = |(id, weight): &(u32, f32)| -uniform(seed, index, *id).ln() / f64::from(*weight);
    candidates.iter().min_by(|left, right| finish(left).total_cmp(&finish(right))).map(|(id, _)| *id)
}

/// Returns a number strictly between 0 and 1 that is a function of its arguments only.
fn uniform(seed: u64, index: u32, id: u32) -> f64 {
    let bits = mix(mix(seed) ^ (u64::from(index) << 32 | u64::from(id)));
    ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

/// The output function of SplitMix64 after one step (Steele, Lea and Flood, OOPSLA 2014).
pub(crate) fn mix(state: u64) -> u64 {
    let mut bits = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampling() -> Sampling {
        Sampling { seed: 7, ..Sampling::default() }
    }

    fn counts(logits: &[f32], sampling: &Sampling) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for index in 0..4000 {
            counts[choose(&mut logits.to_vec(), &[], index, sampling).expect("numbers") as usize] += 1;
        }
        counts
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_likeliest() {
        assert_eq!(choose(&mut [1.0, 3.0, f32::NAN, 3.0], &[], 0, &Sampling::greedy()), Some(1));
    }

    #[test]
    fn logits_without_a_number_are_no_choice_and_no_panic() {
        for sampling in [sampling(), Sampling::greedy()] {
            assert_eq!(choose(&mut [f32::NAN, f32::NEG_INFINITY], &[], 0, &sampling), None);
            assert_eq!(choose(&mut [], &[], 0, &sampling), None);
        }
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let counts = counts(&[0.0, 1.0_f32.exp().ln(), f32::NEG_INFINITY, -1.0], &sampling());
        // e^0 : e^1 : 0 : e^-1 of 4,000, give or take four standard deviations.
        for (count, expected) in counts.iter().zip([979.0, 2661.0, 0.0, 360.0]) {
            assert!((*count as f64 - expected).abs() < 120.0, "{counts:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_out_the_tail() {
        let logits = [2.0, 1.0, 0.0, -1.0];
        let top_k = counts(&logits, &Sampling { top_k: 2, ..sampling() });
        assert!(top_k[0] > 0 && top_k[1] > 0 && top_k[2] == 0 && top_k[3] == 0, "{top_k:?}");
        // 0.64 + 0.24 are not yet 0.9, with 0.09 they are.
        let top_p = counts(&logits, &Sampling { top_p: 0.9, ..sampling() });
        assert!(top_p[2] > 0 && top_p[3] == 0, "{top_p:?}");
        let least = counts(&logits, &Sampling { top_p: 1e-6, ..sampling() });
        assert_eq!(least[0], 4000);
    }

    #[test]
    fn a_repetition_penalty_makes_recent_tokens_less_likely() {
        let penalised = Sampling { repetition_penalty: 1.5, ..Sampling::greedy() };
        assert_eq!(choose(&mut [2.0, 1.9, -1.0], &[0, 0, 0], 0, &penalised), Some(1));
        assert_eq!(choose(&mut [-1.0, -1.2], &[0], 0, &penalised), Some(1));
        assert_eq!(choose(&mut [2.0, 1.9], &[9], 0, &penalised), Some(0));
    }

    #[test]
    fn tokens_of_the_answer_are_penalised_once_and_for_each_time_and_those_of_the_prompt_are_not() {
        let choose = |sampling: &Sampling, before: &[u32], index| {
            choose(&mut [2.0, 1.9, 0.0], before, index, sampling)
        };
        let presence = Sampling { presence_penalty: 0.2, ..Sampling::greedy() };
        assert_eq!(choose(&presence, &[0], 0), Some(0));
        assert_eq!(choose(&presence, &[2, 0], 1), Some(1));
        let frequency = Sampling { frequency_penalty: 0.06, ..Sampling::greedy() };
        assert_eq!(choose(&frequency, &[0], 1), Some(0));
        assert_eq!(choose(&frequency, &[0, 0], 2), Some(1));
        let more = Sampling { frequency_penalty: -2.0, ..Sampling::greedy() };
        assert_eq!(choose(&more, &[2, 2], 2), Some(2));
    }

    #[test]
    fn a_bias_forbids_and_forces_tokens_and_one_for_an_unknown_token_changes_nothing() {
        let biased = |bias: &[(u32, f32)]| Sampling { logit_bias: bias.to_vec(), ..Sampling::greedy() };
        assert_eq!(choose(&mut [2.0, 1.9], &[], 0, &biased(&[(0, -100.0)])), Some(1));
        assert_eq!(choose(&mut [2.0, -50.0], &[], 0, &biased(&[(1, 100.0)])), Some(1));
        assert_eq!(choose(&mut [2.0, 1.9], &[], 0, &biased(&[(9, 100.0)])), Some(0));
    }

    #[test]
    fn a_known_seed_makes_a_known_choice() {
        // Pins the random numbers: another provider must be able to continue the same answer.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        let chosen: Vec<_> =
            (0..8).map(|index| choose(&mut [0.0; 100], &[], index, &sampling()).expect("numbers")).collect();
        assert_eq!(chosen, [43, 60, 71, 62, 16, 68, 71, 32]);
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let logits = [1.0, -2.0, 300.0, 299.0];
        let sum: f32 = logits.iter().map(|logit| (logit - log_sum_exp(&logits)).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5);
        assert_eq!(highest(&logits, 2), [(2, 300.0), (3, 299.0)]);
    }

    proptest! {
        #[test]
        fn any_valid_settings_choose_a_token_with_a_number(
            logits in prop::collection::vec(any::<f32>(), 1..50),
            temperature in 0.0_f32..=2.0,
            top_p in f32::MIN_POSITIVE..=1.0,
            top_k in 0_u32..60,
            repetition_penalty in 0.01_f32..=2.0,
            presence_penalty in -2.0_f32..=2.0,
            frequency_penalty in -2.0_f32..=2.0,
            bias in -100.0_f32..=100.0,
            seed: u64,
            index: u32,
        ) {
            let logit_bias = vec![(1, bias)];
            let stop = Vec::new();
            let sampling = Sampling {
                temperature, top_p, top_k, repetition_penalty, presence_penalty, frequency_penalty, logit_bias, stop, seed,
            };
            if let Some(id) = choose(&mut logits.clone(), &[0, 1, 2], index, &sampling) {
                prop_assert!(!logits[id as usize].is_nan());
            }
        }
    }
}
