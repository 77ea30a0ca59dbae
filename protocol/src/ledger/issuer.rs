//! The issuer: holds deposits, witnesses account steps, pays out channels. It never sees a job.

mod closing;
mod counting;
mod forward;
mod opening;
mod redeeming;
mod room;
mod settling;
mod slots;
mod snapshot;
mod transfers;

pub use room::ACCOUNTS_BY_STEPS_MAX;
pub use settling::has_lapsed;
pub use snapshot::Snapshot;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use core::ops::Bound;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{AccountId, ChannelId, Digest, DomainId, NodeId, RecordId};
use crate::keys::PublicKey;
use crate::ledger::account::{Inception, KeyError, Lineage, check_signer};
use crate::ledger::money::Overflow;
use crate::ledger::records::{
    AccountOp, Deposit, Epoch, Markup, OpBody, Source, Terms, TermsError, VALIDITY_EPOCHS_MAX,
};
use crate::manifest::Manifest;
use crate::mutant;
use crate::signed::Verified;

use redeeming::{Part, is_earned, signed_by_both};

pub use transfers::{WITHDRAWALS_MAX, Withdrawal};

/// Most accounts: bounds an issuer's memory.
pub const ACCOUNTS_MAX: usize = 1_000_000;

/// Most channels, closed ones included, which are kept so that late receipts are recognised.
pub const CHANNELS_MAX: usize = 2_000_000;

/// How many epochs after its expiry and grace a closed channel is kept, so that parties that were away learn its end.
const KEPT_EPOCHS: u32 = VALIDITY_EPOCHS_MAX;

/// Most open channels of one account: routing is sticky, so more are a mistake or an attack.
pub const CHANNELS_PER_ACCOUNT_MAX: usize = 64;

/// What an account can spend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Nano-credits that can be spent and withdrawn.
    pub cash: u64,
    /// Nano-credits that can be spent, with priority, and not withdrawn.
    pub earned: u64,
    /// Nano-credits that open channels hold.
    pub held: u64,
    /// Counts the changes of the account: messages overtake each other, and an older balance must not replace a newer.
    pub as_of: u64,
}

impl Balance {
    /// Returns what can be spent now.
    #[must_use]
    pub const fn available(&self) -> u64 {
        self.cash.saturating_add(self.earned)
    }
}

/// A channel as the books know it, for a party that has forgotten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booked {
    /// The channel.
    pub channel: ChannelId,
    /// Account that pays.
    pub payer: AccountId,
    /// Node that is paid.
    pub payee: NodeId,
    /// Last epoch in which it takes jobs.
    pub expires: Epoch,
    /// Base paid out.
    pub redeemed: u64,
    /// Says that it is closed.
    pub closed: bool,
}

/// What a channel has paid, as its builder is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// The channel.
    pub channel: ChannelId,
    /// Account that pays.
    pub payer: AccountId,
    /// The builder's markup, in basis points.
    pub bps: u16,
    /// Base paid out.
    pub redeemed: u64,
    /// Says that it is closed.
    pub closed: bool,
    /// Epoch in which this was so.
    pub epoch: Epoch,
}

/// The issuer's books.
#[derive(Debug, Clone)]
pub struct Issuer {
    domain: DomainId,
    manifest: Manifest,
    accounts: BTreeMap<AccountId, Account>,
    /// Accounts that open channels pay and that are not there yet.
    awaited: BTreeSet<AccountId>,
    channels: BTreeMap<ChannelId, Channel>,
    /// After which epoch a channel ends if it is open, or is forgotten if it is closed: every channel once or twice.
    due: BTreeSet<(Epoch, ChannelId)>,
    /// References of deposits, so that each counts once, with what was booked under them.
    deposits: BTreeMap<Digest, (AccountId, u64)>,
    /// Closed since the last checkpoint.
    ended: BTreeSet<ChannelId>,
    deposited: u128,
    /// The part of it that came out of the network's budget.
    given: u128,
    withdrawals: transfers::Withdrawals,
    counting: counting::Counting,
    /// Our word on channels whose opening waits, as it may after a checkpoint.
    parked: BTreeMap<ChannelId, settling::Word>,
}

#[derive(Debug, Clone, Default)]
struct Account {
    balance: Balance,
    next: u64,
    head: Option<RecordId>,
    /// The steps for which we voted, by slot, from the next one on; no other gets our vote. There is more than one where
    /// the step before one of them cannot be taken for the time being.
    locks: BTreeMap<u64, RecordId>,
    /// The last of its slots that a checkpoint has freed.
    freed: Option<settling::Freed>,
    channels: u32,
    /// Its keys, once an account with a next key has begun; boxed, because plain accounts have none.
    lineage: Option<Box<Lineage>>,
}

#[derive(Debug, Clone)]
struct Channel {
    payer: AccountId,
    /// Its node that pays.
    payer_node: NodeId,
    payer_key: PublicKey,
    terms: Terms,
    cap: u64,
    held: Held,
    /// What it held when it was opened.
    opened: Held,
    redeemed: u64,
    expires: Epoch,
    /// What the last checkpoint states as paid: it does not end below.
    stated: u64,
    /// The amount with which we voted to let it end: nothing beyond is redeemed.
    ending: Option<u64>,
    closed: bool,
    /// Last epoch in which its end is remembered, once a checkpoint states it.
    kept_to: Option<Epoch>,
}

/// What a channel holds, by bucket; `earned` is spent first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    earned: u64,
    cash: u64,
}

/// Why an issuer does not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum IssuerError {
    /// The signature is not the account's, the node's or the channel's.
    #[error("signed with the wrong key")]
    WrongKey,
    /// The step does not follow the account's last one.
    #[error("the step does not follow the account's last one, which is number {next}")]
    WrongSequence {
        /// Position of the step that would follow.
        next: u64,
    },
    /// Made in another epoch.
    #[error("made in another epoch; the clocks differ")]
    WrongEpoch,
    /// The channel would last too long, or no time at all.
    #[error("the channel's last epoch is not one of the next {VALIDITY_EPOCHS_MAX}")]
    WrongExpiry,
    /// The step names other terms than those shown.
    #[error("the step and the terms do not belong together")]
    WrongTerms,
    /// The terms break the network's rules.
    #[error("the terms break the network's rules: {0}")]
    BadTerms(TermsError),
    /// Not enough to spend.
    #[error("not enough credits: {needed} nano-credits needed, {available} available")]
    NotEnough {
        /// Needed.
        needed: u64,
        /// There.
        available: u64,
    },
    /// No such channel here.
    #[error("this channel is unknown here")]
    UnknownChannel,
    /// The channel is closed.
    #[error("this channel is closed")]
    Closed,
    /// The amount is beyond the cap or below what was paid.
    #[error("the amount is above the channel's cap, or below what it has paid")]
    WrongAmount,
    /// A bound was reached.
    #[error(
        "this issuer has reached its bound on accounts, channels, withdrawals that wait, or gifts before the next \
         checkpoint"
    )]
    Full,
    /// An amount exceeds 64 bits.
    #[error("an amount exceeds what 64 bits hold")]
    Overflow,
    /// The deposit would exceed the budget for gifts.
    #[error("the network's budget for grants is used up: {left} nano-credits are left")]
    Budget {
        /// What is left of it.
        left: u64,
    },
    /// Not enough that can be given away or withdrawn.
    #[error(
        "not enough cash: {needed} nano-credits needed with the fee, {available} available (what was earned \
             under Exchange can be spent on work only)"
    )]
    NotEnoughCash {
        /// Needed, with the fee.
        needed: u64,
        /// There.
        available: u64,
    },
    /// A payment or a gift of nothing, or a payment to oneself.
    #[error("a payment, a gift or a withdrawal must be of something, and a payment to somebody else")]
    NoTransfer,
    /// The reference was booked with another account or amount.
    #[error("this reference was booked before, for another account or amount: {amount} nano-credits")]
    OtherDeposit {
        /// What was booked under it.
        amount: u64,
    },
    /// No such withdrawal here.
    #[error("this withdrawal is unknown here")]
    UnknownWithdrawal,
    /// The withdrawal was paid with another reference.
    #[error("this withdrawal was marked as paid before, with another reference")]
    OtherReference,
    /// A rotation has replaced the key.
    #[error("the account's key was replaced: whoever has its recovery phrase can make the next one")]
    KeyReplaced,
    /// The account cannot begin or rotate, or not so.
    #[error("the account's key cannot be replaced so: it is not the next key, or there is none")]
    CannotRotate,
    /// The account holds nothing and never did.
    #[error("this account has never held anything, so there is nothing to guard yet")]
    UnknownAccount,
    /// Another step has our vote.
    #[error("the account has signed another step for the same position")]
    SlotLocked,
    /// Too few issuers signed.
    #[error("this is not signed by a quorum of issuers")]
    NoQuorum,
    /// This issuer has not yet heard of something that the others know.
    #[error("this issuer is behind the others; it will catch up")]
    Behind,
    /// The account, or all of them, have made too many steps since the last checkpoint.
    #[error(
        "the issuers take no more steps of this account before the next checkpoint, after {made} since the last: wait \
             until the epoch is over; open channels go on"
    )]
    TooManySteps {
        /// Steps of the account since the last checkpoint.
        made: u64,
    },
    /// No quorum has taken the step while its epoch lasted, and a checkpoint has given its place back.
    #[error(
        "too few issuers took the step while its epoch lasted, so it is given up, and nothing was spent by it: make it \
             again"
    )]
    Lapsed,
    /// A withdrawal of less than its fee: somebody pays each out by hand.
    #[error("a withdrawal must be of at least {least} nano-credits")]
    TooLittle {
        /// The least that can be withdrawn.
        least: u64,
    },
    /// There is enough, but a part of it is counted only when more issuers have paid it.
    #[error(
        "not enough credits that all issuers count: {needed} nano-credits needed, {available} counted; the rest was paid \
             by too few issuers so far, and counts when more have paid it, or from the next checkpoint on"
    )]
    Uncounted {
        /// Needed.
        needed: u64,
        /// What counts.
        available: u64,
    },
}

/// What is done with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taking {
    /// Judge it, and change nothing.
    Judge,
    /// Judge it and carry it out: the only issuer's way.
    AtOnce,
    /// Carry it out: a quorum has judged it.
    Certified,
    /// Judge what our own journal says that we judged: rules that came later do not hold for it.
    JudgeAgain,
    /// Carry out again what our own journal says that we took.
    Again,
}

impl Taking {
    /// Says whether nothing is to be changed.
    const fn only_judges(self) -> bool {
        matches!(self, Self::Judge | Self::JudgeAgain)
    }

    /// Says whether all rules hold, also those by which a step was taken that is in a journal.
    const fn is_first(self) -> bool {
        matches!(self, Self::Judge | Self::AtOnce)
    }
}

impl From<KeyError> for IssuerError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Foreign => Self::WrongKey,
            KeyError::Replaced => Self::KeyReplaced,
            KeyError::NotPromised | KeyError::Fixed => Self::CannotRotate,
        }
    }
}

impl From<Overflow> for IssuerError {
    fn from(Overflow: Overflow) -> Self {
        Self::Overflow
    }
}

impl Issuer {
    /// Returns the empty books of a network.
    #[must_use]
    pub fn new(manifest: Manifest) -> Self {
        let domain = manifest.domain();
        Self {
            domain,
            manifest,
            accounts: BTreeMap::new(),
            awaited: BTreeSet::new(),
            channels: BTreeMap::new(),
            due: BTreeSet::new(),
            deposits: BTreeMap::new(),
            ended: BTreeSet::new(),
            deposited: 0,
            given: 0,
            withdrawals: transfers::Withdrawals::default(),
            counting: counting::Counting::default(),
            parked: BTreeMap::new(),
        }
    }

    /// Returns the network's manifest.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns what `account` holds; an unknown account holds nothing.
    #[must_use]
    pub fn balance(&self, account: AccountId) -> Balance {
        self.accounts.get(&account).map(|account| account.balance).unwrap_or_default()
    }

    /// Returns the position and the predecessor of `account`'s next step.
    #[must_use]
    pub fn next_slot(&self, account: AccountId) -> (u64, RecordId) {
        let account = self.accounts.get(&account);
        account.map_or((0, RecordId::NONE), |account| (account.next, account.head.unwrap_or(RecordId::NONE)))
    }

    /// Returns the keys of an account that has a next key and has begun.
    #[must_use]
    pub fn lineage(&self, account: AccountId) -> Option<&Lineage> {
        self.accounts.get(&account)?.lineage.as_deref()
    }

    /// Returns every account with what it holds.
    pub fn balances(&self) -> impl Iterator<Item = (AccountId, Balance)> + '_ {
        self.accounts.iter().map(|(id, account)| (*id, account.balance))
    }

    /// Returns all nano-credits that ever entered.
    #[must_use]
    pub const fn deposited(&self) -> u128 {
        self.deposited
    }

    /// Returns what may still be given away.
    #[must_use]
    pub fn budget_left(&self) -> u64 {
        let spent = u64::try_from(self.given).unwrap_or(u64::MAX);
        self.manifest.grant_budget.saturating_sub(spent)
    }

    /// Returns the account and the amount that were booked under a deposit's reference.
    #[must_use]
    pub fn deposit_of(&self, reference: Digest) -> Option<(AccountId, u64)> {
        self.deposits.get(&reference).copied()
    }

    /// Says whether all that is held anywhere is exactly what was deposited and not withdrawn.
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        let sum =
            |balance: Balance| [balance.cash, balance.earned, balance.held].into_iter().map(u128::from).sum();
        let accounts: u128 = self.accounts.values().map(|account| -> u128 { sum(account.balance) }).sum();
        let channels: u128 = self
            .channels
            .values()
            .map(|c| u128::from(c.held.cash).saturating_add(u128::from(c.held.earned)))
            .sum();
        let held: u128 = self.accounts.values().map(|account| u128::from(account.balance.held)).sum();
        accounts.checked_add(self.withdrawn()) == Some(self.deposited) && channels == held
    }

    /// Checks that a gift of `amount` fits the network's budget.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_budget(&self, amount: u64) -> Result<(), IssuerError> {
        let left = self.budget_left();
        if amount <= left { Ok(()) } else { Err(IssuerError::Budget { left }) }
    }

    /// Books credits that entered; a reference that was booked before changes nothing.
    ///
    /// # Errors
    /// When the reference was booked for another account or amount, the amount exceeds 64 bits, or the books are full.
    pub fn deposit(&mut self, deposit: &Deposit) -> Result<(), IssuerError> {
        match self.deposit_of(deposit.reference) {
            Some(booked) if booked == (deposit.account, deposit.amount) => return Ok(()),
            Some((_, amount)) => return Err(IssuerError::OtherDeposit { amount }),
            None => {}
        }
        let cash =
            self.balance(deposit.account).cash.checked_add(deposit.amount).ok_or(IssuerError::Overflow)?;
        let deposited =
            self.deposited.checked_add(u128::from(deposit.amount)).ok_or(IssuerError::Overflow)?;
        let given = match deposit.source {
            Source::Budget => {
                self.given.checked_add(u128::from(deposit.amount)).ok_or(IssuerError::Overflow)?
            }
            Source::Outside => self.given,
        };
        self.check_room_for(deposit.account)?;

        let balance = &mut self.account_in(deposit.account).balance;
        balance.cash = cash;
        balance.as_of = balance.as_of.saturating_add(1);
        self.deposits.insert(deposit.reference, (deposit.account, deposit.amount));
        self.deposited = deposited;
        self.given = given;
        Ok(())
    }

    /// Takes a step of an account; a step taken before changes nothing.
    ///
    /// # Errors
    /// Says which rule the step breaks.
    pub fn apply(
        &mut self,
        op: &Verified<AccountOp>,
        terms: Option<&Verified<Terms>>,
        now: Epoch,
    ) -> Result<(), IssuerError> {
        self.take(op, terms, now, Taking::AtOnce)
    }

    /// Takes a step once more that our own journal says we took in epoch `now`. Rules that came later do not hold for it.
    ///
    /// # Errors
    /// When it contradicts what came before it.
    pub fn replay_step(
        &mut self,
        op: &Verified<AccountOp>,
        terms: Option<&Verified<Terms>>,
        now: Epoch,
    ) -> Result<(), IssuerError> {
        self.take(op, terms, now, Taking::Again)
    }

    fn take(
        &mut self,
        op: &Verified<AccountOp>,
        terms: Option<&Verified<Terms>>,
        now: Epoch,
        taking: Taking,
    ) -> Result<(), IssuerError> {
        let (next, head) = self.next_slot(op.account);
        if op.id() == head {
            return Ok(());
        }
        let follows = op.sequence == next && op.previous == head;
        // Which key may sign a step that comes later is not known yet.
        if !(self.is_one_of_many() && op.sequence > next) {
            check_signer(op, self.lineage(op.account))?;
        }
        if !follows {
            return Err(IssuerError::WrongSequence { next });
        }
        if op.epoch.0.abs_diff(now.0) > 1 && taking != Taking::Certified {
            return Err(IssuerError::WrongEpoch);
        }
        match &op.body {
            OpBody::OpenChannel(open) => {
                self.open(op, open, terms.ok_or(IssuerError::WrongTerms)?, now, taking)?;
            }
            OpBody::Expire(channel) => self.expire_soon(op, *channel, now, taking)?,
            OpBody::Pay { to, amount } => self.pay(op.account, *to, *amount, taking)?,
            OpBody::Withdraw { amount, payout } => {
                let epoch = if taking == Taking::Certified { op.epoch } else { now };
                self.withdraw(op.id(), (op.account, *amount), (*payout, epoch), taking)?;
            }
            OpBody::Noop => self.fill_slot(op.account, taking)?,
            OpBody::Inception(inception) => self.begin(op.account, *inception, taking)?,
            OpBody::Rotate(_) => self.rotate(op, taking)?,
        }
        if taking.only_judges() {
            return Ok(());
        }
        let account = self.account_in(op.account);
        account.next = account.next.saturating_add(1);
        account.head = Some(op.id());
        account.locks = account.locks.split_off(&account.next);
        account.balance.as_of = account.balance.as_of.saturating_add(1);
        Ok(())
    }

    /// Takes note of how an account with a next key begins. It must be known by something that it was given: steps are
    /// free, and books grow by them.
    fn begin(&mut self, account: AccountId, inception: Inception, taking: Taking) -> Result<(), IssuerError> {
        let account = self.accounts.get_mut(&account).ok_or(IssuerError::UnknownAccount)?;
        if taking.only_judges() {
            return Ok(());
        }

        account.lineage = Some(Box::new(Lineage::new(inception)));
        Ok(())
    }

    fn rotate(&mut self, op: &Verified<AccountOp>, taking: Taking) -> Result<(), IssuerError> {
        let lineage = self.accounts.get_mut(&op.account).and_then(|account| account.lineage.as_mut());
        let lineage = lineage.ok_or(IssuerError::CannotRotate)?;
        if taking.only_judges() && !mutant::is_in("rotate-at-vote") {
            // Whether the key is the promised one was checked with the signature.
            return Ok(());
        }

        Ok(lineage.rotate(op)?)
    }

    /// Returns the payer's account and the payee's node of a channel.
    #[must_use]
    pub fn parties(&self, channel: ChannelId) -> Option<(AccountId, NodeId)> {
        self.channels.get(&channel).map(|channel| (channel.payer, channel.terms.payee))
    }

    /// Returns what a channel has paid, and whether it is closed.
    #[must_use]
    pub fn channel(&self, channel: ChannelId) -> Option<(u64, bool)> {
        self.channels.get(&channel).map(|channel| (channel.redeemed, channel.closed))
    }

    /// Returns the builder whom a channel pays, if it pays one, with what it has paid.
    #[must_use]
    pub fn routed(&self, id: ChannelId, epoch: Epoch) -> Option<(AccountId, Routed)> {
        let channel = self.channels.get(&id)?;
        let Markup { builder, bps } = channel.terms.markup?;
        let Channel { payer, redeemed, closed, .. } = *channel;
        Some((builder, Routed { channel: id, payer, bps, redeemed, closed, epoch }))
    }

    /// Returns the channels that have paid builders, each with its builder. Looks at every channel.
    pub fn all_routed(&self) -> impl Iterator<Item = (AccountId, ChannelId)> + '_ {
        let paid = self.channels.iter().filter(|(_, channel)| channel.redeemed > 0);
        paid.filter_map(|(id, channel)| Some((channel.terms.markup?.builder, *id)))
    }

    /// Returns the channels after `after`, in their order, on which `node` pays for `account` or is paid. Looks at every
    /// channel.
    pub fn channels_of(
        &self,
        account: AccountId,
        node: NodeId,
        after: ChannelId,
    ) -> impl Iterator<Item = Booked> + '_ {
        let later = self.channels.range((Bound::Excluded(after), Bound::Unbounded));
        let concerns = move |channel: &Channel| {
            channel.terms.payee == node || (channel.payer == account && channel.payer_node == node)
        };
        later.filter(move |(_, channel)| concerns(channel)).map(|(id, channel)| Booked {
            channel: *id,
            payer: channel.payer,
            payee: channel.terms.payee,
            expires: channel.expires,
            redeemed: channel.redeemed,
            closed: channel.closed,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::vec::Vec;

    use crate::advert::Incentive;
    use crate::keys::Signer;
    use crate::ledger::records::{Final, OpenChannel};
    use crate::licence::open_licence;
    use crate::model::Modality;
    use crate::price::Price;
    use crate::signed::{Role, sign};
    use crate::time::Time;

    pub(crate) fn signer(seed: u8) -> Signer {
        Signer::from_seed([seed; 32])
    }

    /// Returns books with one open channel that expires in epoch 2.
    pub(crate) fn books() -> (Issuer, ChannelId) {
        let issuer = NodeId::from(signer(2).public());
        let manifest = Manifest::home("home".into(), Time(0), &signer(1), issuer);
        let mut books = Issuer::new(manifest.clone());
        let (payer, payee_account) =
            (AccountId::from(signer(3).public()), AccountId::from(signer(50).public()));
        let deposit = Deposit {
            reference: Digest::ZERO,
            account: payer,
            amount: 1_000_000_000,
            epoch: Epoch(0),
            source: Source::Outside,
        };
        books.deposit(&deposit).expect("fits");
        let model = crate::ids::ModelId([7; 32]);
        let terms = Terms {
            payee: signer(5).public().into(),
            payee_account,
            payee_key: signer(60).public(),
            payer_account: payer,
            model,
            licence: open_licence(model, manifest.domain()),
            incentive: Incentive::Exchange,
            price: Price::default(),
            markup: None,
            split: Terms::standard_split(&manifest, Modality::Text, payee_account),
            valid_to: Epoch(7),
        };
        let terms = sign(terms, manifest.domain(), Role::Node, &signer(5));
        let body = OpBody::OpenChannel(OpenChannel {
            payee: terms.payee,
            terms: terms.id(),
            cap: 1_000_000,
            expires: Epoch(2),
            payer: signer(4).public().into(),
            payer_key: signer(70).public(),
        });
        let op = AccountOp { account: payer, sequence: 0, previous: RecordId::NONE, epoch: Epoch(0), body };
        let op = sign(op, manifest.domain(), Role::Owner, &signer(3));
        books.apply(&op, Some(&terms), Epoch(0)).expect("within the rules");
        (books, op.id().into())
    }

    #[test]
    fn a_channel_ends_after_grace_and_is_forgotten_later() {
        let (mut books, channel) = books();

        assert_eq!(books.expire(Epoch(5)), Vec::new());
        assert_eq!(books.expire(Epoch(6)).len(), 1);
        assert_eq!(books.channel(channel), Some((0, true)));
        assert_eq!(books.expire(Epoch(12)), Vec::new());
        assert_eq!(books.channel(channel), Some((0, true)));
        assert_eq!(books.expire(Epoch(13)), Vec::new());
        assert_eq!(books.channel(channel), None);
        assert!(books.is_conserved());
    }

    /// Has the books know as many accounts.
    pub(crate) fn fill(books: &mut Issuer, count: usize) {
        let ids = (0_u64..).map(|number| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            AccountId(id)
        });
        let more = count - books.accounts.len();
        let new: Vec<AccountId> = ids.filter(|id| !books.accounts.contains_key(id)).take(more).collect();
        books.accounts.extend(new.into_iter().map(|id| (id, Account::default())));
    }

    pub(crate) fn deposit_for(tag: u8) -> Deposit {
        let (reference, account) = (Digest([tag; 32]), AccountId([tag; 32]));
        Deposit { reference, account, amount: 7, epoch: Epoch(0), source: Source::Outside }
    }

    pub(crate) fn payment_to(books: &Issuer, to: AccountId) -> Verified<AccountOp> {
        let account = AccountId::from(signer(3).public());
        let (sequence, previous) = books.next_slot(account);
        let body = OpBody::Pay { to, amount: 1 };
        let op = AccountOp { account, sequence, previous, epoch: Epoch(0), body };
        sign(op, books.domain, Role::Owner, &signer(3))
    }

    #[test]
    fn whom_an_open_channel_pays_has_a_place_in_full_books() {
        let (mut books, channel) = books();
        let payee = AccountId::from(signer(50).public());
        // The payee's and the pool's place are taken, though neither was paid.
        fill(&mut books, ACCOUNTS_MAX - 3);
        assert_eq!(books.deposit(&deposit_for(91)), Ok(()));
        assert_eq!(books.deposit(&deposit_for(92)), Err(IssuerError::Full));
        assert_eq!(books.deposit(&Deposit { account: payee, ..deposit_for(93) }), Ok(()), "it has a place");

        let closing = Final { channel, amount: 500_000, receipt: None };
        let closing = sign(closing, books.domain, Role::Payer, &signer(70));
        let closing = closing.signed_also_by(books.domain, Role::Payee, &signer(60));
        assert_eq!(books.close(&closing), Ok(500_000));
        assert_eq!((books.accounts.len(), books.awaited.len()), (ACCOUNTS_MAX, 0));
        assert_eq!(books.balance(payee).earned, 460_000);
        assert!(books.is_conserved());
    }

    #[test]
    fn payments_and_channels_leave_room_for_deposits() {
        let (mut books, _) = books();
        let [first, second] = [81, 82].map(|tag| AccountId([tag; 32]));
        let awaited = books.awaited.len();
        fill(&mut books, ACCOUNTS_BY_STEPS_MAX - awaited - 1);
        let last = payment_to(&books, first);
        assert_eq!(books.apply(&last, None, Epoch(0)), Ok(()));
        let beyond = payment_to(&books, second);
        assert_eq!(books.clone().lock(&beyond, None, Epoch(0)), Err(IssuerError::Full));
        assert_eq!(books.apply(&beyond, None, Epoch(0)), Err(IssuerError::Full));
        assert_eq!(books.clone().replay_step(&beyond, None, Epoch(0)), Ok(()), "an old journal may hold it");

        // Whoever is known is paid, and whoever is given something is known.
        let known = payment_to(&books, first);
        assert_eq!(books.apply(&known, None, Epoch(0)), Ok(()));
        assert_eq!(books.deposit(&deposit_for(82)), Ok(()));
        let to_known = payment_to(&books, second);
        assert_eq!(books.apply(&to_known, None, Epoch(0)), Ok(()));
    }
}
