//! The wallet: signs the steps of our account, one at a time, in order.

use alloc::vec::Vec;

use crate::ids::{AccountId, DomainId, RecordId};
use crate::keys::{PublicKey, Signer};
use crate::ledger::account::{Inception, KeyError, Lineage};
use crate::ledger::issuer::{Balance, IssuerError};
use crate::ledger::quorum::freed_head;
use crate::ledger::records::{AccountOp, Epoch, OpBody};
use crate::mutant;
use crate::signed::{Role, Verified, sign};

/// Epochs back in which a step's slot may have been freed by a checkpoint that is not known yet.
pub(super) const FREED_EPOCHS: u32 = 64;

/// Most keys held: the one in force, and the next one while a rotation is under way.
const KEYS_MAX: usize = 2;

/// Our account as its owner sees it.
#[derive(Debug, Clone)]
pub struct Wallet {
    domain: DomainId,
    account: AccountId,
    /// The keys that this node holds, at most [`KEYS_MAX`]; none on a node that only acts for the account.
    keys: Vec<Signer>,
    /// The account's keys as far as is known; none for an account that is a plain key.
    lineage: Option<Lineage>,
    state: State,
    balance: Balance,
    /// The least next slot, with its predecessor, that what we have signed and seen committed allows: issuers that are
    /// behind must not make us sign a slot again.
    floor: (u64, RecordId),
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// The issuer's view of our head is not known since the start: signing now could fork the account.
    Unsynchronised { pending: Option<Verified<AccountOp>> },
    /// Nothing is under way.
    Idle { next: u64, head: RecordId },
    /// A step was signed and waits for its certificate.
    Pending(Verified<AccountOp>),
}

impl Wallet {
    /// Returns the wallet of the account that is `signer`'s key itself, which must first learn its head from an issuer.
    #[must_use]
    pub fn new(domain: DomainId, signer: Signer) -> Self {
        let account = signer.public().into();
        Self::of(domain, account, Vec::from([signer]), None)
    }

    /// Returns the wallet of an account with a next key, with the keys of it that are held here: none on a node that
    /// only acts for it.
    #[must_use]
    pub fn of(domain: DomainId, account: AccountId, keys: Vec<Signer>, lineage: Option<Lineage>) -> Self {
        let (state, balance) = (State::Unsynchronised { pending: None }, Balance::default());
        Self { domain, account, keys, lineage, state, balance, floor: (0, RecordId::NONE) }
    }

    /// Returns the account.
    #[must_use]
    pub const fn account(&self) -> AccountId {
        self.account
    }

    /// Returns the account's keys as far as is known; nothing for an account that is a plain key.
    #[must_use]
    pub const fn lineage(&self) -> Option<&Lineage> {
        self.lineage.as_ref()
    }

    /// Returns the key that signs for the account: the one in force, or the newest held while that is not known yet.
    #[must_use]
    pub fn signer(&self) -> Option<&Signer> {
        self.signer_in_force().or_else(|| self.keys.last())
    }

    fn signer_in_force(&self) -> Option<&Signer> {
        let key = self.lineage.as_ref().map_or_else(|| PublicKey::from(self.account), Lineage::key);
        self.keys.iter().find(|signer| signer.public() == key)
    }

    /// Says whether the key in force is held here, so that steps can be signed at all.
    #[must_use]
    pub fn holds_key(&self) -> bool {
        self.signer_in_force().is_some()
    }

    /// Takes up the key with which a rotation will be signed.
    pub fn hold(&mut self, signer: Signer) {
        if self.keys.iter().all(|held| held.public() != signer.public()) {
            let in_force = self.signer_in_force().map(Signer::public);
            self.keys.retain(|held| Some(held.public()) == in_force);
            self.keys.push(signer);
            debug_assert!(self.keys.len() <= KEYS_MAX, "the key in force and the next one");
        }
    }

    /// Learns which keys the account had; says whether that was news.
    pub fn learn_lineage(&mut self, lineage: &Lineage) -> bool {
        let news = self.lineage.as_ref().is_some_and(|known| lineage.extends(known));
        if news {
            self.lineage = Some(lineage.clone());
        }
        news
    }

    /// Says whether the account must still show the issuers how it began.
    #[must_use]
    pub fn is_to_begin(&self) -> Option<Inception> {
        let State::Idle { next: 0, .. } = self.state else { return None };
        self.lineage.as_ref().filter(|_| self.holds_key()).map(Lineage::inception)
    }

    /// Returns what the issuer last said that the account holds.
    #[must_use]
    pub const fn balance(&self) -> Balance {
        self.balance
    }

    /// Says whether nothing is under way and the head is known.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle { .. })
    }

    /// Returns the position of the next step, once it is known.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        match &self.state {
            State::Idle { next, .. } => Some(*next),
            State::Pending(op) => Some(op.sequence),
            State::Unsynchronised { .. } => None,
        }
    }

    /// Returns the step that was signed and not yet certified: it is sent again until it is.
    #[must_use]
    pub const fn pending(&self) -> Option<&Verified<AccountOp>> {
        match &self.state {
            State::Pending(op) => Some(op),
            State::Unsynchronised { pending } => pending.as_ref(),
            State::Idle { .. } => None,
        }
    }

    /// Takes back a step from our own journal: it may have left before the stop. One of another account changes nothing:
    /// this node acted for that one before.
    pub fn replay(&mut self, op: Verified<AccountOp>) {
        if op.account != self.account {
            return;
        }
        self.raise(op.sequence, op.previous);
        self.state = State::Unsynchronised { pending: Some(op) };
    }

    /// Learns a slot and its predecessor. Of the same slot what comes later counts: a slot that was freed follows another
    /// head.
    fn raise(&mut self, next: u64, head: RecordId) {
        if next >= self.floor.0 {
            self.floor = (next, head);
        }
    }

    /// Signs the next step; `None` while another is under way, the head is unknown, or the key is not held here. The step
    /// must be on disk before it leaves.
    pub fn sign(&mut self, body: OpBody, epoch: Epoch) -> Option<Verified<AccountOp>> {
        let State::Idle { next, head } = self.state else { return None };
        let signer = match &body {
            OpBody::Rotate(to) => self.keys.iter().find(|signer| signer.public() == to.key)?,
            OpBody::OpenChannel(_)
            | OpBody::Expire(_)
            | OpBody::Pay { .. }
            | OpBody::Withdraw { .. }
            | OpBody::Noop
            | OpBody::Inception(_) => self.signer_in_force()?,
        };
        let op = AccountOp { account: self.account, sequence: next, previous: head, epoch, body };
        let op = sign(op, self.domain, Role::Owner, signer);
        self.state = State::Pending(op.clone());
        Some(op)
    }

    /// Learns from our own journal that the step was certified before the stop.
    pub fn replay_certified(&mut self, op: RecordId) {
        if let Some(pending) = self.pending().filter(|pending| pending.id() == op) {
            self.raise(pending.sequence.saturating_add(1), op);
            self.state = State::Unsynchronised { pending: None };
        }
    }

    /// Learns from our own journal that the step was refused before the stop: its slot is free.
    pub fn replay_refused(&mut self, op: RecordId) {
        if self.pending().is_some_and(|pending| pending.id() == op) {
            self.state = State::Unsynchronised { pending: None };
        }
    }

    /// Learns the issuers' view of our account: its next slot and what it holds. A pending step stays pending while it
    /// fits the slot, and also when it is the head: the issuers have taken it, and its certificate is still to come.
    /// What is older than what is known changes nothing: a slot would be signed twice. Any other head in its slot says
    /// nothing of the pending step, unless a checkpoint of an epoch before `now` left it there: then the step fits no slot any
    /// more. Returns the step that is given up, and why.
    pub fn learn(
        &mut self,
        next: u64,
        head: RecordId,
        balance: Balance,
        now: Epoch,
    ) -> Option<(RecordId, IssuerError)> {
        if balance.as_of < self.balance.as_of && !mutant::is_in("older-balance-counts") {
            return None;
        }
        self.balance = balance;
        let is_older = next < self.floor.0 || (next == self.floor.0 && self.is_before_floor(head, now));
        let (next, head) = if is_older { self.floor } else { (next, head) };
        let pending = self.pending().cloned();
        let is_freed = self.is_freed((next, head), now);
        if is_freed {
            self.raise(next, head);
        }
        let fits = |op: &Verified<AccountOp>| op.id() == head || (op.sequence == next && !is_freed);
        let error = if is_freed { IssuerError::Lapsed } else { IssuerError::WrongSequence { next } };
        let over = pending.as_ref().filter(|op| !fits(op)).map(|op| (op.id(), error));
        self.state = match pending.filter(fits) {
            Some(op) => State::Pending(op),
            None => State::Idle { next, head },
        };
        over
    }

    /// Says whether a checkpoint has freed our next slot since this was the head: issuers that have not followed it name the
    /// former one.
    fn is_before_floor(&self, head: RecordId, now: Epoch) -> bool {
        let oldest = now.0.saturating_sub(FREED_EPOCHS);
        (oldest..now.0).any(|epoch| freed_head(head, Epoch(epoch)) == self.floor.1)
            && !mutant::is_in("freed-forgotten")
    }

    /// Says whether a checkpoint of an epoch before `now` has freed the slot of the pending step, if this is the slot and
    /// its head.
    #[must_use]
    pub fn is_freed(&self, (next, head): (u64, RecordId), now: Epoch) -> bool {
        self.pending().is_some_and(|op| op.sequence == next && is_freed(op, head, now))
    }

    /// Learns that the pending step is certified; any other step changes nothing.
    pub fn recorded(&mut self, op: RecordId, balance: Balance) {
        if let Some(pending) = self.pending().filter(|pending| pending.id() == op).cloned() {
            let next = pending.sequence.saturating_add(1);
            self.raise(next, op);
            self.state = State::Idle { next, head: op };
            self.take(balance);
            // A rotation that the issuers took was promised.
            let _: Result<(), KeyError> = self.rotate(&pending);
        }
    }

    fn rotate(&mut self, op: &Verified<AccountOp>) -> Result<(), KeyError> {
        let Some(lineage) = self.lineage.as_mut().filter(|_| matches!(op.body, OpBody::Rotate(_))) else {
            return Ok(());
        };
        lineage.rotate(op)?;

        let key = lineage.key();
        self.keys.retain(|signer| signer.public() == key);
        Ok(())
    }

    /// Learns what the account holds, and nothing of its steps; what is older than what is known changes nothing.
    pub fn take(&mut self, balance: Balance) {
        if balance.as_of >= self.balance.as_of {
            self.balance = balance;
        }
    }

    /// Learns that the issuers refused the pending step; `moved` says that the account stands somewhere else, which is not
    /// known yet. Else its slot is still free.
    pub fn refused(&mut self, op: RecordId, balance: Balance, moved: bool) {
        if let Some(pending) = self.pending().filter(|pending| pending.id() == op) {
            let (next, head) = (pending.sequence, pending.previous);
            self.state =
                if moved { State::Unsynchronised { pending: None } } else { State::Idle { next, head } };
            self.take(balance);
        }
    }
}

/// Says whether `head` is what a checkpoint leaves in the slot of a step that it has freed.
fn is_freed(op: &AccountOp, head: RecordId, now: Epoch) -> bool {
    // The checkpoint may be of an epoch before the one that the step names.
    let oldest = op.epoch.0.saturating_sub(FREED_EPOCHS);
    op.previous != head
        && (mutant::is_in("any-head-frees")
            || (oldest..now.0).any(|epoch| freed_head(op.previous, Epoch(epoch)) == head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChannelId;

    fn wallet() -> Wallet {
        Wallet::new(DomainId([1; 32]), Signer::from_seed([2; 32]))
    }

    fn body(tag: u8) -> OpBody {
        OpBody::Expire(ChannelId([tag; 32]))
    }

    #[test]
    fn a_step_is_given_up_when_a_checkpoint_has_freed_its_slot_and_for_no_other_head() {
        let mut wallet = wallet();
        wallet.learn(1, RecordId([1; 32]), Balance { as_of: 1, ..Balance::default() }, Epoch(9));
        let step = wallet.sign(body(1), Epoch(0)).expect("idle");

        assert_eq!(
            wallet.learn(1, step.previous, Balance { as_of: 2, ..Balance::default() }, Epoch(9)),
            None
        );
        assert!(wallet.pending().is_some(), "it fits still");
        let other = wallet.learn(1, RecordId([2; 32]), Balance { as_of: 3, ..Balance::default() }, Epoch(9));
        assert!(other.is_none() && wallet.pending().is_some(), "no checkpoint leaves such a head");
        let (head, balance) =
            (freed_head(step.previous, Epoch(4)), Balance { as_of: 4, ..Balance::default() });
        assert_eq!(wallet.learn(1, head, balance, Epoch(4)), None, "that checkpoint cannot stand yet");
        let freed = wallet.learn(1, head, balance, Epoch(9));
        assert_eq!((freed, wallet.pending()), (Some((step.id(), IssuerError::Lapsed)), None));
        let before = Balance { as_of: 5, ..Balance::default() };
        assert_eq!(wallet.learn(1, step.previous, before, Epoch(9)), None, "who says so has not followed it");
        assert!(wallet.sign(body(1), Epoch(0)).is_some_and(|step| step.previous == head));
    }

    #[test]
    fn a_wallet_signs_nothing_before_it_knows_its_head() {
        assert_eq!(wallet().sign(body(1), Epoch(0)), None);
    }

    #[test]
    fn a_wallet_signs_one_step_at_a_time_in_order() {
        let mut wallet = wallet();
        wallet.learn(4, RecordId([9; 32]), Balance::default(), Epoch(9));

        let first = wallet.sign(body(1), Epoch(0)).expect("idle");
        assert_eq!((first.sequence, first.previous), (4, RecordId([9; 32])));
        assert_eq!(wallet.sign(body(2), Epoch(0)), None);

        wallet.recorded(first.id(), Balance::default());
        let second = wallet.sign(body(2), Epoch(0)).expect("idle again");
        assert_eq!((second.sequence, second.previous), (5, first.id()));
    }

    #[test]
    fn a_step_for_a_slot_that_was_freed_stays_pending_whoever_is_behind() {
        let mut before = wallet();
        let signed = |wallet: &mut Wallet, head, as_of| {
            wallet.learn(5, head, Balance { as_of, ..Balance::default() }, Epoch(9));
            wallet.sign(body(1), Epoch(0)).expect("idle")
        };
        let stuck = signed(&mut before, RecordId([1; 32]), 1);
        let freed = signed(&mut before, freed_head(RecordId([1; 32]), Epoch(1)), 2);
        assert_eq!((stuck.sequence, freed.sequence), (5, 5));

        let mut again = wallet();
        again.replay(stuck);
        again.replay(freed.clone());
        again.learn(4, RecordId([9; 32]), Balance::default(), Epoch(9));
        assert_eq!(again.pending(), Some(&freed));
    }

    #[test]
    fn a_wallet_holds_the_key_in_force_and_the_last_next_one() {
        let mut wallet = wallet();
        let [in_force, first, second] = [2, 3, 4].map(|tag| Signer::from_seed([tag; 32]).public());
        for tag in [3, 4, 4] {
            wallet.hold(Signer::from_seed([tag; 32]));
        }

        let held: Vec<PublicKey> = wallet.keys.iter().map(Signer::public).collect();
        assert_eq!(held, [in_force, second]);
        assert!(wallet.holds_key() && !held.contains(&first));
    }

    #[test]
    fn a_step_from_before_a_restart_is_pending_until_the_issuer_says_otherwise() {
        let mut before = wallet();
        before.learn(0, RecordId::NONE, Balance::default(), Epoch(9));
        let op = before.sign(body(1), Epoch(0)).expect("idle");

        let mut lost = wallet();
        lost.replay(op.clone());
        lost.learn(0, RecordId::NONE, Balance::default(), Epoch(9));
        assert_eq!(lost.pending(), Some(&op));

        let mut arrived = wallet();
        arrived.replay(op.clone());
        arrived.learn(1, op.id(), Balance::default(), Epoch(9));
        assert_eq!(arrived.pending(), Some(&op), "its certificate is still to come");
        arrived.recorded(op.id(), Balance::default());
        assert!(arrived.is_idle());

        let mut certified = wallet();
        certified.replay(op.clone());
        certified.replay_certified(op.id());
        certified.learn(1, op.id(), Balance::default(), Epoch(9));
        assert!(certified.is_idle());

        let mut overtaken = wallet();
        overtaken.replay(op);
        overtaken.learn(1, RecordId([3; 32]), Balance::default(), Epoch(9));
        assert!(overtaken.is_idle());
    }
}
