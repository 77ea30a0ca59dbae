//! What can be asked of a world: the books, the journals, what became of jobs.

use std::collections::BTreeSet;

use protocol::ids::{AccountId, ChannelId, JobId, NodeId};
use protocol::ledger::equivocation::Equivocation;
use protocol::ledger::issuer::Issuer;
use protocol::ledger::records::{AccountOp, OpBody};
use protocol::message::Checked;
use protocol::node::{ChannelView, Node};
use protocol::price::Price;
use protocol::record::Record;
use protocol::signed::Verified;

use super::{Outcome, World};

impl World {
    /// Says whether the issuers have ended a channel by themselves: what is left of it is kept until they have said so.
    pub(crate) fn is_over(&self, view: &ChannelView) -> bool {
        let manifest = &self.hosts[0].config.manifest;
        view.expires.plus(manifest.grace_epochs).plus(1) < manifest.epoch(self.now)
    }

    /// Returns the hash over all inputs so far.
    #[must_use]
    pub fn trace_hash(&self) -> blake3::Hash {
        self.trace.finalize()
    }

    /// Returns the place of a node.
    #[must_use]
    pub fn host_of(&self, node: NodeId) -> Option<usize> {
        self.index.get(&node).copied()
    }

    /// Returns the node of a machine that runs.
    #[must_use]
    pub fn node(&self, host: usize) -> Option<&Node> {
        self.hosts[host].node.as_ref()
    }

    /// Returns how many of the first hosts are issuers.
    #[must_use]
    pub fn issuers(&self) -> usize {
        self.hosts.first().map_or(0, |host| host.config.manifest.issuers.len())
    }

    /// Returns the books of every issuer that runs and is honest, with its place.
    pub fn books(&self) -> impl Iterator<Item = (usize, &Issuer)> {
        let honest = (0..self.issuers()).filter(|place| !self.hosts[*place].lies);
        honest.filter_map(|place| Some((place, self.node(place)?.books()?)))
    }

    /// Returns what an account holds by the books of the first honest issuer that runs.
    #[must_use]
    pub fn booked(&self, account: AccountId) -> protocol::ledger::issuer::Balance {
        self.books().next().map(|(_, books)| books.balance(account)).unwrap_or_default()
    }

    /// Says whether a node is an adversary's.
    #[must_use]
    pub fn is_adversary(&self, node: NodeId) -> bool {
        self.host_of(node).is_some_and(|host| self.hosts[host].adversary)
    }

    /// Says whether a proof convicts an adversary by its steps.
    #[must_use]
    pub fn is_about_adversary(&self, proof: &Equivocation<Checked>) -> bool {
        let Equivocation::Steps(step, _) = proof else { return false };
        self.owner_of(step.account).is_some_and(|host| self.hosts[host].adversary)
    }

    /// Returns the first machine that acts for an account.
    #[must_use]
    pub fn owner_of(&self, account: AccountId) -> Option<usize> {
        self.hosts.iter().position(|host| host.config.owner.account() == account)
    }

    /// Returns what a machine asks for its work, if it serves.
    #[must_use]
    pub fn price_of(&self, host: usize) -> Option<Price> {
        self.hosts[host].offer.as_ref().map(|offer| offer.price)
    }

    /// Returns how many lines the journal of a host has.
    #[must_use]
    pub fn lines(&self, host: usize) -> usize {
        self.hosts[host].journal.len()
    }

    /// Returns the lines of a host's journal, durable or not.
    pub fn records(&self, host: usize) -> impl Iterator<Item = Record> + '_ {
        self.hosts[host].journal.iter().filter_map(|(_, line)| Record::from_bytes(line).ok())
    }

    /// Returns every step that the first honest issuer ever took.
    pub fn steps(&self) -> impl Iterator<Item = Verified<AccountOp>> + '_ {
        let first = self.books().next().map_or(0, |(place, _)| place);
        self.records(first).filter_map(|record| {
            let op = if let Record::Certified { certificate, .. } = record {
                certificate.op
            } else if let Record::Stepped { op, .. } = record {
                op
            } else {
                return None;
            };
            op.read_back(self.domain).ok()
        })
    }

    /// Returns every channel that the first honest issuer ever opened, with its payer's and its payee's place.
    #[must_use]
    pub fn opened_channels(&self) -> Vec<(ChannelId, usize, usize)> {
        let parties = self.steps().filter_map(|op| match &op.body {
            OpBody::OpenChannel(open) => {
                Some((op.id().into(), self.host_of(open.payer)?, self.host_of(open.payee)?))
            }
            OpBody::Expire(_)
            | OpBody::Pay { .. }
            | OpBody::Withdraw { .. }
            | OpBody::Noop
            | OpBody::Inception(_)
            | OpBody::Rotate(_) => None,
        });
        parties.collect()
    }

    /// Returns every channel whose last epoch is over, and on which nothing was ever redeemed.
    #[must_use]
    pub fn channels_in_grace(&self) -> BTreeSet<ChannelId> {
        let Some((first, books)) = self.books().next() else { return BTreeSet::new() };
        let now = self.hosts[first].config.manifest.epoch(self.now);
        let over = self.steps().filter_map(|op| match &op.body {
            OpBody::OpenChannel(open) if open.expires < now => Some(ChannelId::from(op.id())),
            OpBody::OpenChannel(_)
            | OpBody::Expire(_)
            | OpBody::Pay { .. }
            | OpBody::Withdraw { .. }
            | OpBody::Noop
            | OpBody::Inception(_)
            | OpBody::Rotate(_) => None,
        });
        over.filter(|channel| books.channel(*channel).is_some_and(|(redeemed, _)| redeemed == 0)).collect()
    }

    /// Says whether a channel is one that its payer forgot with its disk, and that its payee was never shown.
    #[must_use]
    pub fn is_forgotten(&self, channel: ChannelId, payer: usize, payee: usize) -> bool {
        let has = |host: usize| self.channels(host).iter().any(|view| view.channel == channel);
        self.hosts[payer].lost_history && !has(payer) && !has(payee)
    }

    /// Returns whether a host has taken part.
    #[must_use]
    pub fn is_joined(&self, host: usize) -> bool {
        self.node(host).is_some_and(Node::is_admitted)
    }

    /// Returns the tokens that a host's engine has generated for a job that runs there.
    #[must_use]
    pub fn generated(&self, host: usize, job: JobId) -> Option<u32> {
        self.hosts[host].device.job(job).map(|run| run.tokens)
    }

    /// Returns what became of a job, once it is over.
    #[must_use]
    pub fn outcome(&self, job: JobId) -> Option<&Outcome> {
        self.jobs.get(&job)?.outcome.as_ref().map(|(_, outcome)| outcome)
    }

    /// Says whether a job was done.
    #[must_use]
    pub fn is_done(&self, job: JobId) -> bool {
        matches!(self.outcome(job), Some(Outcome::Done(_)))
    }

    /// Returns the channels that a host has.
    #[must_use]
    pub fn channels(&self, host: usize) -> Vec<ChannelView> {
        self.node(host).map(Node::channels).unwrap_or_default()
    }
}
