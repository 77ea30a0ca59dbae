//! The signed records of the ledger, with their bounds.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ChannelId, Digest, ModelId, NodeId, RecordId};
use crate::keys::PublicKey;
use crate::ledger::account::Inception;
use crate::ledger::money::BPS;
use crate::manifest::{Manifest, PROVIDER_FLOOR_BPS_MIN};
use crate::price::{Price, Usage};
use crate::signed::Signable;

use crate::advert::Incentive;

/// Counts the network's periods; validity is stated in epochs, never in clock time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub u32);

impl Epoch {
    /// Returns the epoch `epochs` later, at most the last there is.
    #[must_use]
    pub const fn plus(self, epochs: u32) -> Self {
        Self(self.0.saturating_add(epochs))
    }
}

/// Most epochs for which a channel or a delegation may be agreed.
pub const VALIDITY_EPOCHS_MAX: u32 = 7;

/// Most lines of a split.
pub const SPLIT_LINES_MAX: usize = 8;

/// An owner's statement that a node may act for its account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Account that delegates; signed with its key.
    pub account: AccountId,
    /// Node that may act.
    pub node: NodeId,
    /// What it may do.
    pub rights: Rights,
    /// A higher version replaces a lower one.
    pub version: u32,
    /// Last epoch in which it counts.
    pub expires: Epoch,
}

/// What a node may do for an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Serve jobs, sign terms and adverts.
    pub serve: bool,
    /// Submit jobs and sign receipts.
    pub spend: bool,
}

/// An issuer's statement that a node belongs to the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The node.
    pub node: NodeId,
    /// The account it acted for when it joined.
    pub account: AccountId,
    /// Epoch of joining.
    pub epoch: Epoch,
}

/// Credits that entered the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    /// Names the payment outside, or the ticket; the same reference counts once.
    pub reference: Digest,
    /// Account that receives them.
    pub account: AccountId,
    /// Nano-credits.
    pub amount: u64,
    /// Epoch of the deposit.
    pub epoch: Epoch,
    /// Where they came from.
    pub source: Source,
}

/// Where the credits of a deposit came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Given away: a grant or a ticket, out of the network's budget.
    Budget,
    /// Paid for outside the network; the issuer's operator has seen the payment.
    Outside,
}

/// One step of an account, in its owner's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountOp {
    /// The account; signed with its key in force.
    pub account: AccountId,
    /// Position, from 0.
    pub sequence: u64,
    /// The step before.
    pub previous: RecordId,
    /// Epoch in which it was made.
    pub epoch: Epoch,
    /// What is done.
    pub body: OpBody,
}

/// What a step of an account does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpBody {
    /// Escrows a cap for one payee.
    OpenChannel(OpenChannel),
    /// Ends a channel whose payee does not answer; what it holds returns after the grace epochs.
    Expire(ChannelId),
    /// Gives cash to another account.
    Pay {
        /// Account that receives it.
        to: AccountId,
        /// Nano-credits.
        amount: u64,
    },
    /// Takes cash out of the network; the issuer's operator pays it outside.
    Withdraw {
        /// Nano-credits.
        amount: u64,
        /// Digest of the text that says where to pay it.
        payout: Digest,
    },
    /// Fills a position and does nothing else.
    Noop,
    /// Shows how an account with a next key begins; its first step.
    Inception(Inception),
    /// Replaces the key by the promised one, which signs this step; says which key comes after it.
    Rotate(Inception),
}

/// Most bytes of the text that says where a withdrawal is paid to, and of the reference with which it was.
pub const PAYOUT_BYTES_MAX: usize = 256;

/// Returns the digest that stands for `text` in a step or a deposit: the text itself is nobody's business but the
/// operator's.
#[must_use]
pub fn text_digest(text: &str) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"sharemesh/v1/text\0").update(text.as_bytes());
    Digest(*hasher.finalize().as_bytes())
}

/// The opening of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenChannel {
    /// Node that is paid.
    pub payee: NodeId,
    /// Id of the payee's terms.
    pub terms: RecordId,
    /// Most base that can ever be paid, in nano-credits.
    pub cap: u64,
    /// Last epoch of the channel.
    pub expires: Epoch,
    /// Node that pays.
    pub payer: NodeId,
    /// Key that signs this channel's receipts for the payer.
    pub payer_key: PublicKey,
}

/// An issuer's word that it holds no other step in this slot and that the funds suffice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The step.
    pub op: RecordId,
    /// Its account.
    pub account: AccountId,
    /// Its position.
    pub sequence: u64,
    /// Epoch of the vote.
    pub epoch: Epoch,
    /// The last checkpoint that the issuer had followed: one that frees the slot makes all votes before it void.
    pub settled: Option<Epoch>,
}

/// An issuer's word that it durably holds the certificate (a quorum of votes) of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The step.
    pub op: RecordId,
    /// Epoch.
    pub epoch: Epoch,
}

/// An issuer's word that it lets a channel end with exactly this amount, and pays out nothing beyond from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseVote {
    /// The channel.
    pub channel: ChannelId,
    /// Base paid in all.
    pub amount: u64,
    /// Epoch of the vote.
    pub epoch: Epoch,
}

/// An issuer's word that its operator has paid a withdrawal outside the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawalPaid {
    /// The step that withdrew.
    pub step: RecordId,
    /// The operator's reference of the payment outside, at most [`PAYOUT_BYTES_MAX`].
    pub reference: String,
    /// Epoch in which it was marked.
    pub epoch: Epoch,
}

/// A payee's conditions for one channel; signed by its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Node that serves and is paid.
    pub payee: NodeId,
    /// Account for which it acts.
    pub payee_account: AccountId,
    /// Key that signs this channel's receipts for the payee.
    pub payee_key: PublicKey,
    /// Account that may use these terms.
    pub payer_account: AccountId,
    /// Model served.
    pub model: ModelId,
    /// Licence under which it is served.
    pub licence: RecordId,
    /// What happens with the payee's line.
    pub incentive: Incentive,
    /// Price table, fixed for the life of the channel.
    pub price: Price,
    /// Builder's markup on top of the base.
    pub markup: Option<Markup>,
    /// Division of the base.
    pub split: Vec<SplitLine>,
    /// Last epoch in which a channel may be opened on these terms.
    pub valid_to: Epoch,
}

/// A builder's share on top of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Markup {
    /// Account that routed the traffic.
    pub builder: AccountId,
    /// Share in basis points of the base.
    pub bps: u16,
}

/// One share of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitLine {
    /// As what.
    pub role: SplitRole,
    /// To whom.
    pub account: AccountId,
    /// How much, in basis points of the base.
    pub bps: u16,
}

/// As what somebody gets a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SplitRole {
    /// Serves the model.
    Provider,
    /// Pool of the model's class.
    Pool,
    /// The network itself.
    Network,
    /// Routed the traffic; on top of the base.
    Builder,
}

/// The state of a channel's bill: cumulative, so that a later one replaces all before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The channel.
    pub channel: ChannelId,
    /// Rises with each receipt.
    pub sequence: u64,
    /// Base paid since the channel opened, in nano-credits; never falls.
    pub amount: u64,
    /// Work delivered since the channel opened, as the payer saw it.
    pub usage: Usage,
    /// Hash chain over the jobs that ended.
    pub jobs: Digest,
    /// Epoch of the receipt.
    pub epoch: Epoch,
}

/// Both sides' word that a channel ends with this amount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Final {
    /// The channel.
    pub channel: ChannelId,
    /// Base paid in all; may be less than the last receipt says, when prepaid units were not used.
    pub amount: u64,
    /// The last receipt.
    pub receipt: Option<RecordId>,
}

/// An issuer's word on what it has paid out of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedeemAck {
    /// The channel.
    pub channel: ChannelId,
    /// Base redeemed since it opened.
    pub amount: u64,
    /// Says that the channel is closed and what it held has returned.
    pub closed: bool,
    /// Epoch.
    pub epoch: Epoch,
}

/// A payee's word on how much of a co-signed receipt shall be paid out: what it has delivered, and not what was prepaid
/// beyond. With the receipt it proves itself, so issuers can hand it to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The channel.
    pub channel: ChannelId,
    /// The receipt.
    pub receipt: RecordId,
    /// Base to pay out in all, at most what the receipt states.
    pub amount: u64,
}

/// A provider's word that it has taken a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The job.
    pub job: crate::ids::JobId,
    /// Prompt tokens counted.
    pub tokens_in: u32,
    /// When the provider began.
    pub start: crate::time::Time,
}

macro_rules! signable {
    ($($name:ident = $tag:literal),* $(,)?) => {
        $(impl Signable for $name {
            const TAG: &'static str = $tag;
            const BYTES_MAX: usize = 512;
        })*
    };
}

signable! {
    Device = "device",
    Membership = "membership",
    AccountOp = "account-op",
    Vote = "vote",
    Recorded = "recorded",
    CloseVote = "close-vote",
    RedeemAck = "redeem-ack",
    Accepted = "accepted",
    Claim = "claim",
}

impl Signable for Deposit {
    const TAG: &'static str = "deposit";
    const BYTES_MAX: usize = 512;
    /// Those of a quorum of issuers.
    const ATTESTATIONS_MAX: usize = crate::manifest::ISSUERS_MAX;
}

impl Signable for WithdrawalPaid {
    const TAG: &'static str = "withdrawal-paid";
    const BYTES_MAX: usize = 512;

    fn check_bounds(&self) -> Result<(), &'static str> {
        if self.reference.len() <= PAYOUT_BYTES_MAX { Ok(()) } else { Err("reference") }
    }
}

impl Signable for Receipt {
    const TAG: &'static str = "receipt";
    const BYTES_MAX: usize = 512;
    /// The payer's and the payee's.
    const ATTESTATIONS_MAX: usize = 2;
}

impl Signable for Final {
    const TAG: &'static str = "final";
    const BYTES_MAX: usize = 512;
    /// The payer's and the payee's.
    const ATTESTATIONS_MAX: usize = 2;
}

impl Signable for Terms {
    const TAG: &'static str = "terms";
    const BYTES_MAX: usize = 1024;

    fn check_bounds(&self) -> Result<(), &'static str> {
        if self.split.len() <= SPLIT_LINES_MAX { Ok(()) } else { Err("split") }
    }
}

impl Markup {
    /// Returns the markup as a line beside those of the split.
    #[must_use]
    pub const fn line(self) -> SplitLine {
        SplitLine { role: SplitRole::Builder, account: self.builder, bps: self.bps }
    }
}

/// Why terms cannot be used in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TermsError {
    /// The lines do not make up the whole.
    #[error("the split does not add up to 10,000 basis points")]
    Sum,
    /// The provider gets less than the network allows.
    #[error("the provider's share is below the network's floor")]
    Floor,
    /// The pool's or the network's line is not as the manifest says.
    #[error("the pool's or the network's share is not the one in the manifest")]
    Shares,
    /// The provider's line goes to somebody else.
    #[error("the provider's share does not go to the provider's account")]
    Payee,
    /// The builder takes more than the network allows.
    #[error("the markup is above the network's limit")]
    Markup,
    /// The licence does not permit it.
    #[error("the licence does not permit these terms")]
    Licence,
    /// What is earned could be withdrawn.
    #[error("what is earned could be withdrawn, which this network does not permit")]
    Incentive,
}

impl Terms {
    /// Returns the split that the manifest prescribes for a model that owes no royalty.
    #[must_use]
    pub fn standard_split(
        manifest: &Manifest,
        class: crate::model::Modality,
        payee: AccountId,
    ) -> Vec<SplitLine> {
        let provider = u16::try_from(BPS).unwrap_or(u16::MAX).saturating_sub(manifest.pool_bps);
        let provider = provider.saturating_sub(manifest.network_bps);
        Vec::from([
            SplitLine { role: SplitRole::Provider, account: payee, bps: provider },
            SplitLine { role: SplitRole::Pool, account: manifest.pool(class), bps: manifest.pool_bps },
            SplitLine { role: SplitRole::Network, account: manifest.network, bps: manifest.network_bps },
        ])
    }

    /// Checks the terms of a channel that is not open yet against the network's rules.
    ///
    /// # Errors
    /// Says which rule is broken.
    pub fn check(&self, manifest: &Manifest, open_licence: RecordId) -> Result<(), TermsError> {
        self.check_shares(manifest, open_licence)?;
        self.check_incentive()
    }

    /// Checks that the provider's line is paid into `earned`. Under Rewards a channel would turn what its payer has earned
    /// into cash, for whoever is its own provider.
    ///
    /// # Errors
    /// When it is not.
    pub const fn check_incentive(&self) -> Result<(), TermsError> {
        match self.incentive {
            Incentive::Exchange => Ok(()),
            Incentive::Rewards => Err(TermsError::Incentive),
        }
    }

    /// Checks the division against the network's rules, and the licence: all that ever held, so that it holds for channels
    /// which were opened long ago.
    ///
    /// # Errors
    /// Says which rule is broken.
    pub fn check_shares(&self, manifest: &Manifest, open_licence: RecordId) -> Result<(), TermsError> {
        let sum_of =
            |role| self.split.iter().filter(|line| line.role == role).map(|line| u64::from(line.bps)).sum();
        let sum: u64 = self.split.iter().map(|line| u64::from(line.bps)).sum();
        let provider: u64 = sum_of(SplitRole::Provider);
        let network: u64 = sum_of(SplitRole::Network);
        let pool: u64 = sum_of(SplitRole::Pool);
        if sum != BPS {
            return Err(TermsError::Sum);
        }
        if provider < u64::from(manifest.provider_floor_bps.max(PROVIDER_FLOOR_BPS_MIN)) {
            return Err(TermsError::Floor);
        }
        let to_network =
            |line: &SplitLine| line.role != SplitRole::Network || line.account == manifest.network;
        let to_pool = |line: &SplitLine| {
            line.role != SplitRole::Pool
                || line.account == manifest.network
                || manifest.pools.iter().any(|pool| pool.account == line.account)
        };
        if network != u64::from(manifest.network_bps)
            || pool != u64::from(manifest.pool_bps)
            || !self.split.iter().all(|line| to_network(line) && to_pool(line))
        {
            return Err(TermsError::Shares);
        }
        let to_payee =
            |line: &SplitLine| line.role != SplitRole::Provider || line.account == self.payee_account;
        if !self.split.iter().all(to_payee) || self.split.iter().any(|line| line.role == SplitRole::Builder) {
            return Err(TermsError::Payee);
        }
        if self.markup.is_some_and(|markup| markup.bps > manifest.markup_max_bps) {
            return Err(TermsError::Markup);
        }
        if self.licence != open_licence {
            return Err(TermsError::Licence);
        }
        Ok(())
    }
}
