//! Asking providers for terms, and choosing among the offers.

use alloc::vec::Vec;

use crate::ids::{JobId, NodeId};
use crate::job::Failure;
use crate::ledger::records::Terms;
use crate::licence::open_licence;
use crate::message::Message;
use crate::router::{Considered, Gate};
use crate::scheduler::Refusal;
use crate::signed::{Role, Verified};
use crate::time::Time;

use super::{OPEN_MS, Phase};
use crate::mutant;
use crate::node::{Effect, Node, Offence, Timer};

/// How much longer a first offer is waited for when none came in time and nobody else can be asked: lines with long ways
/// and machines with much to do are slow, not gone.
const LATE_MS: u64 = 1_750;

impl Node {
    pub(in crate::node) fn on_offer(
        &mut self,
        from: NodeId,
        id: JobId,
        terms: Verified<Terms>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let serves = self.serves_for(from) == Some(terms.payee_account);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Asking { waiting, offers, late } = &mut job.phase else { return };
        if !waiting.remove(&from) {
            return;
        }
        let ours = terms.payer_account == self.wallet.account() && terms.model == job.spec.model;
        let theirs = terms.payee == from && terms.is_signed_by(Role::Node, from.into()) && serves;
        let licence = open_licence(job.spec.model, self.domain);
        let worst = job.spec.worst_price(&terms.price);
        let considered = job.considered.iter_mut().find(|considered| considered.provider == from);
        let advertised = considered.as_ref().map_or(0, |considered| considered.price);
        let most = job.spec.constraints.price_max.unwrap_or(u64::MAX).min(advertised);
        let is_as_asked = terms.markup == job.spec.markup || mutant::is_in("markup-of-the-provider");
        if !ours || !theirs || !is_as_asked || terms.check(&self.config.manifest, licence).is_err() {
            job.rejected.insert(from, Gate::BadTerms);
            out.push(Effect::Penalise(from, Offence::WrongSigner));
        } else if let Some(worst) = worst.filter(|worst| *worst <= most) {
            // What is offered counts from here on, not what was advertised.
            if let Some(considered) = considered {
                considered.price = worst;
            }
            offers.push(terms);
        } else {
            job.rejected.insert(from, Gate::Price);
        }
        if waiting.is_empty() || (*late && !offers.is_empty()) {
            self.choose(id, now, out);
        }
    }

    pub(in crate::node) fn on_refused(
        &mut self,
        from: NodeId,
        id: JobId,
        refusal: Refusal,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match &mut job.phase {
            Phase::Asking { waiting, .. } if waiting.contains(&from) => {
                waiting.remove(&from);
                job.rejected.insert(from, Gate::Refused(refusal));
                if waiting.is_empty() {
                    self.choose(id, now, out);
                }
            }
            Phase::Placed(placed) if placed.provider == from && placed.accepted.is_none() => {
                let channel = placed.channel;
                if placed.tokens > 0 && !mutant::is_in("refused-unaccounted") {
                    out.push(Effect::Penalise(from, Offence::BadCount));
                    self.disavow(id, "it delivered tokens and refused the job", now, out);
                } else if let Refusal::PromptTooLong { tokens, context, text } = refusal {
                    self.fail(id, Failure::PromptTooLong { tokens, context, text }, out);
                } else if let Some(channel) = channel.filter(|_| refusal.is_about_channel() && !job.reopened)
                {
                    job.reopened = true;
                    self.leave(id, channel, out);
                    self.seek(id, now, out);
                } else {
                    self.try_next(id, Gate::Refused(refusal), now, out);
                }
            }
            Phase::Finding
            | Phase::Asking { .. }
            | Phase::Opening { .. }
            | Phase::Placed(_)
            | Phase::AtHome { .. } => {}
        }
    }

    /// The connection to a provider is gone: it will not answer what it was asked.
    pub(in crate::node) fn fail_asks(&mut self, peer: NodeId, now: Time, out: &mut Vec<Effect>) {
        let mut complete = Vec::new();
        for (id, job) in &mut self.jobs {
            if let Phase::Asking { waiting, .. } = &mut job.phase
                && waiting.remove(&peer)
            {
                job.rejected.insert(peer, Gate::Unreachable);
                if waiting.is_empty() {
                    complete.push(*id);
                }
            }
        }
        for id in complete {
            self.choose(id, now, out);
        }
    }

    pub(in crate::node) fn on_send_failed(
        &mut self,
        to: NodeId,
        id: JobId,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        self.fail_asks(to, now, out);
        let unanswered = self.jobs.get(&id).is_some_and(|job| {
            matches!(&job.phase, Phase::Placed(p) if p.provider == to && p.accepted.is_none() && p.tokens == 0)
        });
        if unanswered {
            self.router.failed(to, now);
            self.try_next(id, Gate::Unreachable, now, out);
        }
    }

    /// Takes the best of the offers, or waits on for a first one if there is nobody else to ask.
    pub(super) fn on_asking_due(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Asking { waiting, offers, late } = &mut job.phase else { return };
        let is_open = |c: &Considered| {
            c.gate.is_none() && !waiting.contains(&c.provider) && !job.rejected.contains_key(&c.provider)
        };
        if *late || !offers.is_empty() || job.considered.iter().any(is_open) {
            self.choose(id, now, out);
            return;
        }
        *late = true;
        self.deadlines.set(Timer::Job(id), now.plus_ms(LATE_MS));
    }

    /// Takes the best of the offers that came.
    pub(super) fn choose(&mut self, id: JobId, now: Time, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Asking { waiting, offers, .. } = &mut job.phase else { return };
        for silent in core::mem::take(waiting) {
            job.rejected.insert(silent, Gate::NoAnswer);
        }
        crate::router::sort(&mut job.considered, &job.spec.constraints);
        let best =
            job.considered.iter().find_map(|c| offers.iter().position(|terms| terms.payee == c.provider));
        let best = best.map(|position| offers.swap_remove(position));
        let others: Vec<NodeId> = offers.iter().map(|terms| terms.payee).collect();
        for other in others {
            self.send(other, Message::Cancel { job: id }, out);
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(terms) = best else {
            job.find_until.get_or_insert(now);
            self.seek(id, now, out);
            return;
        };
        job.opening = Some(now);
        job.phase = Phase::Opening { terms, op: None, queried: false };
        self.deadlines.set(Timer::Job(id), now.plus_ms(OPEN_MS));
        self.open(id, now, out);
    }
}
