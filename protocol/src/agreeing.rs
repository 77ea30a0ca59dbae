//! What issuers say to each other, and keep in their journals, to agree on a checkpoint.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ChannelId, Digest, DomainId, RecordId};
use crate::keys::Scheme;
use crate::ledger::agreement::Ballot;
use crate::ledger::checkpoint::Checkpoint;
use crate::ledger::quorum::Fact;
use crate::ledger::records::{AccountOp, Epoch};
use crate::ledger::settled::digest_of;
use crate::manifest::ISSUERS_MAX;
use crate::message::{Checked, Stage, Wire};
use crate::signed::{Signable, Signed, SignedError, Verified};

/// Most names in one line of the journal.
pub const NAMES_PER_LINE: usize = 512;

/// Most slots, and most channels, in one line of the journal.
pub const FROZEN_PER_LINE: usize = 256;

/// What is said among issuers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S::Of<Ballot>: Serialize, S::Of<Checkpoint>: Serialize, S::Of<AccountOp>: Serialize",
    deserialize = "S::Of<Ballot>: Deserialize<'de>, S::Of<Checkpoint>: Deserialize<'de>,
        S::Of<AccountOp>: Deserialize<'de>"
))]
pub enum Agreeing<S: Stage> {
    /// In which round the sender is, in the agreement on what follows a checkpoint.
    Round {
        /// The checkpoint before.
        previous: RecordId,
        /// The round.
        round: u32,
    },
    /// From the proposer of a round: the checkpoint that it has come to.
    Proposal {
        /// The round.
        round: u32,
        /// The checkpoint, which names the facts behind it by their digest.
        checkpoint: Box<Checkpoint>,
        /// The quorum that prepared it in an earlier round, if it is not new.
        prepares: Vec<S::Of<Ballot>>,
    },
    /// Asks for the names of the facts of a checkpoint, from this number on.
    NamesQuery {
        /// Their digest.
        facts: Digest,
        /// Number of the first one.
        from: u32,
    },
    /// Names of the facts of a checkpoint; fewer than a page holds are the last.
    Names {
        /// Digest of all of them.
        facts: Digest,
        /// Number of the first one.
        from: u32,
        /// The names.
        names: Vec<RecordId>,
    },
    /// A vote.
    Ballot(S::Of<Ballot>),
    /// The checkpoint on which a quorum has agreed, with the signatures so far.
    Signed(S::Of<Checkpoint>),
    /// A step for which the sender voted a while ago and which has no certificate yet: another issuer may hold another
    /// one for the same slot.
    Locked(S::Of<AccountOp>),
}

/// What an issuer keeps of an agreement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgreedRecord {
    /// Our books took a fact that has no line of its own: a redemption, or two steps in one slot.
    Taken(Fact<Wire>),
    /// A fact that a checkpoint names and that our books had not taken.
    Learned(Fact<Wire>),
    /// Names of the facts of the checkpoint of the next line of its kind, in their order; at most [`NAMES_PER_LINE`].
    Names(Vec<RecordId>),
    /// The checkpoint to which the names before it lead.
    Candidate(Checkpoint),
    /// What we have prepared resolves these: nothing else may, while it is not known what was agreed on.
    Frozen {
        /// Until which epoch votes count for nothing in the slots.
        epoch: Epoch,
        /// Slots that it frees.
        slots: Vec<(AccountId, u64)>,
        /// Channels that it ends.
        channels: Vec<ChannelId>,
    },
    /// We voted.
    Balloted {
        /// The vote.
        ballot: Signed<Ballot>,
        /// With a commit: the prepares of a quorum.
        prepares: Vec<Signed<Ballot>>,
    },
    /// We signed the checkpoint on which a quorum had agreed.
    Signed(Signed<Checkpoint>),
    /// The checkpoint of a line before it stands, and our books follow it.
    Adopted(Signed<Checkpoint>),
}

/// Returns the names, out of those that lines of the journal hold, whose digest a checkpoint states. Lines before them
/// are of a candidate that a crash cut off.
#[must_use]
pub fn names_of(mut lines: Vec<Vec<RecordId>>, facts: Digest) -> Vec<RecordId> {
    while !lines.is_empty() && digest_of(&lines.concat()) != facts {
        lines.remove(0);
    }
    lines.concat()
}

impl Agreeing<Wire> {
    /// Checks every signature and bound.
    ///
    /// # Errors
    /// When one does not hold.
    pub fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Agreeing<Checked>, SignedError> {
        Ok(match self {
            Self::Round { previous, round } => Agreeing::Round { previous, round },
            Self::Proposal { round, checkpoint, prepares } => {
                if prepares.len() > ISSUERS_MAX {
                    return Err(SignedError::Attestations);
                }
                checkpoint.check_bounds().map_err(SignedError::Bounds)?;
                let verify = |ballot: Signed<Ballot>| ballot.verify(domain, scheme);
                let prepares = prepares.into_iter().map(verify).collect::<Result<_, _>>()?;
                Agreeing::Proposal { round, checkpoint, prepares }
            }
            Self::NamesQuery { facts, from } => Agreeing::NamesQuery { facts, from },
            Self::Names { facts, from, names } => Agreeing::Names { facts, from, names },
            Self::Ballot(ballot) => Agreeing::Ballot(ballot.verify(domain, scheme)?),
            Self::Signed(checkpoint) => Agreeing::Signed(checkpoint.verify(domain, scheme)?),
            Self::Locked(op) => Agreeing::Locked(op.verify(domain, scheme)?),
        })
    }
}

impl Agreeing<Checked> {
    /// Returns the message as it travels.
    #[must_use]
    pub fn to_wire(&self) -> Agreeing<Wire> {
        match self {
            Self::Round { previous, round } => Agreeing::Round { previous: *previous, round: *round },
            Self::Proposal { round, checkpoint, prepares } => Agreeing::Proposal {
                round: *round,
                checkpoint: checkpoint.clone(),
                prepares: prepares.iter().map(Verified::signed).collect(),
            },
            Self::NamesQuery { facts, from } => Agreeing::NamesQuery { facts: *facts, from: *from },
            Self::Names { facts, from, names } => {
                Agreeing::Names { facts: *facts, from: *from, names: names.clone() }
            }
            Self::Ballot(ballot) => Agreeing::Ballot(ballot.signed()),
            Self::Signed(checkpoint) => Agreeing::Signed(checkpoint.signed()),
            Self::Locked(op) => Agreeing::Locked(op.signed()),
        }
    }
}

impl<S: Stage> Agreeing<S> {
    /// Returns the message's name, for logs and counts.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Round { .. } => "round",
            Self::Proposal { .. } => "proposal",
            Self::NamesQuery { .. } => "names_query",
            Self::Names { .. } => "names",
            Self::Ballot(_) => "ballot",
            Self::Signed(_) => "checkpoint_signed",
            Self::Locked(_) => "locked",
        }
    }

    /// Says whether the message states what must be on the sender's disk.
    #[must_use]
    pub const fn states_fact(&self) -> bool {
        match self {
            Self::Proposal { .. } | Self::Ballot(_) | Self::Signed(_) | Self::Locked(_) => true,
            Self::Round { .. } | Self::NamesQuery { .. } | Self::Names { .. } => false,
        }
    }
}
