//! The wallet: signs the steps of our account, one at a time, in order.

use crate::ids::{AccountId, DomainId, RecordId};
use crate::keys::Signer;
use crate::ledger::issuer::Balance;
use crate::ledger::records::{AccountOp, Epoch, OpBody};
use crate::signed::{Role, Verified, sign};

/// Our account as its owner sees it.
#[derive(Debug, Clone)]
pub struct Wallet {
    domain: DomainId,
    account: AccountId,
    signer: Signer,
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
    /// Returns the wallet of `signer`'s account, which must first learn its head from an issuer.
    #[must_use]
    pub fn new(domain: DomainId, signer: Signer) -> Self {
        let account = signer.public().into();
        Self {
            domain,
            account,
            signer,
            state: State::Unsynchronised { pending: None },
            balance: Balance::default(),
            floor: (0, RecordId::NONE),
        }
    }

    /// Returns the account.
    #[must_use]
    pub const fn account(&self) -> AccountId {
        self.account
    }

    /// Returns the key of the account.
    #[must_use]
    pub const fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Returns what the issuer last said that the account holds.
    #[must_use]
    pub const fn balance(&self) -> Balance {
        self.balance
    }

    /// Says whether a new step can be signed now.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle { .. })
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

    /// Takes back a step from our own journal: it may have left before the stop.
    pub fn replay(&mut self, op: Verified<AccountOp>) {
        self.raise(op.sequence, op.previous);
        self.state = State::Unsynchronised { pending: Some(op) };
    }

    fn raise(&mut self, next: u64, head: RecordId) {
        if next > self.floor.0 {
            self.floor = (next, head);
        }
    }

    /// Signs the next step; `None` while another is under way or the head is unknown. The step must be on disk before
    /// it leaves.
    pub fn sign(&mut self, body: OpBody, epoch: Epoch) -> Option<Verified<AccountOp>> {
        let State::Idle { next, head } = self.state else { return None };
        let op = AccountOp { account: self.account, sequence: next, previous: head, epoch, body };
        let op = sign(op, self.domain, Role::Owner, &self.signer);
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

    /// Learns the issuer's view of our account: its next slot and what it holds. A pending step stays pending while it
    /// fits the slot, and also when it is the head: the issuer has taken it, and its certificate is still to come.
    /// What is older than what is known changes nothing: a slot would be signed twice.
    pub fn learn(&mut self, next: u64, head: RecordId, balance: Balance) {
        if balance.as_of < self.balance.as_of && !cfg!(mutant = "older-balance-counts") {
            return;
        }
        self.balance = balance;
        let (next, head) = if next < self.floor.0 { self.floor } else { (next, head) };
        let pending = match &self.state {
            State::Unsynchronised { pending } => pending.clone(),
            State::Pending(op) => Some(op.clone()),
            State::Idle { .. } => None,
        };
        let open = |op: &Verified<AccountOp>| op.id() == head || (op.sequence == next && op.previous == head);
        self.state = match pending.filter(open) {
            Some(op) => State::Pending(op),
            None => State::Idle { next, head },
        };
    }

    /// Learns that the pending step is certified; any other step changes nothing.
    pub fn recorded(&mut self, op: RecordId, balance: Balance) {
        if let State::Pending(pending) = &self.state
            && pending.id() == op
        {
            let next = pending.sequence.saturating_add(1);
            self.raise(next, op);
            self.state = State::Idle { next, head: op };
            self.take(balance);
        }
    }

    fn take(&mut self, balance: Balance) {
        if balance.as_of >= self.balance.as_of {
            self.balance = balance;
        }
    }

    /// Learns that the issuer refused the pending step, and that its slot is still free.
    pub fn refused(&mut self, op: RecordId, balance: Balance) {
        if let State::Pending(pending) = &self.state
            && pending.id() == op
        {
            self.state = State::Idle { next: pending.sequence, head: pending.previous };
            self.take(balance);
        }
    }
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
    fn a_wallet_signs_nothing_before_it_knows_its_head() {
        assert_eq!(wallet().sign(body(1), Epoch(0)), None);
    }

    #[test]
    fn a_wallet_signs_one_step_at_a_time_in_order() {
        let mut wallet = wallet();
        wallet.learn(4, RecordId([9; 32]), Balance::default());

        let first = wallet.sign(body(1), Epoch(0)).expect("idle");
        assert_eq!((first.sequence, first.previous), (4, RecordId([9; 32])));
        assert_eq!(wallet.sign(body(2), Epoch(0)), None);

        wallet.recorded(first.id(), Balance::default());
        let second = wallet.sign(body(2), Epoch(0)).expect("idle again");
        assert_eq!((second.sequence, second.previous), (5, first.id()));
    }

    #[test]
    fn a_step_from_before_a_restart_is_pending_until_the_issuer_says_otherwise() {
        let mut before = wallet();
        before.learn(0, RecordId::NONE, Balance::default());
        let op = before.sign(body(1), Epoch(0)).expect("idle");

        let mut lost = wallet();
        lost.replay(op.clone());
        lost.learn(0, RecordId::NONE, Balance::default());
        assert_eq!(lost.pending(), Some(&op));

        let mut arrived = wallet();
        arrived.replay(op.clone());
        arrived.learn(1, op.id(), Balance::default());
        assert_eq!(arrived.pending(), Some(&op), "its certificate is still to come");
        arrived.recorded(op.id(), Balance::default());
        assert!(arrived.is_idle());

        let mut certified = wallet();
        certified.replay(op.clone());
        certified.replay_certified(op.id());
        certified.learn(1, op.id(), Balance::default());
        assert!(certified.is_idle());

        let mut overtaken = wallet();
        overtaken.replay(op);
        overtaken.learn(1, RecordId([3; 32]), Balance::default());
        assert!(overtaken.is_idle());
    }
}
