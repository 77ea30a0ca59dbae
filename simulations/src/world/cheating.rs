//! Machines that cheat: what they say and do otherwise than their program.

use protocol::advert::Advert;
use protocol::ids::DomainId;
use protocol::keys::Signature;
use protocol::ledger::records::{AccountOp, Final, OpBody};
use protocol::message::{Message, Wire};
use protocol::node::Owner;
use protocol::price::Price;
use protocol::prng::Prng;
use protocol::signed::{Attestation, Role, Signed, sign};

use crate::home::MODEL;
use crate::scenario::Cheat;

use super::{What, World};

/// Time between two attempts of an equivocator.
const EQUIVOCATE_MS: u64 = 60_000;

/// Time between two attempts of a poisoner.
const POISON_MS: u64 = 20_000;

/// Others of whom a poisoner says each time to the directory that they serve.
const POISONED: u64 = 16;

/// Others to whom an eclipser connects each time.
const CROWDED: u64 = 8;

/// Longest time after which something is said again.
const REPLAY_MS: u64 = 60_000;

/// Of so many messages a replayer says one again.
const REPLAYED: u64 = 4;

impl World {
    /// Has a machine cheat from now on.
    pub fn cheats(&mut self, host: usize, cheat: Cheat) {
        self.hosts[host].adversary = true;
        match cheat {
            Cheat::NonPayer => {
                self.hosts[host].silent.insert("pay");
            }
            Cheat::NonDeliverer => self.hosts[host].device.stalls = true,
            Cheat::OverClaimer => {}
            Cheat::Replayer => self.hosts[host].replays = true,
            Cheat::Haggler => self.hosts[host].haggles = true,
            Cheat::Poisoner => self.schedule(host, POISON_MS, What::Poison),
            Cheat::Equivocator => self.schedule(host, EQUIVOCATE_MS, What::Equivocate),
            Cheat::Eclipser => {
                self.hosts[host].misleads = true;
                self.schedule(host, POISON_MS, What::Crowd);
            }
        }
    }

    /// Connects to some others, so that they have it in their directories.
    pub(super) fn crowd(&mut self, host: usize) {
        self.schedule(host, POISON_MS, What::Crowd);
        for _ in 0..CROWDED {
            let other = usize::try_from(self.mischief.below(self.hosts.len() as u64)).unwrap_or(0);
            self.dial(host, other);
        }
    }

    /// Signs two steps in the next place of the account, and tells each issuer of one before the other.
    pub(super) fn equivocate(&mut self, host: usize) {
        self.schedule(host, EQUIVOCATE_MS, What::Equivocate);
        let Owner::Key(signer) = self.hosts[host].config.owner.clone() else { return };
        let Some((_, books)) = self.books().next() else { return };
        let (account, epoch) = (signer.public().into(), self.hosts[host].config.manifest.epoch(self.now));
        let (sequence, previous) = books.next_slot(account);
        let to = self.hosts[0].config.owner.account();
        let steps = [OpBody::Noop, OpBody::Pay { to, amount: 1_000_000 }].map(|body| {
            let op = AccountOp { account, sequence, previous, epoch, body };
            let op = sign(op, self.domain, Role::Owner, &signer);
            Message::<Wire>::Step { op: op.signed(), terms: None }.to_bytes()
        });
        for issuer in 0..self.issuers() {
            let [one, other] = &steps;
            let (early, late) = if issuer % 2 == 0 { (one, other) } else { (other, one) };
            self.bytes_in(0, host, issuer, early.clone());
            self.bytes_in(500, host, issuer, late.clone());
        }
    }

    /// Remembers some of what a replayer says or hears, to say it again later: to whom it was said, and to somebody else.
    pub(super) fn replays(&mut self, host: usize, to: usize, bytes: &[u8]) {
        if !self.hosts[host].replays || self.mischief.below(REPLAYED) != 0 {
            return;
        }
        let partners = self.network.partners(host);
        let other = partners.get(usize::try_from(self.mischief.below(partners.len() as u64)).unwrap_or(0));
        for to in [Some(to), other.copied()].into_iter().flatten() {
            let ms = self.mischief.below(REPLAY_MS);
            self.schedule(host, ms, What::SayAgain { to, bytes: bytes.to_vec() });
        }
    }

    /// Returns what a haggler says in the place of the end of a channel on which it pays.
    pub(super) fn haggled(&self, host: usize, message: &Message<Wire>) -> Option<Message<Wire>> {
        let Message::Close { closing, opening } = message else { return None };
        let (closing, _, _) = closing.peek_in(self.domain).filter(|_| self.hosts[host].haggles)?;
        let terms = self.steps().find_map(|op| {
            let OpBody::OpenChannel(open) = &op.body else { return None };
            (closing.channel == op.id().into()).then_some(open.terms)
        })?;
        let key = self.hosts[host].config.node.derive(&[b"payer".as_slice(), &terms.0].concat());
        let half = Final { amount: closing.amount / 2, ..closing };
        let closing = sign(half, self.domain, Role::Payer, &key).signed();
        Some(Message::Close { closing, opening: opening.clone() })
    }

    /// Tells the directory that others serve who do not, and spreads two adverts of somebody honest: one as it was, to its
    /// author too, and one that promises more for less, with a signature that is not its author's.
    pub(super) fn poison(&mut self, host: usize) {
        self.schedule(host, POISON_MS, What::Poison);
        let hosts = self.hosts.len() as u64;
        let any = |prng: &mut Prng| usize::try_from(prng.below(hosts)).unwrap_or(0);
        for _ in 0..POISONED {
            let named = any(&mut self.mischief);
            self.directory.entry(MODEL).or_default().insert(named);
        }
        let from = any(&mut self.mischief);
        let published = (0..self.hosts.len()).map(|ahead| (from + ahead) % self.hosts.len());
        let victim = published.into_iter().find(|place| self.hosts[*place].published.is_some());
        let Some(advert) = victim.and_then(|victim| self.hosts[victim].published.clone()) else { return };
        if let Some(forged) = forged(&advert, self.domain) {
            self.gossip(host, MODEL, &forged);
        }
        self.gossip(host, MODEL, &advert);
    }
}

/// Returns a newer advert of the same node, ten times as fast and almost free, which it never signed.
fn forged(advert: &Signed<Advert>, domain: DomainId) -> Option<Signed<Advert>> {
    let (mut advert, _, _) = advert.peek_in(domain)?;
    advert.sequence += 1;
    for offer in &mut advert.models {
        offer.decode_milli *= 10;
        offer.price = Price { call: 0, input: 1, output: 1 };
    }
    let signature = Signature([1; 32], [2; 32]);
    let attestation = Attestation { role: Role::Node, key: advert.node.into(), signature };
    Some(Signed::unchecked(&advert, vec![attestation]))
}
