//! Chooses the provider for a job from what providers say and what this node has measured, and keeps the reasons.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::advert::Advert;
use crate::ids::{DomainId, ModelId, NodeId};
use crate::job::{Constraints, JobSpec, Sort};
use crate::licence::open_licence;
use crate::model::Modality;
use crate::mutant;
use crate::price::Price;
use crate::scheduler::Refusal;
use crate::signed::Verified;
use crate::time::Time;

/// Most adverts kept; a stranger's that ends first makes way, so that memory does not grow with the network.
pub const ADVERTS_MAX: usize = 1024;

/// Most providers whose conduct is remembered.
const OUTCOMES_MAX: usize = 4096;

/// How long a provider that failed is left alone.
pub const COOL_DOWN_MS: u64 = 10_000;

/// Longest time for which a provider that fails again and again comes after every other one.
pub const BACK_OFF_MS_MAX: u64 = 60 * 60 * 1000;

/// Failures in a row after which what a provider did before counts for nothing.
const FAILURES_MAX: u32 = 3;

/// Longest life of an advert that is believed: the three renewals that honest ones get, and half a minute between clocks.
pub const ADVERT_LIFE_MS_MAX: u64 = 120_000;

/// Why a provider was not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Does not serve the model.
    NotServed,
    /// Its advert ran out.
    Stale,
    /// Its licence for the model is not valid.
    Licence,
    /// The request excludes it.
    Excluded,
    /// Costs more than the request allows.
    Price,
    /// Prompt and answer do not fit its context.
    Context,
    /// Failed a moment ago.
    Unhealthy,
    /// Not connected.
    Unreachable,
    /// Did not answer in time.
    NoAnswer,
    /// Turned the job down.
    Refused(Refusal),
    /// Its terms are not what the network allows.
    BadTerms,
    /// Another one was better.
    Outbid,
}

/// One provider that was considered for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Considered {
    /// The provider.
    pub provider: NodeId,
    /// Why it was not chosen; none for the chosen one.
    pub gate: Option<Gate>,
    /// Estimated total time in milliseconds.
    pub estimate_ms: u64,
    /// Worst case price in nano-credits, markup included.
    pub price: u64,
    /// 0 for whoever did a job for us, 1 for others; above that, where promises have led nowhere, a number drawn for it.
    pub rank: u64,
    /// Thousandths of tokens per second of one answer, as it says.
    pub decode_milli: u64,
}

impl Considered {
    /// Returns the node itself, which serves its own jobs at once and for nothing.
    #[must_use]
    pub(crate) fn ourselves(me: NodeId) -> Self {
        Self { provider: me, gate: None, estimate_ms: 0, price: 0, rank: 0, decode_milli: 0 }
    }
}

/// What this node knows of providers.
#[derive(Debug, Clone, Default)]
pub struct Router {
    adverts: BTreeMap<NodeId, Verified<Advert>>,
    outcomes: BTreeMap<NodeId, Outcome>,
}

/// What this node has measured of a provider.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    failed_at: Option<Time>,
    /// When it was last seen at work for us, if it had failed before.
    worked_at: Option<Time>,
    /// Failures since it last did a job.
    failures: u32,
    /// It did a job.
    served: bool,
    /// Smoothed generation rate over finished jobs, in tokens per 1,000 seconds.
    decode_milli: Option<u64>,
    /// When the measurement or failure was made, for forgetting the oldest.
    updated: Time,
}

impl Router {
    /// Takes an advert; returns whether it is news. When there is no room, a stranger's makes way and never that of a
    /// node which is `connected`: keys cost nothing, connections do.
    pub fn learn(&mut self, advert: Verified<Advert>, connected: impl Fn(NodeId) -> bool, now: Time) -> bool {
        let known = self.known_sequence(advert.node);
        if advert.sequence <= known || !is_fresh(&advert, now) {
            return false;
        }
        let is_new = !self.adverts.contains_key(&advert.node);
        if is_new && self.adverts.len() >= ADVERTS_MAX && !self.forget_stranger(connected) {
            return false;
        }
        self.adverts.insert(advert.node, advert);
        true
    }

    /// Says whether an advert holds, and is not older than what is known of its node.
    #[must_use]
    pub fn is_current(&self, advert: &Advert, now: Time) -> bool {
        is_fresh(advert, now) && advert.sequence >= self.known_sequence(advert.node)
    }

    fn known_sequence(&self, node: NodeId) -> u64 {
        self.adverts.get(&node).map_or(0, |known| known.sequence)
    }

    /// Forgets what a provider said, because it is gone.
    pub fn forget(&mut self, provider: NodeId) {
        self.adverts.remove(&provider);
    }

    /// Returns what providers say that still holds.
    pub fn adverts(&self, now: Time) -> impl Iterator<Item = &Verified<Advert>> + '_ {
        self.adverts.values().filter(move |advert| advert.valid_to > now)
    }

    /// Returns what `provider` says.
    #[must_use]
    pub fn advert(&self, provider: NodeId) -> Option<&Verified<Advert>> {
        self.adverts.get(&provider)
    }

    /// Returns the models that providers call `name`.
    #[must_use]
    pub fn named(&self, name: &str, now: Time) -> Vec<ModelId> {
        let offers = self.adverts(now).flat_map(|advert| &advert.models).filter(|offer| offer.name == name);
        let mut models: Vec<_> = offers.map(|offer| offer.model).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// Learns that a job ended well, and how many tokens it generated in how many milliseconds, if it generated any.
    pub fn succeeded(&mut self, provider: NodeId, generated: Option<(u64, u64)>, now: Time) {
        let outcome = self.outcome(provider, now);
        if let Some((tokens, ms)) = generated {
            let rate = tokens.saturating_mul(1_000_000) / ms.max(1);
            outcome.decode_milli =
                Some(outcome.decode_milli.map_or(rate, |before| before / 4 * 3 + rate / 4));
        }
        outcome.served = true;
        outcome.failed_at = None;
        outcome.failures = 0;
    }

    /// Learns that a provider has just generated for us. If it failed before that it is not down, and one that does many jobs
    /// at once and lost one of them need not be left alone; returns whether it was until now.
    pub fn worked(&mut self, provider: NodeId, now: Time) -> bool {
        let Some(outcome) = self.outcomes.get_mut(&provider) else { return false };
        let was_cooling_down = outcome.is_cooling_down(now);
        outcome.worked_at = Some(now);
        was_cooling_down && !outcome.is_cooling_down(now)
    }

    /// Learns that a provider failed; it is left alone for a while.
    pub fn failed(&mut self, provider: NodeId, now: Time) {
        let outcome = self.outcome(provider, now);
        outcome.failed_at = Some(now);
        outcome.failures = outcome.failures.saturating_add(1);
    }

    /// Returns every provider of the job's model with its gate, the usable ones first, best first.
    ///
    /// Time is the whole job's, not the first token's; with [`Sort::Balanced`], being twice as slow as the fastest weighs
    /// as much as being twice as dear as the cheapest.
    #[must_use]
    pub fn rank(
        &self,
        spec: &JobSpec,
        domain: DomainId,
        connected: impl Fn(NodeId) -> bool,
        now: Time,
    ) -> Vec<Considered> {
        let serving = self.adverts.values().filter(|advert| advert.offer(spec.model).is_some());
        let mut considered: Vec<_> =
            serving.map(|advert| self.consider(advert, spec, domain, connected(advert.node), now)).collect();
        self.leave_alone(&mut considered, now);
        sort(&mut considered, &spec.constraints);
        considered
    }

    /// Passes over those that failed again and again, for as long as there is anybody else: whoever promises much and
    /// does nothing is tried ever less, and whoever is the only one is tried on.
    fn leave_alone(&self, considered: &mut [Considered], now: Time) {
        let avoided =
            |c: &Considered| self.outcomes.get(&c.provider).is_some_and(|outcome| outcome.is_avoided(now));
        if considered.iter().any(|c| c.gate.is_none() && !avoided(c)) {
            for other in considered.iter_mut().filter(|c| c.gate.is_none() && avoided(c)) {
                other.gate = Some(Gate::Unhealthy);
            }
        }
    }

    fn consider(
        &self,
        advert: &Advert,
        spec: &JobSpec,
        domain: DomainId,
        connected: bool,
        now: Time,
    ) -> Considered {
        let outcome = self.outcomes.get(&advert.node).copied().unwrap_or_default();
        let offer = advert.offer(spec.model);
        let price = offer.map_or(Price::default(), |offer| offer.price);
        let worst = spec.worst_price(&price).unwrap_or(u64::MAX);
        let decode = outcome.decode_milli.or(offer.map(|offer| offer.decode_milli)).unwrap_or(0).max(1);
        let prefill = offer.map_or(0, |offer| offer.prefill_milli).max(1);
        let tokens_in = spec.input.bytes / BYTES_PER_TOKEN;
        let generated = match spec.input.modality {
            // Vectors come with what is read.
            Modality::Embedding => 0,
            Modality::Text | Modality::Speech | Modality::Image => u64::from(spec.max_tokens),
        };
        let estimate_ms = (tokens_in.saturating_mul(1_000_000) / prefill)
            .saturating_add(generated.saturating_mul(1_000_000) / decode);
        let excluded = spec.constraints.ignore.contains(&advert.node)
            || (!spec.constraints.only.is_empty() && !spec.constraints.only.contains(&advert.node));
        let gate = match offer {
            None => Some(Gate::NotServed),
            Some(offer) if offer.modality != spec.input.modality => Some(Gate::NotServed),
            Some(_) if is_over(advert, now) => Some(Gate::Stale),
            Some(offer) if offer.licence != open_licence(spec.model, domain) => Some(Gate::Licence),
            Some(_) if excluded => Some(Gate::Excluded),
            // Before the price: whoever asks for more tokens than there is room for shall hear that, and not what they cost.
            Some(offer) if generated >= u64::from(offer.context_tokens) => Some(Gate::Context),
            Some(_) if spec.constraints.price_max.is_some_and(|most| worst > most) => Some(Gate::Price),
            Some(_) if outcome.is_cooling_down(now) => Some(Gate::Unhealthy),
            Some(_) if !connected => Some(Gate::Unreachable),
            Some(_) => None,
        };
        let rank = u64::from(!outcome.is_proven());
        Considered { provider: advert.node, gate, estimate_ms, price: worst, rank, decode_milli: decode }
    }

    fn outcome(&mut self, provider: NodeId, now: Time) -> &mut Outcome {
        if self.outcomes.len() >= OUTCOMES_MAX && !self.outcomes.contains_key(&provider) {
            let oldest =
                self.outcomes.iter().min_by_key(|(_, outcome)| outcome.updated).map(|(node, _)| *node);
            oldest.map(|node| self.outcomes.remove(&node));
        }
        let outcome = self.outcomes.entry(provider).or_default();
        outcome.updated = now;
        outcome
    }

    fn forget_stranger(&mut self, connected: impl Fn(NodeId) -> bool) -> bool {
        let strangers = self.adverts.values().filter(|advert| !connected(advert.node));
        let earliest = strangers.min_by_key(|advert| advert.valid_to).map(|advert| advert.node);
        earliest.is_some_and(|node| self.adverts.remove(&node).is_some())
    }
}

impl Outcome {
    /// Says whether it did a job for us, and has not failed too often since.
    const fn is_proven(&self) -> bool {
        self.served && self.failures < FAILURES_MAX
    }

    /// Says whether it comes after every other one: twice as long after each failure.
    fn is_avoided(&self, now: Time) -> bool {
        let doublings = self.failures.saturating_sub(1).min(10);
        let avoided_ms = (COOL_DOWN_MS << doublings).min(BACK_OFF_MS_MAX);
        self.failed_at.is_some_and(|at| now.since_ms(at) < avoided_ms)
    }

    /// Says whether it failed a moment ago and has generated nothing since.
    fn is_cooling_down(&self, now: Time) -> bool {
        let is_idle_since = |at| self.worked_at.is_none_or(|worked_at| worked_at <= at);
        let is_recent = |at| now.since_ms(at) < COOL_DOWN_MS || mutant::is_in("no-ageing");
        self.failed_at.is_some_and(|at| is_recent(at) && (is_idle_since(at) || mutant::is_in("down-at-work")))
    }
}

fn is_over(advert: &Advert, now: Time) -> bool {
    advert.valid_to <= now && !mutant::is_in("ignore-expiry")
}

fn is_fresh(advert: &Advert, now: Time) -> bool {
    !is_over(advert, now) && advert.valid_to <= now.plus_ms(ADVERT_LIFE_MS_MAX)
}

/// Text in the languages of the web has about four bytes a token; only for estimates of time, never for money.
const BYTES_PER_TOKEN: u64 = 4;

/// Orders providers: usable ones first, of these the ones that the request names first in its order, then whoever did a
/// job for us, then by what the request weighs.
pub fn sort(considered: &mut [Considered], by: &Constraints) {
    let usable = || considered.iter().filter(|c| c.gate.is_none());
    let fastest = usable().map(|c| c.estimate_ms).min().unwrap_or(1).max(1);
    let cheapest = usable().map(|c| c.price).min().unwrap_or(1).max(1);
    let relative = |value: u64, best: u64| u128::from(value).saturating_mul(1_000) / u128::from(best);
    considered.sort_by_key(|c| {
        let (time, price) = (relative(c.estimate_ms, fastest), relative(c.price, cheapest));
        let score = match by.sort {
            Sort::Balanced => (time + price, time),
            Sort::Price => (price, time),
            Sort::Latency => (time, price),
            Sort::Throughput => (u128::from(u64::MAX - c.decode_milli), price),
        };
        let named = by.order.iter().position(|node| *node == c.provider).unwrap_or(by.order.len());
        // Whoever says what weighs most gets that, until it has been tried in vain.
        let rank = if c.rank == 1 && by.sort != Sort::Balanced { 0 } else { c.rank };
        (c.gate.is_some(), named, rank, score, c.provider)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_come_first_in_their_order_and_the_rest_by_what_is_weighed() {
        let node = |number: u8| NodeId([number; 32]);
        let one = |number: u8, estimate_ms, price, decode_milli| Considered {
            provider: node(number),
            gate: None,
            estimate_ms,
            price,
            rank: 1,
            decode_milli,
        };
        let gone = Considered { gate: Some(Gate::Unreachable), ..one(4, 1, 1, 9_000) };
        let sorted = |sort, order: &[u8]| {
            let mut all = [gone, one(1, 10, 30, 5_000), one(2, 20, 10, 7_000), one(3, 15, 20, 1_000)];
            let order = order.iter().copied().map(node).collect();
            super::sort(&mut all, &Constraints { sort, order, ..Constraints::default() });
            all.map(|considered| considered.provider.0[0])
        };

        assert_eq!(sorted(Sort::Price, &[]), [2, 3, 1, 4]);
        assert_eq!(sorted(Sort::Latency, &[]), [1, 3, 2, 4]);
        assert_eq!(sorted(Sort::Throughput, &[]), [2, 1, 3, 4]);
        assert_eq!(
            sorted(Sort::Price, &[4, 3]),
            [3, 2, 1, 4],
            "who cannot be used is not taken for being named"
        );
        assert_eq!(sorted(Sort::Throughput, &[1, 3]), [1, 3, 2, 4]);
        assert_eq!(sorted(Sort::Balanced, &[3]), [3, 2, 1, 4]);
    }
}
