//! Machines that cheat: what they say and do otherwise than their program.

use protocol::ledger::records::{AccountOp, OpBody};
use protocol::message::{Message, Wire};
use protocol::node::Owner;
use protocol::signed::{Role, sign};

use crate::scenario::Cheat;

use super::{What, World};

/// Time between two attempts of an equivocator.
const EQUIVOCATE_MS: u64 = 60_000;

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
            Cheat::Equivocator => self.schedule(host, EQUIVOCATE_MS, What::Equivocate),
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
}
