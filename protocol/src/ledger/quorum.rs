//! What several issuers say together: certificates of steps, ends of channels, amounts that enough of them support.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ChannelId, DomainId, RecordId};
use crate::keys::{PublicKey, Scheme};
use crate::ledger::issuer::{Balance, IssuerError};
use crate::ledger::records::{
    AccountOp, Claim, CloseVote, Deposit, Epoch, OpBody, Receipt, Recorded, RedeemAck, Terms, Vote,
    WithdrawalPaid,
};
use crate::manifest::{ISSUERS_MAX, Manifest};
use crate::message::{Checked, Stage, Wire};
use crate::mutant;
use crate::signed::{Role, Signable, Signed, SignedError, Verified};

/// A step with the votes of a quorum: whoever holds it can prove that no other step takes its slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<AccountOp>: Serialize, S::Of<Terms>: Serialize, S::Of<Vote>: Serialize",
    deserialize = "S::Of<AccountOp>: Deserialize<'de>, S::Of<Terms>: Deserialize<'de>, S::Of<Vote>: Deserialize<'de>"
))]
pub struct Certificate<S: Stage> {
    /// The step.
    pub op: S::Of<AccountOp>,
    /// The terms it names, if it opens a channel.
    pub terms: Option<S::Of<Terms>>,
    /// The votes.
    pub votes: Vec<S::Of<Vote>>,
}

/// The votes of a quorum for one end of a channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<CloseVote>: Serialize",
    deserialize = "S::Of<CloseVote>: Deserialize<'de>"
))]
pub struct EndCertificate<S: Stage> {
    /// The votes.
    pub votes: Vec<S::Of<CloseVote>>,
}

/// Something that proves itself: it may come from anybody.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<AccountOp>: Serialize, S::Of<Terms>: Serialize, S::Of<Vote>: Serialize,
        S::Of<CloseVote>: Serialize, S::Of<Deposit>: Serialize, S::Of<Receipt>: Serialize, S::Of<Claim>: Serialize,
        S::Of<WithdrawalPaid>: Serialize",
    deserialize = "S::Of<AccountOp>: Deserialize<'de>, S::Of<Terms>: Deserialize<'de>, S::Of<Vote>: Deserialize<'de>,
        S::Of<CloseVote>: Deserialize<'de>, S::Of<Deposit>: Deserialize<'de>, S::Of<Receipt>: Deserialize<'de>,
        S::Of<Claim>: Deserialize<'de>, S::Of<WithdrawalPaid>: Deserialize<'de>"
))]
pub enum Fact<S: Stage> {
    /// Credits entered.
    Deposit(S::Of<Deposit>),
    /// An account made a step.
    Step(Certificate<S>),
    /// A channel ended.
    End(EndCertificate<S>),
    /// The operator whose turn it was has paid a withdrawal.
    Paid(S::Of<WithdrawalPaid>),
    /// A channel paid.
    Redeemed {
        /// The receipt, signed by both sides.
        receipt: S::Of<Receipt>,
        /// How much of it the payee wants paid; without that word it is what the receipt's own usage costs.
        claim: Option<S::Of<Claim>>,
    },
    /// An owner signed two steps for one slot. The one with the lower id comes first.
    Doubled(S::Of<AccountOp>, S::Of<AccountOp>),
    /// A step got no certificate while its epoch lasted: its slot is given back.
    Lapsed(S::Of<AccountOp>),
}

/// Checks the words of several issuers.
pub(crate) fn all<T: Signable>(
    records: Vec<Signed<T>>,
    read: &impl Fn(Signed<T>) -> Result<Verified<T>, SignedError>,
) -> Result<Vec<Verified<T>>, SignedError> {
    if records.len() > ISSUERS_MAX {
        return Err(SignedError::Attestations);
    }
    records.into_iter().map(read).collect()
}

/// Returns them as they travel.
pub(crate) fn as_signed<T: Signable>(records: &[Verified<T>]) -> Vec<Signed<T>> {
    records.iter().map(Verified::signed).collect()
}

impl Certificate<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold, or there are more votes than issuers can cast.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Certificate<Checked>, SignedError> {
        let terms = self.terms.map(|terms| terms.verify(domain, scheme)).transpose()?;
        let votes = all(self.votes, &|vote| vote.verify(domain, scheme))?;
        Ok(Certificate { op: self.op.verify(domain, scheme)?, terms, votes })
    }

    /// Takes a certificate out of our own journal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_back(self, domain: DomainId) -> Result<Certificate<Checked>, SignedError> {
        let terms = self.terms.map(|terms| terms.read_back(domain)).transpose()?;
        let votes = all(self.votes, &|vote| vote.read_back(domain))?;
        Ok(Certificate { op: self.op.read_back(domain)?, terms, votes })
    }
}

impl Certificate<Checked> {
    /// Returns the certificate as it travels.
    #[must_use]
    pub fn signed(&self) -> Certificate<Wire> {
        let terms = self.terms.as_ref().map(Verified::signed);
        Certificate { op: self.op.signed(), terms, votes: as_signed(&self.votes) }
    }

    /// Checks that a quorum of the network's issuers voted for exactly this step. Which key may sign it only the books
    /// know, and those who voted had them.
    ///
    /// # Errors
    /// [`IssuerError::NoQuorum`] when too few did.
    pub fn check(&self, manifest: &Manifest) -> Result<(), IssuerError> {
        if self.has_quorum(manifest, |_| true) { Ok(()) } else { Err(IssuerError::NoQuorum) }
    }

    /// Says whether these are the terms that the step names, if it opens a channel: votes are for the step alone.
    #[must_use]
    pub fn has_its_terms(&self) -> bool {
        match &self.op.body {
            OpBody::OpenChannel(open) => self.terms.as_ref().map(Verified::id) == Some(open.terms),
            OpBody::Expire(_)
            | OpBody::Pay { .. }
            | OpBody::Withdraw { .. }
            | OpBody::Noop
            | OpBody::Inception(_)
            | OpBody::Rotate(_) => true,
        }
    }

    /// Says whether a quorum voted for this step when it had followed the checkpoint of `epoch`.
    #[must_use]
    pub fn has_quorum_after(&self, epoch: Epoch, manifest: &Manifest) -> bool {
        let stale = mutant::is_in("stale-votes-count");
        self.has_quorum(manifest, |vote| vote.settled >= Some(epoch) || (stale && vote.epoch > epoch))
    }

    fn has_quorum(&self, manifest: &Manifest, counts: impl Fn(&Vote) -> bool) -> bool {
        let is_for = |vote: &Verified<Vote>| {
            vote.op == self.op.id() && vote.account == self.op.account && vote.sequence == self.op.sequence
        };
        let votes = || self.votes.iter().filter(|vote| is_for(vote) && counts(vote));
        manifest.agrees(|key| votes().any(|vote| vote.is_signed_by(Role::Issuer, key)))
    }

    /// Returns the epoch in which the step was voted for, which no lying issuer can put later than honest ones do.
    #[must_use]
    pub fn epoch(&self, manifest: &Manifest) -> Epoch {
        vouched(self.votes.iter().map(|vote| vote.epoch), manifest)
    }
}

/// Returns the highest of what issuers say that at least one honest issuer reaches; nothing when too few say anything.
fn vouched<T: Ord + Default>(said: impl Iterator<Item = T>, manifest: &Manifest) -> T {
    let mut said: Vec<T> = said.collect();
    said.sort_unstable_by(|one, other| other.cmp(one));
    said.into_iter().nth(manifest.faults_max()).unwrap_or_default()
}

impl EndCertificate<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold, or there are more votes than issuers can cast.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<EndCertificate<Checked>, SignedError> {
        Ok(EndCertificate { votes: all(self.votes, &|vote| vote.verify(domain, scheme))? })
    }

    /// Takes a certificate out of our own journal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_back(self, domain: DomainId) -> Result<EndCertificate<Checked>, SignedError> {
        Ok(EndCertificate { votes: all(self.votes, &|vote| vote.read_back(domain))? })
    }
}

impl EndCertificate<Checked> {
    /// Returns the certificate as it travels.
    #[must_use]
    pub fn signed(&self) -> EndCertificate<Wire> {
        EndCertificate { votes: as_signed(&self.votes) }
    }

    /// Returns the channel and the amount with which a quorum of issuers lets it end.
    ///
    /// # Errors
    /// When there is no quorum for one amount.
    pub fn check(&self, manifest: &Manifest) -> Result<(ChannelId, u64), IssuerError> {
        let first = self.votes.first().ok_or(IssuerError::NoQuorum)?;
        let is_same =
            |vote: &&Verified<CloseVote>| vote.channel == first.channel && vote.amount == first.amount;
        let by = |key| self.votes.iter().filter(is_same).any(|vote| vote.is_signed_by(Role::Issuer, key));
        let enough = manifest.agrees(by) || mutant::is_in("close-without-quorum");
        if enough { Ok((first.channel, first.amount)) } else { Err(IssuerError::NoQuorum) }
    }
}

impl Fact<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Fact<Checked>, SignedError> {
        Ok(match self {
            Self::Deposit(deposit) => Fact::Deposit(deposit.verify(domain, scheme)?),
            Self::Step(certificate) => Fact::Step(certificate.verify(domain, scheme)?),
            Self::End(certificate) => Fact::End(certificate.verify(domain, scheme)?),
            Self::Paid(paid) => Fact::Paid(paid.verify(domain, scheme)?),
            Self::Redeemed { receipt, claim } => Fact::Redeemed {
                receipt: receipt.verify(domain, scheme)?,
                claim: claim.map(|claim| claim.verify(domain, scheme)).transpose()?,
            },
            Self::Doubled(first, second) => {
                Fact::Doubled(first.verify(domain, scheme)?, second.verify(domain, scheme)?)
            }
            Self::Lapsed(op) => Fact::Lapsed(op.verify(domain, scheme)?),
        })
    }

    /// Takes a fact out of our own journal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_back(self, domain: DomainId) -> Result<Fact<Checked>, SignedError> {
        Ok(match self {
            Self::Paid(paid) => Fact::Paid(paid.read_back(domain)?),
            Self::Deposit(deposit) => Fact::Deposit(deposit.read_back(domain)?),
            Self::Step(certificate) => Fact::Step(certificate.read_back(domain)?),
            Self::End(certificate) => Fact::End(certificate.read_back(domain)?),
            Self::Redeemed { receipt, claim } => Fact::Redeemed {
                receipt: receipt.read_back(domain)?,
                claim: claim.map(|claim| claim.read_back(domain)).transpose()?,
            },
            Self::Doubled(first, second) => {
                Fact::Doubled(first.read_back(domain)?, second.read_back(domain)?)
            }
            Self::Lapsed(op) => Fact::Lapsed(op.read_back(domain)?),
        })
    }
}

impl Fact<Checked> {
    /// Returns the fact as it travels.
    #[must_use]
    pub fn signed(&self) -> Fact<Wire> {
        match self {
            Self::Deposit(deposit) => Fact::Deposit(deposit.signed()),
            Self::Step(certificate) => Fact::Step(certificate.signed()),
            Self::End(certificate) => Fact::End(certificate.signed()),
            Self::Paid(paid) => Fact::Paid(paid.signed()),
            Self::Redeemed { receipt, claim } => {
                Fact::Redeemed { receipt: receipt.signed(), claim: claim.as_ref().map(Verified::signed) }
            }
            Self::Doubled(first, second) => Fact::Doubled(first.signed(), second.signed()),
            Self::Lapsed(op) => Fact::Lapsed(op.signed()),
        }
    }

    /// Returns whose step it is.
    #[must_use]
    pub fn owner(&self) -> Option<AccountId> {
        match self {
            Self::Step(certificate) => Some(certificate.op.account),
            Self::Deposit(_)
            | Self::End(_)
            | Self::Redeemed { .. }
            | Self::Doubled(..)
            | Self::Lapsed(_)
            | Self::Paid(_) => None,
        }
    }

    /// Returns who receives credits by it from somebody else.
    #[must_use]
    pub fn receiver(&self) -> Option<AccountId> {
        match self {
            Self::Step(certificate) => match &certificate.op.body {
                OpBody::Pay { to, .. } => Some(*to),
                OpBody::OpenChannel(_)
                | OpBody::Expire(_)
                | OpBody::Withdraw { .. }
                | OpBody::Noop
                | OpBody::Inception(_)
                | OpBody::Rotate(_) => None,
            },
            Self::Deposit(deposit) => Some(deposit.account),
            Self::End(_) | Self::Redeemed { .. } | Self::Doubled(..) | Self::Lapsed(_) | Self::Paid(_) => {
                None
            }
        }
    }

    /// Returns what the fact is called when it is asked for; the same whoever signed it.
    #[must_use]
    pub fn name(&self) -> RecordId {
        match self {
            // Whoever makes a deposit chooses its reference: it must not be the name of anything else.
            Self::Deposit(deposit) => name_of(b"deposit\0", &[deposit.reference.0]),
            Self::Step(certificate) => certificate.op.id(),
            Self::End(certificate) => {
                let channel = certificate.votes.first().map_or(ChannelId([0; 32]), |vote| vote.channel);
                end_name(channel)
            }
            Self::Paid(paid) => paid_name(paid.step),
            Self::Redeemed { receipt, claim } => {
                let claim = claim.as_ref().map_or(RecordId::NONE, Verified::id);
                name_of(b"redeemed\0", &[receipt.id().0, claim.0])
            }
            Self::Doubled(first, second) => name_of(b"doubled\0", &[first.id().0, second.id().0]),
            Self::Lapsed(op) => name_of(b"lapsed\0", &[op.id().0]),
        }
    }
}

fn name_of(kind: &[u8], parts: &[[u8; 32]]) -> RecordId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind);
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    RecordId(*hasher.finalize().as_bytes())
}

/// Returns what the end of a channel is called among facts; its opening has the channel's own name.
#[must_use]
pub fn end_name(channel: ChannelId) -> RecordId {
    name_of(b"end\0", &[channel.0])
}

/// Returns the head of an account after a checkpoint has freed its next slot: steps that were signed before follow another
/// one, so that no words about them, of before and after, can be put together.
#[must_use]
pub fn freed_head(head: RecordId, epoch: Epoch) -> RecordId {
    let mut number = [0; 32];
    number[..4].copy_from_slice(&epoch.0.to_le_bytes());
    name_of(b"freed\0", &[head.0, number])
}

/// Returns what the payout of a withdrawal is called among facts; the step has its own name.
fn paid_name(step: RecordId) -> RecordId {
    name_of(b"paid\0", &[step.0])
}

/// Returns whether a quorum of issuers signed a deposit.
#[must_use]
pub fn is_agreed(deposit: &Verified<Deposit>, manifest: &Manifest) -> bool {
    manifest.agrees(|key| deposit.is_signed_by(Role::Issuer, key))
}

/// What issuers have answered to our pending step.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    votes: BTreeMap<PublicKey, Verified<Vote>>,
    recorded: BTreeMap<PublicKey, Verified<Recorded>>,
    refused: BTreeMap<PublicKey, IssuerError>,
    /// Who votes for it when more issuers have paid what it spends.
    uncounted: BTreeMap<PublicKey, IssuerError>,
    /// An issuer does not count some of the votes: the slot was freed, and whoever gave them had not followed that, or lies.
    has_void: bool,
}

impl Answers {
    /// Learns that an issuer does not count some of the votes. That refuses nothing: with the votes of others they may
    /// be enough.
    pub const fn some_are_void(&mut self) {
        self.has_void = true;
    }

    /// Says whether some votes do not count, so that issuers must be asked again for theirs.
    #[must_use]
    pub const fn has_void(&self) -> bool {
        self.has_void
    }

    /// Takes an issuer's vote, in place of one that it gave when it had followed fewer checkpoints; says whether it had
    /// not voted before.
    pub fn voted(&mut self, key: PublicKey, vote: Verified<Vote>) -> bool {
        self.refused.remove(&key);
        self.uncounted.remove(&key);
        let known = self.votes.get(&key).map(|known| known.settled);
        if known.is_none_or(|known| known < vote.settled) {
            self.votes.insert(key, vote);
        }
        known.is_none()
    }

    /// Takes an issuer's recording.
    pub fn recorded(&mut self, key: PublicKey, recorded: Verified<Recorded>) {
        self.recorded.insert(key, recorded);
    }

    /// Takes an issuer's refusal; says whether a quorum has refused, so that the step can be abandoned.
    pub fn refused(&mut self, key: PublicKey, error: IssuerError, manifest: &Manifest) -> bool {
        self.refused.insert(key, error);
        manifest.agrees(|key| self.refused.contains_key(&key))
    }

    /// Learns that an issuer does not count yet what the step spends. That refuses nothing.
    pub fn uncounted(&mut self, key: PublicKey, error: IssuerError) {
        self.refused.remove(&key);
        self.uncounted.insert(key, error);
    }

    /// Says whether an issuer does not count yet what the step spends, as far as it has said.
    #[must_use]
    pub fn waits(&self, key: PublicKey) -> bool {
        self.uncounted.contains_key(&key)
    }

    /// Says that issuers do not count yet what the step spends, if at least one honest one says so.
    #[must_use]
    pub fn lacks_credits(&self, manifest: &Manifest) -> Option<IssuerError> {
        self.uncounted.values().nth(manifest.faults_max()).copied()
    }

    /// Says that issuers have no room for the step, if at least one honest one says so; others may have voted for it.
    #[must_use]
    pub fn lacks_room(&self, manifest: &Manifest) -> Option<IssuerError> {
        let full = |error: &&IssuerError| matches!(error, IssuerError::TooManySteps { .. });
        self.refused.values().filter(full).nth(manifest.faults_max()).copied()
    }

    /// Says whether a quorum has voted.
    #[must_use]
    pub fn is_certified(&self, manifest: &Manifest) -> bool {
        manifest.agrees(|key| self.votes.contains_key(&key))
    }

    /// Says whether a quorum has recorded the certificate: the step can never be undone.
    #[must_use]
    pub fn is_committed(&self, manifest: &Manifest) -> bool {
        let shown = |key| {
            self.recorded.contains_key(&key)
                || (mutant::is_in("serve-at-votes") && self.votes.contains_key(&key))
        };
        manifest.agrees(shown)
    }

    /// Returns the votes.
    #[must_use]
    pub fn votes(&self) -> Vec<Verified<Vote>> {
        self.votes.values().cloned().collect()
    }

    /// Returns the recordings.
    #[must_use]
    pub fn recordings(&self) -> Vec<Verified<Recorded>> {
        self.recorded.values().cloned().collect()
    }

    /// Returns a recording whose epoch no lying issuer can put later than honest ones do.
    #[must_use]
    pub fn recording(&self, manifest: &Manifest) -> Option<&Verified<Recorded>> {
        let epoch = vouched(self.recorded.values().map(|recorded| recorded.epoch), manifest);
        self.recorded.values().find(|recorded| recorded.epoch == epoch)
    }

    /// Says whether an issuer has recorded the step.
    #[must_use]
    pub fn has_recorded(&self, key: PublicKey) -> bool {
        self.recorded.contains_key(&key)
    }
}

/// What issuers last said of our account.
#[derive(Debug, Clone, Default)]
pub struct Views(BTreeMap<PublicKey, View>);

/// What one issuer says of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Position of its next step.
    pub next: u64,
    /// Its last step.
    pub head: RecordId,
    /// What it holds.
    pub balance: Balance,
}

impl Views {
    /// Learns what an issuer says; what is older than what it said before changes nothing.
    pub fn learn(&mut self, key: PublicKey, view: View) {
        let known = self.0.get(&key);
        if known.is_none_or(|known| view.balance.as_of >= known.balance.as_of)
            || mutant::is_in("older-view-counts")
        {
            self.0.insert(key, view);
        }
    }

    /// Learns what an issuer says an account holds, and nothing of its steps.
    pub fn learn_balance(&mut self, key: PublicKey, balance: Balance) {
        if let Some(view) = self.0.get(&key).copied() {
            self.learn(key, View { balance, ..view });
        }
    }

    /// Returns what a quorum supports: the balance of which a quorum says that at least as much can be spent, and where the
    /// account stands as far as they agree. `None` until a quorum has answered.
    #[must_use]
    pub fn supported(&self, manifest: &Manifest) -> Option<Supported> {
        if !manifest.agrees(|key| self.0.contains_key(&key)) {
            return None;
        }
        let mut named: BTreeMap<(u64, RecordId), usize> = BTreeMap::new();
        for view in self.0.values() {
            let count = named.entry((view.next, view.head)).or_default();
            *count = count.saturating_add(1);
        }
        let said_by = |least: usize| {
            let enough = named.iter().filter(move |(_, count)| **count >= least);
            enough.map(|(slot, _)| *slot)
        };
        let liars = if mutant::is_in("head-unvouched") { 0 } else { manifest.faults_max() };
        let vouched = said_by(liars.saturating_add(1)).collect();
        let agreed = said_by(manifest.quorum().max(1)).next();
        let mut balances: Vec<Balance> = self.0.values().map(|view| view.balance).collect();
        balances.sort_unstable_by_key(|balance| core::cmp::Reverse(balance.available()));
        let supported = balances.get(manifest.quorum().max(1).saturating_sub(1))?;
        // Each part only grows, and so does the sum: it orders what we know by age.
        let as_of = self.0.values().fold(0, |sum: u64, view| sum.saturating_add(view.balance.as_of));
        Some(Supported { agreed, vouched, balance: Balance { as_of, ..*supported } })
    }
}

/// What a quorum of issuers supports of our account. A slot is the position of its next step, and the step before it, or what
/// a checkpoint that has freed the position left there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supported {
    /// Where a quorum says that it stands; at most one slot.
    pub agreed: Option<(u64, RecordId)>,
    /// Where more issuers say so than may lie. What only some honest ones have recorded, a checkpoint may have dropped.
    pub vouched: Vec<(u64, RecordId)>,
    /// What it holds at least.
    pub balance: Balance,
}

/// What issuers have acknowledged of a channel's redemption.
#[derive(Debug, Clone, Default)]
pub struct Acks(BTreeMap<PublicKey, Said>);

/// What one issuer has acknowledged.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    /// The most that it says it has paid.
    amount: u64,
    /// With what it says the channel has ended.
    end: Option<u64>,
    epoch: Epoch,
}

impl Acks {
    /// Takes an issuer's word: the amount it has paid, and whether the channel is closed.
    pub fn learn(&mut self, key: PublicKey, ack: &RedeemAck) {
        let known = self.0.entry(key).or_default();
        known.amount = known.amount.max(ack.amount);
        known.end = known.end.or_else(|| ack.closed.then_some(ack.amount));
        known.epoch = known.epoch.max(ack.epoch);
    }

    /// Returns the amount that the issuer has paid, as far as it has said.
    #[must_use]
    pub fn by(&self, key: PublicKey) -> u64 {
        self.0.get(&key).map_or(0, |said| said.amount)
    }

    /// Says whether the issuer has closed the channel, as far as it has said.
    #[must_use]
    pub fn is_closed_by(&self, key: PublicKey) -> bool {
        self.0.get(&key).is_some_and(|said| said.end.is_some())
    }

    /// Returns the amount that a quorum has paid: no failure of the rest can lose it.
    #[must_use]
    pub fn safe(&self, manifest: &Manifest) -> u64 {
        let mut amounts: Vec<u64> = self.0.values().map(|said| said.amount).collect();
        amounts.sort_unstable_by_key(|amount| core::cmp::Reverse(*amount));
        amounts.get(manifest.quorum().max(1).saturating_sub(1)).copied().unwrap_or(0)
    }

    /// Returns the amount that at least one honest issuer has paid.
    #[must_use]
    pub fn vouched(&self, manifest: &Manifest) -> u64 {
        vouched(self.0.values().map(|said| said.amount), manifest)
    }

    /// Returns the amount with which at least one honest issuer has closed the channel; all honest ones close it with
    /// the same.
    #[must_use]
    pub fn end(&self, manifest: &Manifest) -> Option<u64> {
        let ends = || self.0.values().filter_map(|said| said.end);
        ends().find(|end| ends().filter(|other| other == end).count() > manifest.faults_max())
    }

    /// Returns the epoch of the newest acknowledgement that at least one honest issuer reaches.
    #[must_use]
    pub fn epoch(&self, manifest: &Manifest) -> Epoch {
        vouched(self.0.values().map(|said| said.epoch), manifest)
    }
}
