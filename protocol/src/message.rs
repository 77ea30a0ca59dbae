//! All that peers say to each other.

use alloc::vec::Vec;
use core::fmt::Debug;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::advert::Advert;
use crate::agreeing::Agreeing;
use crate::books::BooksMessage;
use crate::encoding::{DecodeError, decode, encode};
use crate::ids::{AccountId, ChannelId, Digest, DomainId, JobId, ModelId, RecordId};
use crate::job::{JobRecord, JobSpec};
use crate::keys::{PublicKey, Scheme};
use crate::ledger::account::{Lineage, SignedLineage};
use crate::ledger::agreement::Ballot;
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::issuer::{Balance, Booked, IssuerError};
use crate::ledger::paying::Allowances;
use crate::ledger::quorum::{Certificate, Fact, is_agreed};
use crate::ledger::records::{
    Accepted, AccountOp, Claim, CloseVote, Deposit, Device, Final, Membership, Receipt, Recorded, RedeemAck,
    Terms, Vote, WithdrawalPaid,
};
use crate::manifest::Manifest;
use crate::scheduler::Refusal;
use crate::signed::{Role, Signable, Signed, SignedError, Verified};
use crate::time::Time;

/// Version of the messages; part of the protocol's name on the wire.
pub const PROTOCOL_VERSION: u16 = 1;

/// Bounds one message: an advert or a list of heads, with room to spare.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Most delegations of one account, and so in one message.
pub const DEVICES_MAX: usize = 16;

/// Most channel heads in one message.
pub const HEADS_MAX: usize = 512;

/// Whether the signed parts of a message were checked.
pub trait Stage: Clone + Debug + PartialEq {
    /// A signed part at this stage.
    type Of<T: Signable>: Clone + Debug + PartialEq;
    /// The keys of an account at this stage.
    type Keys: Clone + Debug + PartialEq;
}

/// As received: nothing was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire;

/// Every signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked;

impl Stage for Wire {
    type Of<T: Signable> = Signed<T>;
    type Keys = SignedLineage;
}

impl Stage for Checked {
    type Of<T: Signable> = Verified<T>;
    type Keys = Lineage;
}

/// One message. Those without a signature are bound to the connection they came on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<Accepted>: Serialize, S::Of<AccountOp>: Serialize, S::Of<Advert>: Serialize,
        S::Of<Deposit>: Serialize, S::Of<Device>: Serialize, S::Of<Final>: Serialize, S::Of<Membership>: Serialize,
        S::Of<Receipt>: Serialize, S::Of<Recorded>: Serialize, S::Of<RedeemAck>: Serialize, S::Of<Terms>: Serialize,
        S::Of<Vote>: Serialize, S::Of<CloseVote>: Serialize, S::Of<Checkpoint>: Serialize, S::Of<Claim>: Serialize,
        S::Of<Ballot>: Serialize, S::Of<WithdrawalPaid>: Serialize, S::Keys: Serialize",
    deserialize = "S::Of<Accepted>: Deserialize<'de>, S::Of<AccountOp>: Deserialize<'de>,
        S::Of<Advert>: Deserialize<'de>, S::Of<Deposit>: Deserialize<'de>, S::Of<Device>: Deserialize<'de>,
        S::Of<Final>: Deserialize<'de>, S::Of<Membership>: Deserialize<'de>, S::Of<Receipt>: Deserialize<'de>,
        S::Of<Recorded>: Deserialize<'de>, S::Of<RedeemAck>: Deserialize<'de>, S::Of<Terms>: Deserialize<'de>,
        S::Of<Vote>: Deserialize<'de>, S::Of<CloseVote>: Deserialize<'de>, S::Of<Checkpoint>: Deserialize<'de>,
        S::Of<Claim>: Deserialize<'de>, S::Of<Ballot>: Deserialize<'de>, S::Of<WithdrawalPaid>: Deserialize<'de>, S::Keys: Deserialize<'de>"
))]
pub enum Message<S: Stage> {
    /// Says for whom a node acts, by which right it is here, and what it serves; the first message of a connection.
    Hello {
        /// The owner's delegation to this node.
        device: S::Of<Device>,
        /// Which key the owner's account has in force; none for an account that is a plain key.
        lineage: Option<S::Keys>,
        /// Proof of admission; a node that has just arrived has none.
        membership: Option<S::Of<Membership>>,
        /// What it serves, if anything.
        advert: Option<S::Of<Advert>>,
        /// Whether the sender waits for the receiver's greeting: a node that was restarted knows nobody, while others
        /// may not have noticed that it was gone.
        asks: bool,
    },
    /// Asks an issuer for admission with a ticket.
    Join {
        /// The ticket's secret.
        secret: [u8; 16],
    },
    /// Admits a node.
    Joined {
        /// Proof for other nodes.
        membership: S::Of<Membership>,
        /// Opening amount that the ticket carried.
        deposit: Option<S::Of<Deposit>>,
    },
    /// Does not admit a node.
    JoinRefused(JoinError),
    /// What a provider serves now; also spread by gossip.
    Advert(S::Of<Advert>),
    /// Asks a provider what it serves now.
    AdvertQuery,
    /// Asks a provider for its terms, and to hold a slot.
    Ask {
        /// Job they are for.
        job: JobId,
        /// Model.
        model: ModelId,
        /// Account that would pay.
        account: AccountId,
    },
    /// Answers an ask: a slot is held for a moment.
    Offer {
        /// The job asked for.
        job: JobId,
        /// Terms for a channel.
        terms: S::Of<Terms>,
    },
    /// Turns an ask or a job down.
    Refused {
        /// The job.
        job: JobId,
        /// Why.
        refusal: Refusal,
    },
    /// Asks an issuer what it knows of the sender's account.
    AccountQuery,
    /// What an issuer knows of an account.
    AccountState {
        /// The account.
        account: AccountId,
        /// Position of its next step.
        next: u64,
        /// Its last step.
        head: RecordId,
        /// What it holds.
        balance: Balance,
    },
    /// Submits a step of an account to an issuer.
    Step {
        /// The step.
        op: S::Of<AccountOp>,
        /// The terms it names, if it opens a channel.
        terms: Option<S::Of<Terms>>,
    },
    /// An issuer's votes for a step; with one issuer, vote and record come together.
    Stepped {
        /// Its vote.
        vote: S::Of<Vote>,
        /// Its word that the step is on its disk.
        recorded: S::Of<Recorded>,
        /// What the account holds now.
        balance: Balance,
    },
    /// An issuer does not vote for a step.
    StepRefused {
        /// The step.
        op: RecordId,
        /// Why.
        error: IssuerError,
        /// What the account holds now.
        balance: Balance,
    },
    /// Hands a job to a provider; the prompt travels beside it.
    Submit {
        /// The job.
        job: JobId,
        /// What is to be done.
        spec: JobSpec,
        /// Channel that pays; none when the provider asks nothing.
        channel: Option<ChannelId>,
        /// Proof of the channel, until the provider has confirmed a job on it.
        opening: Option<Opening<S>>,
    },
    /// The provider took the job.
    Accepted(S::Of<Accepted>),
    /// Pays: cumulative, so a lost one is covered by the next.
    Pay {
        /// The receipt, signed by the payer.
        receipt: S::Of<Receipt>,
        /// Which jobs the payment is for.
        allowances: Allowances,
    },
    /// The receipt with the payee's signature.
    CoSigned(S::Of<Receipt>),
    /// The provider's account of a job that ended.
    Finished {
        /// What both keep.
        record: JobRecord,
        /// The hash chain after it.
        jobs: Digest,
    },
    /// The provider's engine could not finish the job.
    Failed {
        /// The job.
        job: JobId,
        /// Tokens delivered before.
        tokens_out: u32,
        /// Why.
        reason: alloc::string::String,
    },
    /// Ends a job early.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// The newest receipt that the sender holds of each channel with the receiver.
    Heads(Heads),
    /// Submits a co-signed receipt to an issuer.
    Redeem {
        /// The receipt.
        receipt: S::Of<Receipt>,
        /// How much of it to pay out.
        claim: S::Of<Claim>,
    },
    /// What the issuer has paid out of a channel.
    Redeemed(S::Of<RedeemAck>),
    /// Ends a channel: from payer to payee with one signature, from payee to issuer with both.
    Close {
        /// The end.
        closing: S::Of<Final>,
        /// Proof of the channel for the payee, until it has confirmed a job on it: it may never have heard of it.
        opening: Option<Opening<S>>,
    },
    /// News from an issuer; told again until it is confirmed.
    Notice(News<S>),
    /// Confirms news: it is written down.
    Noticed(RecordId),
    /// Tells an issuer where to pay a withdrawal, and asks what became of it.
    Payout {
        /// The step that withdrew.
        step: RecordId,
        /// The text whose digest is in the step.
        to: alloc::string::String,
    },
    /// What an issuer knows of a withdrawal.
    Withdrawal {
        /// The step that withdrew.
        step: RecordId,
        /// The word of the issuer whose operator has paid it.
        paid: Option<S::Of<WithdrawalPaid>>,
    },
    /// About the issuers' books: checkpoints, proofs, pages.
    Books(BooksMessage<S>),
    /// Which keys an account had: an issuer tells it whoever knows less of its own account.
    Lineage(S::Keys),
    /// Delegations of the sender's account: new ones for their node, and those that ended for everybody.
    Devices {
        /// The delegations.
        devices: Vec<S::Of<Device>>,
        /// Which key the account has in force.
        lineage: Option<S::Keys>,
    },
    /// Asks the wallet node of the sender's account to open a channel that the sender will use.
    Spend {
        /// Names the request: the same one opens one channel.
        request: u64,
        /// The payee's terms.
        terms: S::Of<Terms>,
        /// Most base that the channel can ever pay, in nano-credits.
        cap: u64,
        /// Key with which the sender will sign its receipts.
        payer_key: PublicKey,
    },
    /// The channel that was asked for is open.
    Spent(Opening<S>),
    /// The channel that was asked for is not opened.
    SpendRefused {
        /// The request.
        request: u64,
        /// Why.
        refusal: SpendRefusal,
    },
    /// From a payee to a peer that it chose as a mirror: keep these for me. At most [`KEPT_MAX`].
    Keep(Vec<Kept<S>>),
    /// Returns what the sender keeps for the receiver, or holds as the other side of their channels; at most [`KEPT_MAX`].
    Kept {
        /// Some of it.
        entries: Vec<Kept<S>>,
        /// Says that nothing follows that the receiver has asked for.
        last: bool,
    },
    /// From a payee to its mirror: a question of a reconciliation of the receipts that it keeps for the sender.
    Compare(Vec<u8>),
    /// The mirror's answer.
    Compared(Vec<u8>),
    /// From a payee to its mirror: return these receipts; at most [`KEPT_QUERY_MAX`].
    KeptQuery(Vec<RecordId>),
    /// From a payee to its mirror: these channels are over, keep nothing for them; at most [`KEPT_QUERY_MAX`].
    Over(Vec<ChannelId>),
    /// From a mirror to an issuer: pay out what this receipt's own usage costs.
    RedeemKept(S::Of<Receipt>),
    /// The issuer has paid out at least that much, for good.
    RedeemedKept(RecordId),
    /// From a node that lost its disk to an issuer: which of its channels, after this one, are on its books?
    ChannelsQuery(ChannelId),
    /// The issuer's answer, in the order of the channels; at most [`BOOKED_MAX`].
    Channels {
        /// Some of them.
        channels: Vec<Booked>,
        /// Says that there are no more.
        last: bool,
    },
    /// From a node that lost its disk to whoever it meets: return what you hold of my channels after this one, as their
    /// other side or as a mirror.
    Recover(ChannelId),
    /// One of several issuers votes for a step.
    Voted {
        /// Its vote.
        vote: S::Of<Vote>,
        /// What the account holds now.
        balance: Balance,
    },
    /// One of several issuers has a certified step on its disk.
    Recorded {
        /// Its word.
        recorded: S::Of<Recorded>,
        /// What the account holds now.
        balance: Balance,
    },
    /// Something that proves itself: from an owner its certified step, from an issuer what another one misses.
    Fact(Fact<S>),
    /// From issuer to issuer: a deposit with the signatures so far.
    Deposit(S::Of<Deposit>),
    /// From issuer to issuer: a vote for the end of a channel.
    CloseVoted(S::Of<CloseVote>),
    /// From issuer to issuer: asks for the names of the facts taken, from this number on.
    FactsQuery(u64),
    /// From issuer to issuer: names of the facts taken.
    Facts {
        /// Number of the first one.
        first: u64,
        /// The names, in the order in which the facts were taken.
        names: Vec<RecordId>,
    },
    /// From issuer to issuer: asks for facts by their names.
    FactQuery(Vec<RecordId>),
    /// From issuer to issuer: about the next checkpoint.
    Agreeing(Agreeing<S>),
    /// What time it is at an issuer.
    Clock(Time),
}

/// Most channels in one message of an issuer.
pub const BOOKED_MAX: usize = 256;

/// Most channels in one message of a mirror: with the largest quorum each takes about 3 KiB.
pub const KEPT_MAX: usize = 16;

/// Most receipts or channels named in one message to a mirror.
pub const KEPT_QUERY_MAX: usize = 512;

/// A channel as a mirror keeps it: proof that it was opened, and the newest receipt, if there is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<AccountOp>: Serialize, S::Of<Receipt>: Serialize, S::Of<Recorded>: Serialize,
        S::Of<Terms>: Serialize",
    deserialize = "S::Of<AccountOp>: Deserialize<'de>, S::Of<Receipt>: Deserialize<'de>,
        S::Of<Recorded>: Deserialize<'de>, S::Of<Terms>: Deserialize<'de>"
))]
pub struct Kept<S: Stage> {
    /// The proof.
    pub opening: Opening<S>,
    /// The receipt, signed by both sides.
    pub receipt: Option<S::Of<Receipt>>,
}

/// What the issuers booked and what concerns the receiver. It proves itself: a quorum has signed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<AccountOp>: Serialize, S::Of<Deposit>: Serialize, S::Of<Terms>: Serialize,
        S::Of<Vote>: Serialize",
    deserialize = "S::Of<AccountOp>: Deserialize<'de>, S::Of<Deposit>: Deserialize<'de>,
        S::Of<Terms>: Deserialize<'de>, S::Of<Vote>: Deserialize<'de>"
))]
pub enum News<S: Stage> {
    /// Credits that entered for the receiver's account.
    Deposit(S::Of<Deposit>),
    /// Another account's step: a payment to the receiver's account, or the early end of a channel to its node.
    Step(Certificate<S>),
}

/// Proof that a channel was opened and committed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<AccountOp>: Serialize, S::Of<Recorded>: Serialize, S::Of<Terms>: Serialize",
    deserialize = "S::Of<AccountOp>: Deserialize<'de>, S::Of<Recorded>: Deserialize<'de>,
        S::Of<Terms>: Deserialize<'de>"
))]
pub struct Opening<S: Stage> {
    /// The step that opened it.
    pub op: S::Of<AccountOp>,
    /// The payee's terms.
    pub terms: S::Of<Terms>,
    /// A quorum's word that the step is durable.
    pub recorded: Vec<S::Of<Recorded>>,
}

/// The newest receipts of the channels between two nodes whose names lie in a range, at most [`HEADS_MAX`]: of a channel
/// in the range that is missing here, the sender has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// The range begins after this channel.
    pub after: ChannelId,
    /// The range ends with this channel.
    pub until: ChannelId,
    /// The receipts, in the order of the channels.
    pub heads: Vec<Head>,
}

impl Heads {
    /// Returns heads in as many parts as they need, all channels covered.
    #[must_use]
    pub fn pages(mut heads: Vec<Head>) -> Vec<Self> {
        heads.sort_unstable_by_key(|head| head.channel);
        let (first, last) = (ChannelId([0; 32]), ChannelId([0xff; 32]));
        let mut pages: Vec<Self> = Vec::new();
        for heads in heads.chunks(HEADS_MAX) {
            let after = pages.last().map_or(first, |page| page.until);
            let until = heads.last().map_or(last, |head| head.channel);
            pages.push(Self { after, until, heads: heads.to_vec() });
        }
        match pages.last_mut() {
            Some(page) => page.until = last,
            None => pages.push(Self { after: first, until: last, heads }),
        }
        pages
    }

    /// Says whether the range includes a channel.
    #[must_use]
    pub fn covers(&self, channel: ChannelId) -> bool {
        channel > self.after && channel <= self.until
    }
}

/// The newest receipt of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The channel.
    pub channel: ChannelId,
    /// Its base paid.
    pub amount: u64,
    /// The receipt.
    pub receipt: RecordId,
    /// From the payee: the least with which it lets the channel end. From the payer: 0.
    pub due: u64,
    /// From the payee: the base of all that it counts, jobs in flight at what they were granted. From the payer: 0.
    pub counted: u64,
}

/// Why a wallet node opens no channel for another node of its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum SpendRefusal {
    /// The node is not authorised to spend.
    #[error("its owner has not authorised this node to spend: see `sharemesh account authorise --spend`")]
    NotAuthorised,
    /// The node has used up what it may spend in this epoch.
    #[error("this node may spend {left} more nano-credits in this epoch: its owner sets the limit")]
    Budget {
        /// Nano-credits left.
        left: u64,
    },
    /// The account does not hold enough.
    #[error("the account holds {available} nano-credits, which is not enough")]
    NotEnough {
        /// What it can spend.
        available: u64,
    },
    /// The wallet node cannot open it now.
    #[error("the wallet node of the account cannot open a channel now")]
    Unavailable,
}

/// Why a node is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum JoinError {
    /// No such ticket.
    #[error("this network's issuer does not know the ticket: ask for a new one")]
    UnknownTicket,
    /// Another node used it.
    #[error("the ticket was used by another node: each ticket admits one node, ask for a new one")]
    Used,
    /// The amount could not be booked.
    #[error("the issuer could not book the ticket's credits: {0}")]
    Deposit(IssuerError),
    /// The peer is no issuer.
    #[error("this node is not an issuer of the network")]
    NotIssuer,
}

/// Why a message was dropped before any rule saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Not a message.
    #[error("undecodable message: {0}")]
    Malformed(#[from] DecodeError),
    /// A signed part does not hold.
    #[error("bad record in a message: {0}")]
    Signed(#[from] SignedError),
}

impl Message<Wire> {
    /// Returns the message as it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a message and checks every signature in it for network `domain`.
    ///
    /// # Errors
    /// When it is no message, or a signed part does not hold.
    pub fn check(bytes: &[u8], domain: DomainId, scheme: Scheme) -> Result<Message<Checked>, MessageError> {
        let message: Self = decode(bytes, MESSAGE_BYTES_MAX)?;
        Ok(message.verify(domain, scheme)?)
    }

    fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Message<Checked>, SignedError> {
        fn maybe<T: Signable>(
            part: Option<Signed<T>>,
            domain: DomainId,
            scheme: Scheme,
        ) -> Result<Option<Verified<T>>, SignedError> {
            part.map(|part| part.verify(domain, scheme)).transpose()
        }
        Ok(match self {
            Self::Hello { device, lineage, membership, advert, asks } => Message::Hello {
                device: device.verify(domain, scheme)?,
                lineage: lineage.map(|lineage| lineage.verify(domain, scheme)).transpose()?,
                membership: maybe(membership, domain, scheme)?,
                advert: maybe(advert, domain, scheme)?,
                asks,
            },
            Self::Join { secret } => Message::Join { secret },
            Self::Joined { membership, deposit } => Message::Joined {
                membership: membership.verify(domain, scheme)?,
                deposit: maybe(deposit, domain, scheme)?,
            },
            Self::JoinRefused(error) => Message::JoinRefused(error),
            Self::Advert(advert) => Message::Advert(advert.verify(domain, scheme)?),
            Self::AdvertQuery => Message::AdvertQuery,
            Self::Ask { job, model, account } => Message::Ask { job, model, account },
            Self::Offer { job, terms } => Message::Offer { job, terms: terms.verify(domain, scheme)? },
            Self::Refused { job, refusal } => Message::Refused { job, refusal },
            Self::AccountQuery => Message::AccountQuery,
            Self::AccountState { account, next, head, balance } => {
                Message::AccountState { account, next, head, balance }
            }
            Self::Step { op, terms } => {
                Message::Step { op: op.verify(domain, scheme)?, terms: maybe(terms, domain, scheme)? }
            }
            Self::Stepped { vote, recorded, balance } => Message::Stepped {
                vote: vote.verify(domain, scheme)?,
                recorded: recorded.verify(domain, scheme)?,
                balance,
            },
            Self::StepRefused { op, error, balance } => Message::StepRefused { op, error, balance },
            Self::Submit { job, spec, channel, opening } => {
                let opening = opening.map(|opening| opening.verify(domain, scheme)).transpose()?;
                Message::Submit { job, spec, channel, opening }
            }
            Self::Accepted(accepted) => Message::Accepted(accepted.verify(domain, scheme)?),
            Self::Pay { receipt, allowances } => {
                Message::Pay { receipt: receipt.verify(domain, scheme)?, allowances }
            }
            Self::CoSigned(receipt) => Message::CoSigned(receipt.verify(domain, scheme)?),
            Self::Finished { record, jobs } => Message::Finished { record, jobs },
            Self::Failed { job, tokens_out, reason } => Message::Failed { job, tokens_out, reason },
            Self::Cancel { job } => Message::Cancel { job },
            Self::Heads(heads) => Message::Heads(heads),
            Self::Redeem { receipt, claim } => Message::Redeem {
                receipt: receipt.verify(domain, scheme)?,
                claim: claim.verify(domain, scheme)?,
            },
            Self::Redeemed(ack) => Message::Redeemed(ack.verify(domain, scheme)?),
            Self::Close { closing, opening } => Message::Close {
                closing: closing.verify(domain, scheme)?,
                opening: opening.map(|opening| opening.verify(domain, scheme)).transpose()?,
            },
            Self::Voted { vote, balance } => Message::Voted { vote: vote.verify(domain, scheme)?, balance },
            Self::Recorded { recorded, balance } => {
                Message::Recorded { recorded: recorded.verify(domain, scheme)?, balance }
            }
            Self::Fact(fact) => Message::Fact(fact.verify(domain, scheme)?),
            Self::Deposit(deposit) => Message::Deposit(deposit.verify(domain, scheme)?),
            Self::CloseVoted(vote) => Message::CloseVoted(vote.verify(domain, scheme)?),
            Self::FactsQuery(since) => Message::FactsQuery(since),
            Self::Facts { first, names } => Message::Facts { first, names },
            Self::FactQuery(names) => Message::FactQuery(names),
            Self::Agreeing(message) => Message::Agreeing(message.verify(domain, scheme)?),
            Self::Notice(news) => Message::Notice(news.verify(domain, scheme)?),
            Self::Noticed(record) => Message::Noticed(record),
            Self::Payout { step, to } => Message::Payout { step, to },
            Self::Withdrawal { step, paid } => {
                Message::Withdrawal { step, paid: maybe(paid, domain, scheme)? }
            }
            Self::Books(message) => Message::Books(message.verify(domain, scheme)?),
            Self::Lineage(lineage) => Message::Lineage(lineage.verify(domain, scheme)?),
            Self::Devices { devices, .. } if devices.len() > DEVICES_MAX => {
                return Err(SignedError::Bounds("devices"));
            }
            Self::Devices { devices, lineage } => Message::Devices {
                devices: devices.into_iter().map(|d| d.verify(domain, scheme)).collect::<Result<_, _>>()?,
                lineage: lineage.map(|lineage| lineage.verify(domain, scheme)).transpose()?,
            },
            Self::Spend { request, terms, cap, payer_key } => {
                Message::Spend { request, terms: terms.verify(domain, scheme)?, cap, payer_key }
            }
            Self::Spent(opening) => Message::Spent(opening.verify(domain, scheme)?),
            Self::SpendRefused { request, refusal } => Message::SpendRefused { request, refusal },
            Self::Keep(entries) => Message::Keep(kept(entries, domain, scheme)?),
            Self::Kept { entries, last } => Message::Kept { entries: kept(entries, domain, scheme)?, last },
            Self::Compare(question) => Message::Compare(question),
            Self::Compared(answer) => Message::Compared(answer),
            Self::KeptQuery(receipts) => Message::KeptQuery(receipts),
            Self::Over(channels) => Message::Over(channels),
            Self::RedeemKept(receipt) => Message::RedeemKept(receipt.verify(domain, scheme)?),
            Self::RedeemedKept(receipt) => Message::RedeemedKept(receipt),
            Self::ChannelsQuery(after) => Message::ChannelsQuery(after),
            Self::Channels { channels, last } => Message::Channels { channels, last },
            Self::Recover(after) => Message::Recover(after),
            Self::Clock(time) => Message::Clock(time),
        })
    }
}

fn kept(
    entries: Vec<Kept<Wire>>,
    domain: DomainId,
    scheme: Scheme,
) -> Result<Vec<Kept<Checked>>, SignedError> {
    if entries.len() > KEPT_MAX {
        return Err(SignedError::Bounds("kept"));
    }
    entries.into_iter().map(|entry| entry.verify(domain, scheme)).collect()
}

impl Kept<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold, or there are more than a quorum can have.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Kept<Checked>, SignedError> {
        let receipt = self.receipt.map(|receipt| receipt.verify(domain, scheme)).transpose()?;
        Ok(Kept { opening: self.opening.verify(domain, scheme)?, receipt })
    }
}

impl Kept<Checked> {
    /// Returns it as it travels.
    #[must_use]
    pub fn signed(&self) -> Kept<Wire> {
        Kept { opening: self.opening.signed(), receipt: self.receipt.as_ref().map(Verified::signed) }
    }
}

impl Message<Checked> {
    /// Returns the message as it travels.
    #[must_use]
    pub fn to_wire(&self) -> Message<Wire> {
        match self {
            Self::Hello { device, lineage, membership, advert, asks } => Message::Hello {
                device: device.signed(),
                lineage: lineage.as_ref().map(Lineage::signed),
                membership: membership.as_ref().map(Verified::signed),
                advert: advert.as_ref().map(Verified::signed),
                asks: *asks,
            },
            Self::Join { secret } => Message::Join { secret: *secret },
            Self::Joined { membership, deposit } => Message::Joined {
                membership: membership.signed(),
                deposit: deposit.as_ref().map(Verified::signed),
            },
            Self::JoinRefused(error) => Message::JoinRefused(*error),
            Self::Advert(advert) => Message::Advert(advert.signed()),
            Self::AdvertQuery => Message::AdvertQuery,
            Self::Ask { job, model, account } => Message::Ask { job: *job, model: *model, account: *account },
            Self::Offer { job, terms } => Message::Offer { job: *job, terms: terms.signed() },
            Self::Refused { job, refusal } => Message::Refused { job: *job, refusal: *refusal },
            Self::AccountQuery => Message::AccountQuery,
            Self::AccountState { account, next, head, balance } => {
                Message::AccountState { account: *account, next: *next, head: *head, balance: *balance }
            }
            Self::Step { op, terms } => {
                Message::Step { op: op.signed(), terms: terms.as_ref().map(Verified::signed) }
            }
            Self::Stepped { vote, recorded, balance } => {
                Message::Stepped { vote: vote.signed(), recorded: recorded.signed(), balance: *balance }
            }
            Self::StepRefused { op, error, balance } => {
                Message::StepRefused { op: *op, error: *error, balance: *balance }
            }
            Self::Submit { job, spec, channel, opening } => Message::Submit {
                job: *job,
                spec: spec.clone(),
                channel: *channel,
                opening: opening.as_ref().map(Opening::signed),
            },
            Self::Accepted(accepted) => Message::Accepted(accepted.signed()),
            Self::Pay { receipt, allowances } => {
                Message::Pay { receipt: receipt.signed(), allowances: allowances.clone() }
            }
            Self::CoSigned(receipt) => Message::CoSigned(receipt.signed()),
            Self::Finished { record, jobs } => Message::Finished { record: record.clone(), jobs: *jobs },
            Self::Failed { job, tokens_out, reason } => {
                Message::Failed { job: *job, tokens_out: *tokens_out, reason: reason.clone() }
            }
            Self::Cancel { job } => Message::Cancel { job: *job },
            Self::Heads(heads) => Message::Heads(heads.clone()),
            Self::Redeem { receipt, claim } => {
                Message::Redeem { receipt: receipt.signed(), claim: claim.signed() }
            }
            Self::Redeemed(ack) => Message::Redeemed(ack.signed()),
            Self::Close { closing, opening } => {
                Message::Close { closing: closing.signed(), opening: opening.as_ref().map(Opening::signed) }
            }
            Self::Voted { vote, balance } => Message::Voted { vote: vote.signed(), balance: *balance },
            Self::Recorded { recorded, balance } => {
                Message::Recorded { recorded: recorded.signed(), balance: *balance }
            }
            Self::Fact(fact) => Message::Fact(fact.signed()),
            Self::Deposit(deposit) => Message::Deposit(deposit.signed()),
            Self::CloseVoted(vote) => Message::CloseVoted(vote.signed()),
            Self::FactsQuery(since) => Message::FactsQuery(*since),
            Self::Facts { first, names } => Message::Facts { first: *first, names: names.clone() },
            Self::FactQuery(names) => Message::FactQuery(names.clone()),
            Self::Agreeing(message) => Message::Agreeing(message.to_wire()),
            Self::Notice(news) => Message::Notice(news.signed()),
            Self::Noticed(record) => Message::Noticed(*record),
            Self::Payout { step, to } => Message::Payout { step: *step, to: to.clone() },
            Self::Withdrawal { step, paid } => {
                Message::Withdrawal { step: *step, paid: paid.as_ref().map(Verified::signed) }
            }
            Self::Books(message) => Message::Books(message.to_wire()),
            Self::Lineage(lineage) => Message::Lineage(lineage.signed()),
            Self::Devices { devices, lineage } => Message::Devices {
                devices: devices.iter().map(Verified::signed).collect(),
                lineage: lineage.as_ref().map(Lineage::signed),
            },
            Self::Spend { request, terms, cap, payer_key } => {
                let (request, cap, payer_key) = (*request, *cap, *payer_key);
                Message::Spend { request, terms: terms.signed(), cap, payer_key }
            }
            Self::Spent(opening) => Message::Spent(opening.signed()),
            Self::SpendRefused { request, refusal } => {
                Message::SpendRefused { request: *request, refusal: *refusal }
            }
            Self::Keep(entries) => Message::Keep(entries.iter().map(Kept::signed).collect()),
            Self::Kept { entries, last } => {
                Message::Kept { entries: entries.iter().map(Kept::signed).collect(), last: *last }
            }
            Self::Compare(question) => Message::Compare(question.clone()),
            Self::Compared(answer) => Message::Compared(answer.clone()),
            Self::KeptQuery(receipts) => Message::KeptQuery(receipts.clone()),
            Self::Over(channels) => Message::Over(channels.clone()),
            Self::RedeemKept(receipt) => Message::RedeemKept(receipt.signed()),
            Self::RedeemedKept(receipt) => Message::RedeemedKept(*receipt),
            Self::ChannelsQuery(after) => Message::ChannelsQuery(*after),
            Self::Channels { channels, last } => {
                Message::Channels { channels: channels.clone(), last: *last }
            }
            Self::Recover(after) => Message::Recover(*after),
            Self::Clock(time) => Message::Clock(*time),
        }
    }
}

impl<S: Stage> Message<S> {
    /// Returns the message's name, for logs and counts.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Join { .. } => "join",
            Self::Joined { .. } => "joined",
            Self::JoinRefused(_) => "join_refused",
            Self::Advert(_) => "advert",
            Self::AdvertQuery => "advert_query",
            Self::Ask { .. } => "ask",
            Self::Offer { .. } => "offer",
            Self::Refused { .. } => "refused",
            Self::AccountQuery => "account_query",
            Self::AccountState { .. } => "account_state",
            Self::Step { .. } => "step",
            Self::Stepped { .. } => "stepped",
            Self::StepRefused { .. } => "step_refused",
            Self::Submit { .. } => "submit",
            Self::Accepted(_) => "accepted",
            Self::Pay { .. } => "pay",
            Self::CoSigned(_) => "co_signed",
            Self::Finished { .. } => "finished",
            Self::Failed { .. } => "failed",
            Self::Cancel { .. } => "cancel",
            Self::Heads(_) => "heads",
            Self::Redeem { .. } => "redeem",
            Self::Redeemed(_) => "redeemed",
            Self::Close { .. } => "close",
            Self::Voted { .. } => "voted",
            Self::Recorded { .. } => "recorded",
            Self::Fact(_) => "fact",
            Self::Deposit(_) => "deposit",
            Self::CloseVoted(_) => "close_voted",
            Self::FactsQuery(_) => "facts_query",
            Self::Facts { .. } => "facts",
            Self::FactQuery(_) => "fact_query",
            Self::Agreeing(message) => message.name(),
            Self::Clock(_) => "clock",
            Self::Notice(_) => "notice",
            Self::Noticed(_) => "noticed",
            Self::Payout { .. } => "payout",
            Self::Withdrawal { .. } => "withdrawal",
            Self::Books(message) => message.name(),
            Self::Lineage(_) => "lineage",
            Self::Devices { .. } => "devices",
            Self::Spend { .. } => "spend",
            Self::Spent(_) => "spent",
            Self::SpendRefused { .. } => "spend_refused",
            Self::Keep(_) => "keep",
            Self::Kept { .. } => "kept",
            Self::Compare(_) => "compare",
            Self::Compared(_) => "compared",
            Self::KeptQuery(_) => "kept_query",
            Self::Over(_) => "over",
            Self::RedeemKept(_) => "redeem_kept",
            Self::RedeemedKept(_) => "redeemed_kept",
            Self::ChannelsQuery(_) => "channels_query",
            Self::Channels { .. } => "channels",
            Self::Recover(_) => "recover",
        }
    }

    /// Returns the job that the message hands over or asks about, whose failure to arrive the sender must know of.
    #[must_use]
    pub const fn job(&self) -> Option<JobId> {
        match self {
            Self::Ask { job, .. } | Self::Submit { job, .. } => Some(*job),
            Self::Hello { .. }
            | Self::Join { .. }
            | Self::Joined { .. }
            | Self::JoinRefused(_)
            | Self::Advert(_)
            | Self::AdvertQuery
            | Self::Offer { .. }
            | Self::Refused { .. }
            | Self::AccountQuery
            | Self::AccountState { .. }
            | Self::Step { .. }
            | Self::Stepped { .. }
            | Self::StepRefused { .. }
            | Self::Accepted(_)
            | Self::Pay { .. }
            | Self::CoSigned(_)
            | Self::Finished { .. }
            | Self::Failed { .. }
            | Self::Cancel { .. }
            | Self::Heads(_)
            | Self::Redeem { .. }
            | Self::Redeemed(_)
            | Self::Close { .. }
            | Self::Books(_)
            | Self::Voted { .. }
            | Self::Recorded { .. }
            | Self::Fact(_)
            | Self::Deposit(_)
            | Self::CloseVoted(_)
            | Self::FactsQuery(_)
            | Self::Facts { .. }
            | Self::FactQuery(_)
            | Self::Agreeing(_)
            | Self::Notice(_)
            | Self::Noticed(_)
            | Self::Payout { .. }
            | Self::Withdrawal { .. }
            | Self::Lineage(_)
            | Self::Devices { .. }
            | Self::Spend { .. }
            | Self::Spent(_)
            | Self::SpendRefused { .. }
            | Self::Keep(_)
            | Self::Kept { .. }
            | Self::Compare(_)
            | Self::Compared(_)
            | Self::KeptQuery(_)
            | Self::Over(_)
            | Self::RedeemKept(_)
            | Self::RedeemedKept(_)
            | Self::ChannelsQuery(_)
            | Self::Channels { .. }
            | Self::Recover(_)
            | Self::Clock(_) => None,
        }
    }
}

impl News<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<News<Checked>, SignedError> {
        Ok(match self {
            Self::Deposit(deposit) => News::Deposit(deposit.verify(domain, scheme)?),
            Self::Step(certificate) => News::Step(certificate.verify(domain, scheme)?),
        })
    }

    /// Takes news out of our own journal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_back(self, domain: DomainId) -> Result<News<Checked>, SignedError> {
        Ok(match self {
            Self::Deposit(deposit) => News::Deposit(deposit.read_back(domain)?),
            Self::Step(certificate) => News::Step(certificate.read_back(domain)?),
        })
    }
}

impl News<Checked> {
    /// Returns the news as it travels and is kept.
    #[must_use]
    pub fn signed(&self) -> News<Wire> {
        match self {
            Self::Deposit(deposit) => News::Deposit(deposit.signed()),
            Self::Step(certificate) => News::Step(certificate.signed()),
        }
    }

    /// Returns the id of the deposit or the step.
    #[must_use]
    pub const fn id(&self) -> RecordId {
        match self {
            Self::Deposit(deposit) => deposit.id(),
            Self::Step(certificate) => certificate.op.id(),
        }
    }

    /// Checks that a quorum of the network's issuers has signed it.
    ///
    /// # Errors
    /// [`IssuerError::NoQuorum`] when too few have.
    pub fn check(&self, manifest: &Manifest) -> Result<(), IssuerError> {
        match self {
            Self::Deposit(deposit) if is_agreed(deposit, manifest) => Ok(()),
            Self::Deposit(_) => Err(IssuerError::NoQuorum),
            Self::Step(certificate) => certificate.check(manifest),
        }
    }

    /// Returns the news as what issuers hand to each other.
    #[must_use]
    pub fn fact(&self) -> Fact<Checked> {
        match self {
            Self::Deposit(deposit) => Fact::Deposit(deposit.clone()),
            Self::Step(certificate) => Fact::Step(certificate.clone()),
        }
    }
}

impl Opening<Wire> {
    /// Checks every signature.
    ///
    /// # Errors
    /// When one does not hold, or there are more than a quorum can have.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Opening<Checked>, SignedError> {
        self.map(
            |recorded| recorded.verify(domain, scheme),
            |op| op.verify(domain, scheme),
            |terms| terms.verify(domain, scheme),
        )
    }

    /// Takes an opening out of our own journal.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_back(self, domain: DomainId) -> Result<Opening<Checked>, SignedError> {
        self.map(
            |recorded| recorded.read_back(domain),
            |op| op.read_back(domain),
            |terms| terms.read_back(domain),
        )
    }

    fn map(
        self,
        recorded: impl Fn(Signed<Recorded>) -> Result<Verified<Recorded>, SignedError>,
        op: impl Fn(Signed<AccountOp>) -> Result<Verified<AccountOp>, SignedError>,
        terms: impl Fn(Signed<Terms>) -> Result<Verified<Terms>, SignedError>,
    ) -> Result<Opening<Checked>, SignedError> {
        if self.recorded.len() > crate::manifest::ISSUERS_MAX {
            return Err(SignedError::Attestations);
        }
        let recorded = self.recorded.into_iter().map(recorded).collect::<Result<_, _>>()?;
        Ok(Opening { op: op(self.op)?, terms: terms(self.terms)?, recorded })
    }
}

impl Opening<Checked> {
    /// Says whether a quorum of the network's issuers durably holds the step.
    #[must_use]
    pub fn is_committed(&self, manifest: &Manifest) -> bool {
        if self.recorded.len() > manifest.issuers.len() {
            return false;
        }
        let confirms = |issuer: &crate::manifest::Issuer| {
            let signed = |recorded: &Verified<Recorded>| recorded.is_signed_by(Role::Issuer, issuer.key);
            self.recorded.iter().any(|recorded| recorded.op == self.op.id() && signed(recorded))
        };
        manifest.issuers.iter().filter(|issuer| confirms(issuer)).count() >= usize::from(manifest.quorum)
    }

    /// Returns the opening as it travels.
    #[must_use]
    pub fn signed(&self) -> Opening<Wire> {
        Opening {
            op: self.op.signed(),
            terms: self.terms.signed(),
            recorded: self.recorded.iter().map(Verified::signed).collect(),
        }
    }
}
