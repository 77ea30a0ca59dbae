//! What a node must not forget: the lines of its journal, from which it starts again.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::agreeing::AgreedRecord;
use crate::books::BooksRecord;
use crate::encoding::{DecodeError, decode, decode_own, encode};
use crate::forward::Forward;
use crate::ids::{AccountId, ChannelId, Digest, DomainId, RecordId};
use crate::job::JobRecord;
use crate::keys::PublicKey;
use crate::ledger::account::SignedLineage;
use crate::ledger::issuer::Booked;
use crate::ledger::quorum::{Certificate, EndCertificate};
use crate::ledger::records::{
    AccountOp, Deposit, Device, Epoch, Final, Membership, Receipt, Recorded, RedeemAck, Terms, WithdrawalPaid,
};
use crate::message::{News, Opening, Wire};
use crate::signed::Signed;
use crate::statement::Line;

/// Bounds one line of the journal.
pub const RECORD_BYTES_MAX: usize = 32 * 1024;

/// One fact, in the order in which facts became true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// An issuer admitted this node.
    Joined {
        /// Its proof.
        membership: Signed<Membership>,
        /// The opening amount.
        deposit: Option<Signed<Deposit>>,
    },
    /// Our account signed a step.
    Step {
        /// The step.
        op: Signed<AccountOp>,
        /// The terms it names, if it opens a channel.
        terms: Option<Signed<Terms>>,
    },
    /// A channel on which we pay was committed.
    Paying(Opening<Wire>),
    /// A channel on which we are paid was committed.
    Paid(Opening<Wire>),
    /// A newer receipt of one of our channels.
    Receipt(Signed<Receipt>),
    /// A job ended.
    Job(JobRecord),
    /// We signed the end of one of our channels.
    Final(Signed<Final>),
    /// The issuer paid out of, or closed, one of our channels.
    Redeemed(Signed<RedeemAck>),
    /// As issuer: a ticket was made.
    Ticket {
        /// What it is recognised by.
        fingerprint: Digest,
        /// Nano-credits it carries.
        amount: u64,
    },
    /// As issuer: a node was admitted, with a ticket if the network demands one.
    Admitted {
        /// The ticket it used.
        ticket: Digest,
        /// Its proof.
        membership: Signed<Membership>,
        /// The opening amount.
        deposit: Option<Signed<Deposit>>,
    },
    /// As issuer: credits entered.
    Deposited(Signed<Deposit>),
    /// As issuer: a step of an account was taken.
    Stepped {
        /// The step.
        op: Signed<AccountOp>,
        /// The terms it names.
        terms: Option<Signed<Terms>>,
        /// Epoch in which it was taken.
        epoch: Epoch,
    },
    /// As issuer: a receipt was paid out.
    PaidOut {
        /// The receipt.
        receipt: Signed<Receipt>,
        /// Base paid out in all, at most what the receipt states.
        amount: u64,
    },
    /// As issuer: a channel was closed by both sides.
    Closed(Signed<Final>),
    /// As issuer: channels whose grace ended before this epoch were closed.
    Expired(Epoch),
    /// Our step that opens no channel was committed.
    Taken(Signed<Recorded>),
    /// A text that stands in a step as its digest: where a withdrawal is to be paid.
    Text(String),
    /// A withdrawal was paid out, with the operator's reference.
    WithdrawalPaid(Signed<WithdrawalPaid>),
    /// The issuers' news for us.
    Noticed(News<Wire>),
    /// About the issuers' books: checkpoints, proofs, findings.
    Books(BooksRecord),
    /// The keys that our account had.
    Lineage(SignedLineage),
    /// Our account authorised a node, or ended that.
    Authorised {
        /// The delegation as it was signed first.
        device: Signed<Device>,
        /// Last epoch until which it is renewed.
        until: Epoch,
        /// Nano-credits that the node may have escrowed in an epoch.
        budget: u64,
    },
    /// The owner's delegation to this node.
    Delegated {
        /// The delegation.
        device: Signed<Device>,
        /// The keys that the account had.
        lineage: Option<SignedLineage>,
    },
    /// Our account opened a channel for another of its nodes.
    Lent {
        /// The request of that node; 0 when it was forgotten in a restart.
        request: u64,
        /// The channel.
        opening: Opening<Wire>,
    },
    /// As a mirror: a payee gave us a newer receipt to keep.
    Kept {
        /// Proof of the channel; none if an earlier line has it.
        opening: Option<Opening<Wire>>,
        /// The receipt.
        receipt: Signed<Receipt>,
    },
    /// As a mirror: nothing is kept any more for this channel.
    Over(ChannelId),
    /// The journal before this line may lack what this node signed: others are asked for it before it signs again.
    Recovering,
    /// A channel of this node of which an issuer says that it is closed.
    Ended {
        /// The channel.
        channel: ChannelId,
        /// Until when its opening must not count again.
        expires: Epoch,
        /// Account that paid.
        payer: AccountId,
    },
    /// All that others hold of this node's channels is in the journal before this line; the issuers have named every one
    /// that was opened before this epoch.
    Recovered(Epoch),
    /// As one of several issuers: we voted for a step, and its slot is locked to it.
    Voted {
        /// The step.
        op: Signed<AccountOp>,
        /// The terms it names.
        terms: Option<Signed<Terms>>,
        /// Epoch in which it was judged.
        epoch: Epoch,
    },
    /// As one of several issuers: a step of an account was taken that a quorum had voted for.
    Certified {
        /// The step with its votes.
        certificate: Certificate<Wire>,
        /// Epoch in which it was taken.
        epoch: Epoch,
    },
    /// As one of several issuers: we signed a deposit out of the budget.
    Endorsed {
        /// The deposit, as it was proposed.
        deposit: Signed<Deposit>,
        /// Who proposed it.
        proposer: PublicKey,
    },
    /// As one of several issuers: we let a channel end with this amount, and redeem nothing beyond.
    Promised {
        /// The channel.
        channel: ChannelId,
        /// Base paid in all.
        amount: u64,
    },
    /// As one of several issuers: a channel ended as a quorum had promised.
    Concluded(EndCertificate<Wire>),
    /// As one of several issuers: our operator has seen a payment from outside, and we signed its deposit.
    Vouched(Signed<Deposit>),
    /// As one of several issuers: what it keeps to agree on checkpoints.
    Agreed(AgreedRecord),
    /// The issuers refused the step that our account signed last: it is not sent again.
    GivenUp(RecordId),
    /// What a channel moved in an epoch, or a part of it: all that is kept of a channel that was over long ago.
    Moved(Line),
    /// A channel that was open at the issuers when this node had recovered, and that nobody had given back until then.
    Missing(Booked),
    /// As the only issuer: the books at the checkpoint that follows, in place of all lines of theirs before.
    Forward(Forward),
    /// As one of several issuers: a quorum has paid as much on a channel, so that steps may be paid out of it.
    Counted {
        /// The channel.
        channel: ChannelId,
        /// Base paid in all.
        amount: u64,
    },
}

impl Record {
    /// Returns the line as it is stored.
    #[must_use]
    pub fn to_bytes(&self) -> alloc::vec::Vec<u8> {
        encode(self)
    }

    /// Reads a line out of our own journal, whose checksums held.
    ///
    /// # Errors
    /// When the bytes are no line that this version knows.
    pub fn read_back(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_own(bytes, RECORD_BYTES_MAX)
    }

    /// Returns the channel of this node that the line is about.
    #[must_use]
    pub fn channel(&self, domain: DomainId) -> Option<ChannelId> {
        match self {
            Self::Paying(opening) | Self::Paid(opening) | Self::Lent { opening, .. } => {
                Some(opening.op.id_in(domain).into())
            }
            Self::Receipt(receipt) => receipt.peek_in(domain).map(|(receipt, ..)| receipt.channel),
            Self::Final(closing) => closing.peek_in(domain).map(|(closing, ..)| closing.channel),
            Self::Redeemed(ack) => ack.peek_in(domain).map(|(ack, ..)| ack.channel),
            Self::Job(job) => job.channel,
            Self::Moved(line) => line.channel,
            Self::Ended { channel, .. } | Self::Missing(Booked { channel, .. }) => Some(*channel),
            Self::Joined { .. }
            | Self::Step { .. }
            | Self::Ticket { .. }
            | Self::Admitted { .. }
            | Self::Deposited(_)
            | Self::Stepped { .. }
            | Self::PaidOut { .. }
            | Self::Closed(_)
            | Self::Expired(_)
            | Self::Taken(_)
            | Self::Text(_)
            | Self::WithdrawalPaid(_)
            | Self::Noticed(_)
            | Self::Books(_)
            | Self::Lineage(_)
            | Self::Authorised { .. }
            | Self::Delegated { .. }
            | Self::Kept { .. }
            | Self::Over(_)
            | Self::Recovering
            | Self::Recovered(_)
            | Self::Voted { .. }
            | Self::Certified { .. }
            | Self::Endorsed { .. }
            | Self::Promised { .. }
            | Self::Counted { .. }
            | Self::Concluded(_)
            | Self::Vouched(_)
            | Self::Agreed(_)
            | Self::GivenUp(_)
            | Self::Forward(_) => None,
        }
    }

    /// Returns the channel of others that the line is about, of which this node keeps receipts as a mirror.
    #[must_use]
    pub fn mirrored(&self, domain: DomainId) -> Option<ChannelId> {
        if let Self::Kept { receipt, .. } = self {
            receipt.peek_in(domain).map(|(receipt, ..)| receipt.channel)
        } else if let Self::Over(channel) = self {
            Some(*channel)
        } else {
            None
        }
    }

    /// Reads a line of whatever origin.
    ///
    /// # Errors
    /// When the bytes are no line that this version knows.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes, RECORD_BYTES_MAX)
    }
}

/// How every line about a checkpoint begins: its kind, [`Record::Books`], and what it is about.
const CHECKPOINT: [u8; 2] = [19, 0];

/// Says whether the bytes of a line are about a checkpoint, without reading them.
#[must_use]
pub fn is_checkpoint(bytes: &[u8]) -> bool {
    bytes.starts_with(&CHECKPOINT)
}
