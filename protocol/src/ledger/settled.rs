//! What the last checkpoint settled, and the facts since: from both, several issuers come to the same next checkpoint.
//!
//! A checkpoint is what the books of the one before become when a list of facts is taken in its order. The list is the
//! proposer's; each fact in it proves itself. So books that took facts in different orders, or lack some, agree again at
//! every checkpoint, down to the bucket that a hold came from.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::ids::{AccountId, ChannelId, Digest, RecordId};
use crate::ledger::allowance::{KEY_STEPS_MAX, KEY_STEPS_OF_ONE_MAX, has_room, own_steps};
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::facts::FACTS_MAX;
use crate::ledger::issuer::{Balance, Issuer, IssuerError};
use crate::ledger::merkle::Tree;
use crate::ledger::quorum::{Certificate, Fact, end_name};
use crate::ledger::records::{AccountOp, Claim, Epoch, OpBody, Receipt};
use crate::manifest::Manifest;
use crate::message::Checked;
use crate::mutant;
use crate::signed::Verified;

/// Most facts in one checkpoint: those since the last one, and what comes while they are agreed on.
pub const BATCH_MAX: usize = FACTS_MAX;

/// Checkpoints whose facts are kept for issuers that were away: as many as every node keeps checkpoints.
const PAST_MAX: usize = 16;

/// What the last checkpoint settled, and the facts since.
#[derive(Debug, Clone)]
pub struct Settled {
    books: Issuer,
    previous: RecordId,
    epoch: Option<Epoch>,
    /// In the order in which they were taken; a redemption stands where the first one of its channel did, and why a slot
    /// is stuck where the first such fact of its account did.
    since: Vec<Arc<Fact<Checked>>>,
    names: BTreeMap<RecordId, usize>,
    paid: BTreeMap<ChannelId, usize>,
    stuck: BTreeMap<AccountId, usize>,
    /// How many steps since are beyond what was their accounts' own, without those that cost nothing.
    common: u64,
    /// How many of those each account has made.
    keys: BTreeMap<AccountId, u64>,
    /// The facts of checkpoints that may come to stand: our books may have taken others in their places since.
    held: BTreeMap<Digest, BTreeMap<RecordId, Arc<Fact<Checked>>>>,
    /// Facts that a proposal names and that our own books have not taken.
    learned: BTreeMap<RecordId, Arc<Fact<Checked>>>,
    /// Facts that our books cannot take until a checkpoint stands, because we have prepared one that says otherwise, or
    /// what they take back is spent: another one may state them. They are whole: no other copy of them counts where these do not.
    contested: BTreeMap<RecordId, Arc<Fact<Checked>>>,
    /// The facts of the last checkpoints.
    past: VecDeque<Past>,
}

/// Whose room a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Its account's own.
    Own,
    /// That of beginnings and rotations, which cost nothing.
    Keys,
    /// That of whoever comes first.
    Common,
}

/// The facts of a checkpoint that stands.
#[derive(Debug, Clone)]
struct Past {
    digest: Digest,
    names: Vec<RecordId>,
    facts: BTreeMap<RecordId, Arc<Fact<Checked>>>,
}

/// The books with some facts taken: what a checkpoint would state.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The books that it states.
    pub books: Issuer,
    /// Slots that it frees.
    pub freed: Vec<(AccountId, u64)>,
    /// Channels that it ends because no quorum has, each with the base paid.
    pub ended: Vec<(ChannelId, u64)>,
}

/// Why facts lead to no checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchError {
    /// Some are not here.
    Missing,
    /// One cannot be taken where it stands.
    Fact(IssuerError),
    /// There are too many, or their sums cannot be stated.
    Bounds,
}

/// Returns what a checkpoint states of the facts that led to it.
#[must_use]
pub fn digest_of(names: &[RecordId]) -> Digest {
    let bytes: Vec<u8> = names.iter().flat_map(|name| name.0).collect();
    Digest::of(&bytes)
}

/// Takes a fact into books; says whether it changed anything.
fn take(books: &mut Issuer, fact: &Fact<Checked>, epoch: Epoch) -> Result<bool, IssuerError> {
    match fact {
        Fact::Deposit(deposit) => books.enter(deposit),
        Fact::Step(certificate) => books.certify(certificate, epoch),
        Fact::End(certificate) => books.end_by(certificate),
        Fact::Redeemed { receipt, claim } => books.redeem_claimed(receipt, claim.as_ref()),
        // An operator's word on what happened outside moves no credits.
        Fact::Paid(_) => Ok(false),
        Fact::Doubled(first, second) => books.free_slot((first, second), epoch).map(|()| true),
        Fact::Lapsed(op) => books.free_lapsed(op, epoch).map(|()| true),
    }
}

impl Settled {
    /// Returns what is settled before the first checkpoint: nothing.
    #[must_use]
    pub fn new(manifest: Manifest) -> Self {
        Self {
            books: Issuer::new(manifest),
            previous: RecordId::NONE,
            epoch: None,
            since: Vec::new(),
            names: BTreeMap::new(),
            paid: BTreeMap::new(),
            stuck: BTreeMap::new(),
            common: 0,
            keys: BTreeMap::new(),
            held: BTreeMap::new(),
            learned: BTreeMap::new(),
            contested: BTreeMap::new(),
            past: VecDeque::new(),
        }
    }

    /// Returns the last checkpoint.
    #[must_use]
    pub const fn previous(&self) -> RecordId {
        self.previous
    }

    /// Returns its epoch.
    #[must_use]
    pub const fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Returns how many facts have been taken since.
    #[must_use]
    pub const fn since(&self) -> usize {
        self.since.len()
    }

    /// Says whether an account may make a step before the next checkpoint. The step's place less the one that the last
    /// checkpoint states is the same at all issuers that have followed that one, and so is what the account held then; only
    /// how much is left of what is common differs, by the steps under way.
    ///
    /// # Errors
    /// [`IssuerError::TooManySteps`] when it may not.
    pub fn check_room(&self, op: &AccountOp) -> Result<(), IssuerError> {
        let made = self.made_before(op);
        let has_room = match self.room_of(op) {
            Room::Own => true,
            // Whoever was robbed of a key must be able to replace it, whatever the thief has signed.
            Room::Keys => {
                let made = self.keys.get(&op.account).copied().unwrap_or(0);
                made < KEY_STEPS_OF_ONE_MAX && self.keys.values().sum::<u64>() < KEY_STEPS_MAX
            }
            Room::Common => has_room(made, self.own_steps(op.account), self.common),
        };
        if has_room || mutant::is_in("steps-unlimited") {
            Ok(())
        } else {
            Err(IssuerError::TooManySteps { made })
        }
    }

    /// Returns the room that a step takes.
    fn room_of(&self, op: &AccountOp) -> Room {
        if self.made_before(op) < self.own_steps(op.account) {
            Room::Own
        } else if matches!(op.body, OpBody::Rotate(_) | OpBody::Inception(_)) {
            Room::Keys
        } else {
            Room::Common
        }
    }

    /// Returns how many steps its account has made before a step and since the last checkpoint.
    fn made_before(&self, op: &AccountOp) -> u64 {
        op.sequence.saturating_sub(self.books.next_slot(op.account).0)
    }

    fn own_steps(&self, account: AccountId) -> u64 {
        let Balance { cash, earned, held, .. } = self.books.balance(account);
        let held = [cash, earned, held].into_iter().map(u128::from).sum();
        own_steps(held, self.books.deposited().saturating_sub(self.books.withdrawn()))
    }

    /// Counts a step in the room that it takes.
    fn count(&mut self, fact: &Fact<Checked>) {
        let Fact::Step(Certificate { op, .. }) = fact else { return };
        match self.room_of(op) {
            Room::Own => {}
            Room::Keys => {
                let made = self.keys.entry(op.account).or_default();
                *made = made.saturating_add(1);
            }
            Room::Common => self.common = self.common.saturating_add(1),
        }
    }

    /// Remembers a fact that our books have taken.
    pub fn took(&mut self, fact: Arc<Fact<Checked>>) {
        let name = fact.name();
        if self.names.contains_key(&name) {
            return;
        }
        self.learned.remove(&name);
        let last = self.since.len();
        let place = match &*fact {
            Fact::Paid(_) => return,
            Fact::Redeemed { receipt, .. } => *self.paid.entry(receipt.channel).or_insert(last),
            Fact::Doubled(op, _) | Fact::Lapsed(op) => *self.stuck.entry(op.account).or_insert(last),
            Fact::Deposit(_) | Fact::Step(_) | Fact::End(_) => last,
        };
        self.names.insert(name, place);
        if let Some(old) = self.since.get_mut(place) {
            self.names.remove(&old.name());
            *old = fact;
        } else {
            self.count(&fact);
            self.since.push(fact);
        }
    }

    /// Returns the redemption of a channel that is not settled yet.
    #[must_use]
    pub fn paid(&self, channel: ChannelId) -> Option<&Arc<Fact<Checked>>> {
        self.since.get(*self.paid.get(&channel)?)
    }

    /// Returns the slot of an account that is known to be stuck since: two steps were signed for it, or one that is too
    /// old.
    #[must_use]
    pub fn stuck(&self, account: AccountId) -> Option<u64> {
        slot_of(self.since.get(*self.stuck.get(&account)?)?).map(|(_, sequence)| sequence)
    }

    /// Remembers a fact that a proposal names; at most so many as it can name.
    pub fn learn(&mut self, fact: Arc<Fact<Checked>>) {
        let name = fact.name();
        if !self.names.contains_key(&name) && self.learned.len() < BATCH_MAX {
            self.learned.insert(name, fact);
        }
    }

    /// Makes room for so many facts more by forgetting all that were learned, if there is too little.
    pub fn make_room(&mut self, more: usize) {
        if self.learned.len().saturating_add(more) > BATCH_MAX {
            self.learned.clear();
        }
    }

    /// Keeps for our next proposal what speaks against one that we have prepared: others object to that one, and what we
    /// propose must be something that all can prepare.
    pub fn contest(&mut self, fact: Fact<Checked>) {
        if !mutant::is_in("uncontested") {
            self.contested.insert(fact.name(), Arc::new(fact));
        }
    }

    /// Forgets facts that proposals named and that no checkpoint stated.
    pub fn forget_learned(&mut self) {
        self.learned.clear();
    }

    /// Keeps the facts of a checkpoint that may come to stand, as they are now.
    pub fn hold(&mut self, facts: Digest, names: &[RecordId]) {
        if !self.held.contains_key(&facts) {
            let held = names.iter().filter_map(|name| Some((*name, self.get(name)?.clone()))).collect();
            self.held.insert(facts, held);
        }
    }

    /// Lets go of the facts of all checkpoints but these.
    pub fn release(&mut self, but: &BTreeSet<Digest>) {
        self.held.retain(|facts, _| but.contains(facts));
    }

    /// Returns a fact that is not settled, or was lately.
    #[must_use]
    pub fn get(&self, name: &RecordId) -> Option<&Arc<Fact<Checked>>> {
        let taken = self.names.get(name).and_then(|place| self.since.get(*place));
        let held = || self.held.values().find_map(|held| held.get(name));
        let past = || self.past.iter().find_map(|past| past.facts.get(name));
        let contested = || self.contested.get(name);
        taken.or_else(contested).or_else(|| self.learned.get(name)).or_else(held).or_else(past)
    }

    /// Says whether our books have taken a fact since the last checkpoint.
    #[must_use]
    pub fn has_taken(&self, name: &RecordId) -> bool {
        self.names.contains_key(name)
    }

    /// Says whether what the last checkpoint states makes a fact void.
    #[must_use]
    pub fn is_void(&self, fact: &Fact<Checked>) -> bool {
        is_void(&self.books, fact)
    }

    /// Says whether the last checkpoint states which step took the slot of this one.
    #[must_use]
    pub fn is_past(&self, op: &AccountOp) -> bool {
        op.sequence < self.books.next_slot(op.account).0
    }

    /// Returns the names of the facts of one of the last checkpoints.
    #[must_use]
    pub fn past(&self, digest: Digest) -> Option<&[RecordId]> {
        self.past.iter().find(|past| past.digest == digest).map(|past| past.names.as_slice())
    }

    /// Returns the facts that we would have the checkpoint of `epoch` state, and what it comes to. What cannot be taken
    /// waits for a later one.
    ///
    /// # Errors
    /// When the sums cannot be stated.
    pub fn propose(&self, epoch: Epoch) -> Result<(Vec<RecordId>, Outcome), BatchError> {
        let mut books = self.books.clone();
        let mut names = Vec::new();
        let mut freed = Vec::new();
        let stepped = self.stepped();
        let is_stuck = |fact: &Fact<Checked>| slot_of(fact).is_none_or(|slot| !stepped.contains(&slot));
        let stated = |fact: &&Arc<Fact<Checked>>| !self.is_beyond_end(fact) && is_stuck(fact);
        for fact in self.since.iter().filter(stated).chain(self.contested.values()).take(BATCH_MAX) {
            if take(&mut books, fact, epoch) == Ok(true) {
                names.push(fact.name());
                freed.extend(slot_of(fact));
            }
        }
        let outcome = self.close(books, epoch, digest_of(&names), freed)?;
        Ok((names, outcome))
    }

    /// Returns those slots that were taken for stuck and in which a step has been certified all the same.
    fn stepped(&self) -> BTreeSet<(AccountId, u64)> {
        let stuck = self.stuck.keys().filter_map(|account| Some((*account, self.stuck(*account)?)));
        let contested = self.contested.values().filter_map(|fact| step_slot(fact));
        self.certified_in(&stuck.collect()).chain(contested).collect()
    }

    /// Returns those of these slots for which a certified step is known that no checkpoint states.
    pub fn certified_in<'a>(
        &'a self,
        slots: &'a BTreeSet<(AccountId, u64)>,
    ) -> impl Iterator<Item = (AccountId, u64)> + 'a {
        self.since.iter().filter_map(|fact| step_slot(fact)).filter(|slot| slots.contains(slot))
    }

    /// Returns the ends that our books have taken and no checkpoint states, each with the base paid.
    pub fn ends(&self) -> impl Iterator<Item = (ChannelId, u64)> + '_ {
        self.since.iter().filter_map(|fact| match &**fact {
            Fact::End(certificate) => certificate.votes.first().map(|vote| (vote.channel, vote.amount)),
            Fact::Step(_)
            | Fact::Deposit(_)
            | Fact::Redeemed { .. }
            | Fact::Doubled(..)
            | Fact::Lapsed(_)
            | Fact::Paid(_) => None,
        })
    }

    /// Says whether a redemption is above the end on which a quorum has agreed since.
    fn is_beyond_end(&self, fact: &Fact<Checked>) -> bool {
        let Fact::Redeemed { receipt, claim } = fact else { return false };
        let name = end_name(receipt.channel);
        let taken = self.names.get(&name).and_then(|place| self.since.get(*place));
        let Some(Fact::End(end)) = taken.or_else(|| self.contested.get(&name)).map(Arc::as_ref) else {
            return false;
        };
        let amount = most_claimed(receipt, claim.as_ref());
        end.votes.iter().any(|vote| vote.amount < amount)
    }

    /// Returns what these facts pay on each channel at most.
    #[must_use]
    pub fn paid_by(&self, names: &[RecordId]) -> Vec<(ChannelId, u64)> {
        let facts = names.iter().filter_map(|name| self.get(name));
        let paid = facts.filter_map(|fact| match &**fact {
            Fact::Redeemed { receipt, claim } => {
                Some((receipt.channel, most_claimed(receipt, claim.as_ref())))
            }
            Fact::Step(_)
            | Fact::Deposit(_)
            | Fact::End(_)
            | Fact::Doubled(..)
            | Fact::Lapsed(_)
            | Fact::Paid(_) => None,
        });
        paid.collect()
    }

    /// Returns what the checkpoint of `epoch` comes to with these facts.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn outcome(&self, epoch: Epoch, names: &[RecordId]) -> Result<Outcome, BatchError> {
        if names.len() > BATCH_MAX {
            return Err(BatchError::Bounds);
        }
        let mut books = self.books.clone();
        let mut freed = Vec::new();
        for name in names {
            let fact = self.get(name).ok_or(BatchError::Missing)?;
            match take(&mut books, fact, epoch) {
                Ok(true) => freed.extend(slot_of(fact)),
                // What changes nothing has no place in it.
                Ok(false) => return Err(BatchError::Fact(IssuerError::WrongAmount)),
                Err(error) => return Err(BatchError::Fact(error)),
            }
        }
        self.close(books, epoch, digest_of(names), freed)
    }

    fn close(
        &self,
        mut books: Issuer,
        epoch: Epoch,
        facts: Digest,
        freed: Vec<(AccountId, u64)>,
    ) -> Result<Outcome, BatchError> {
        let ended = books.resolve(epoch).map_err(BatchError::Fact)?;
        let snapshot = books.snapshot();
        let accounts = Tree::new(snapshot.accounts).map_err(|_| BatchError::Bounds)?.root();
        let channels = Tree::new(snapshot.channels).map_err(|_| BatchError::Bounds)?.root();
        let (deposited, withdrawn) = (books.deposited(), books.withdrawn());
        let previous = self.previous;
        let checkpoint = Checkpoint { epoch, previous, accounts, channels, deposited, withdrawn, facts };
        Ok(Outcome { checkpoint, books, freed, ended })
    }

    /// Takes over a checkpoint that stands: `live`, our own books, become what it settled and what was taken since and is
    /// not in it. Nothing that a quorum has recorded is dropped; what cannot be taken yet waits.
    pub fn adopt(&mut self, id: RecordId, names: &[RecordId], outcome: Outcome, live: &mut Issuer) {
        let Outcome { checkpoint, mut books, .. } = outcome;
        self.hold(checkpoint.facts, names);
        let facts = self.held.remove(&checkpoint.facts).unwrap_or_default();
        self.held.clear();
        self.past.push_back(Past { digest: checkpoint.facts, names: names.to_vec(), facts });
        let kept = |past: &VecDeque<Past>| past.iter().map(|past| past.names.len()).sum::<usize>();
        while self.past.len() > PAST_MAX || (self.past.len() > 1 && kept(&self.past) > FACTS_MAX) {
            self.past.pop_front();
        }
        books.end_epoch(checkpoint.epoch);
        books.settle_withdrawals();
        books.settle_paid();
        let mut now = books.clone();
        books.forget_withdrawals();

        let since = core::mem::take(&mut self.since);
        self.names.clear();
        self.paid.clear();
        self.stuck.clear();
        self.learned.clear();
        self.contested.clear();
        let mut waiting = Vec::new();
        for fact in since {
            if is_settled(&now, &fact) || is_void(&books, &fact) {
                live.drop_withdrawal_of(&fact, &now);
                continue;
            }
            // What waits for something else is tried again with the next checkpoint. A slot is freed by a checkpoint that
            // states why, and by nothing else: steps in a slot that only our books have freed would be lost again.
            now.keep_word(live, &fact);
            let frees = slot_of(&fact).is_some() && !mutant::is_in("freed-unstated");
            let waits = frees || take(&mut now, &fact, checkpoint.epoch).is_err();
            waiting.extend(waits.then(|| fact.clone()));
            self.took(fact);
        }
        let awaited = waiting.iter().filter_map(|fact| {
            let Fact::Step(certificate) = fact.as_ref() else { return None };
            Some(certificate.op.id().into())
        });
        now.carry_over(live, &awaited.collect());
        waiting.iter().for_each(|fact| now.keep_slot(fact));
        *live = now;
        (self.books, self.previous, self.epoch) = (books, id, Some(checkpoint.epoch));
        self.common = 0;
        self.keys.clear();
        for fact in self.since.clone() {
            self.count(&fact);
        }
    }
}

/// Returns the most that a redemption pays in all.
fn most_claimed(receipt: &Receipt, claim: Option<&Verified<Claim>>) -> u64 {
    claim.map_or(receipt.amount, |claim| claim.amount)
}

/// Returns the slot of a certified step.
fn step_slot(fact: &Fact<Checked>) -> Option<(AccountId, u64)> {
    match fact {
        Fact::Step(certificate) => Some((certificate.op.account, certificate.op.sequence)),
        Fact::Deposit(_)
        | Fact::End(_)
        | Fact::Redeemed { .. }
        | Fact::Doubled(..)
        | Fact::Lapsed(_)
        | Fact::Paid(_) => None,
    }
}

/// Returns the slot that a fact frees.
fn slot_of(fact: &Fact<Checked>) -> Option<(AccountId, u64)> {
    match fact {
        Fact::Doubled(op, _) | Fact::Lapsed(op) => Some((op.account, op.sequence)),
        Fact::Deposit(_) | Fact::Step(_) | Fact::End(_) | Fact::Redeemed { .. } | Fact::Paid(_) => None,
    }
}

/// Says whether books have a fact already.
fn is_settled(books: &Issuer, fact: &Fact<Checked>) -> bool {
    match fact {
        Fact::Paid(_) => true,
        Fact::Deposit(deposit) => books.deposit_of(deposit.reference).is_some(),
        Fact::Step(certificate) => books.next_slot(certificate.op.account).0 > certificate.op.sequence,
        Fact::End(certificate) => {
            let channel = certificate.votes.first().and_then(|vote| books.channel(vote.channel));
            channel.is_some_and(|(_, closed)| closed)
        }
        Fact::Redeemed { receipt, claim } => match books.channel(receipt.channel) {
            Some((paid, closed)) => {
                closed || books.amount_claimed(receipt, claim.as_ref()).is_ok_and(|amount| amount <= paid)
            }
            None => false,
        },
        Fact::Doubled(op, _) | Fact::Lapsed(op) => {
            let (next, head) = books.next_slot(op.account);
            next > op.sequence || (next == op.sequence && head != op.previous)
        }
    }
}

/// Says whether a step has too few votes since its slot was freed, or an end is below what a checkpoint has stated since:
/// no quorum can have recorded it.
fn is_void(books: &Issuer, fact: &Fact<Checked>) -> bool {
    match fact {
        Fact::Step(certificate) => books.is_void(certificate),
        Fact::End(certificate) => books.is_end_void(certificate),
        Fact::Deposit(_) | Fact::Redeemed { .. } | Fact::Doubled(..) | Fact::Lapsed(_) | Fact::Paid(_) => {
            false
        }
    }
}
