//! All that peers say to each other.

mod channels;
mod names;
mod news;
mod refusals;
mod stages;

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
use crate::ledger::issuer::{Balance, Booked, IssuerError, Routed};
use crate::ledger::paying::Allowances;
use crate::ledger::quorum::Fact;
use crate::ledger::records::{
    Accepted, AccountOp, Claim, CloseVote, Deposit, Device, Final, Markup, Membership, Receipt, Recorded,
    RedeemAck, Terms, Vote, WithdrawalPaid,
};
use crate::scheduler::Refusal;
use crate::signed::{Signable, Signed, SignedError, Verified};
use crate::time::Time;

pub use channels::{HEADS_MAX, Head, Heads, KEPT_MAX, KEPT_QUERY_MAX, Kept, Opening};
pub use news::News;
pub use refusals::{JoinError, SpendRefusal};

/// Version of the messages; part of the protocol's name on the wire.
pub const PROTOCOL_VERSION: u16 = 1;

/// Bounds one message: an advert or a list of heads, with room to spare.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Most delegations of one account, and so in one message.
pub const DEVICES_MAX: usize = 16;

/// Most channels in one message of an issuer.
pub const BOOKED_MAX: usize = 256;

/// Most channels in what a builder is told at once.
pub const ROUTED_MAX: usize = 256;

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
        /// Markup that the terms shall have.
        markup: Option<Markup>,
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
    /// From an issuer to a builder: what channels have paid out, of which it gets a markup; at most [`ROUTED_MAX`]. Told
    /// again until it is noted.
    Markups(Vec<Routed>),
    /// From a builder to an issuer: that is written down.
    MarkupsNoted(Vec<Routed>),
    /// From a payee to one of several issuers: what enough of them say that they have paid on a channel. Said again until it
    /// is confirmed.
    Confirm(Vec<S::Of<RedeemAck>>),
    /// From an issuer to a payee: so much counts, and is on its disk.
    Confirmed {
        /// The channel.
        channel: ChannelId,
        /// Base paid.
        amount: u64,
    },
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
}
