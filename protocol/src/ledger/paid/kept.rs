//! How a channel keeps its newest receipt and the proof of its opening: without what it says itself, because a node may
//! be paid on a hundred thousand.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::encoding::{decode_own, encode};
use crate::ids::{ChannelId, Digest, DomainId, RecordId};
use crate::keys::{PublicKey, Signature};
use crate::ledger::paying::Rank;
use crate::ledger::records::{AccountOp, Epoch, OpBody, OpenChannel, Receipt, Recorded};
use crate::message::{Checked, Opening};
use crate::price::Usage;
use crate::signed::{Attestation, Role, Verified, id_of};

use super::{Agreement, Paid};

/// The newest receipt.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) id: RecordId,
    pub(super) amount: u64,
    pub(super) usage: Usage,
    sequence: u64,
    jobs: Digest,
    epoch: Epoch,
    payer: Signature,
    payee: Signature,
}

impl Head {
    /// Returns a receipt as it is kept, if it is signed by both keys and nobody else.
    pub(super) fn of(receipt: &Verified<Receipt>, payer: PublicKey, payee: PublicKey) -> Option<Self> {
        if receipt.signature_count() != 2 {
            return None;
        }
        let Receipt { channel: _, sequence, amount, usage, jobs, epoch } = **receipt;
        Some(Self {
            id: receipt.id(),
            amount,
            usage,
            sequence,
            jobs,
            epoch,
            payer: receipt.signature(Role::Payer, payer)?,
            payee: receipt.signature(Role::Payee, payee)?,
        })
    }

    /// Returns the receipt of this channel, which these keys signed.
    pub(super) fn receipt(
        &self,
        channel: ChannelId,
        payer: PublicKey,
        payee: PublicKey,
    ) -> Verified<Receipt> {
        let Self { id, amount, usage, sequence, jobs, epoch, .. } = *self;
        let attestations = Vec::from([
            Attestation { role: Role::Payer, key: payer, signature: self.payer },
            Attestation { role: Role::Payee, key: payee, signature: self.payee },
        ]);
        Verified::of_parts(Receipt { channel, sequence, amount, usage, jobs, epoch }, id, attestations)
    }

    pub(super) const fn rank(&self) -> Rank {
        (self.amount, self.sequence, self.id)
    }
}

/// The proof of an opening, encoded.
#[derive(Debug, Clone)]
pub(super) struct Proof(Box<[u8]>);

/// What a channel does not say itself of the step that opened it and of the issuers' word for that.
#[derive(Debug, Serialize, Deserialize)]
struct Parts {
    sequence: u64,
    previous: RecordId,
    epoch: Epoch,
    /// The channel's own may have come nearer.
    expires: Epoch,
    owner: Vec<Mark>,
    recorded: Vec<(Epoch, Vec<Mark>)>,
}

/// A signature.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Mark {
    role: Role,
    key: Key,
    signature: Signature,
}

/// Whose signature it is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Key {
    /// The key at this place of [`Agreement::keys`].
    Shared(u8),
    Other(PublicKey),
}

fn mark(attestation: &Attestation, agreement: &Agreement) -> Mark {
    let Attestation { role, key, signature } = *attestation;
    let place = agreement.keys.iter().position(|shared| *shared == key);
    let place = place.and_then(|place| u8::try_from(place).ok());
    Mark { role, key: place.map_or(Key::Other(key), Key::Shared), signature }
}

fn attestations(marks: &[Mark], agreement: &Agreement) -> Option<Vec<Attestation>> {
    let attestation = |mark: &Mark| {
        let key = match mark.key {
            Key::Shared(place) => *agreement.keys.get(usize::from(place))?,
            Key::Other(key) => key,
        };
        Some(Attestation { role: mark.role, key, signature: mark.signature })
    };
    marks.iter().map(attestation).collect()
}

/// Bounds what is read back; only what was written here is.
const PROOF_BYTES_MAX: usize = 16 * 1024;

impl Proof {
    /// Returns the proof of an opening; none of a step that opens nothing.
    pub(super) fn of(opening: &Opening<Checked>, agreement: &Agreement) -> Option<Self> {
        let AccountOp { sequence, previous, epoch, .. } = *opening.op;
        let OpBody::OpenChannel(OpenChannel { expires, .. }) = opening.op.body else { return None };
        let marks = |attestations: &[Attestation]| -> Vec<Mark> {
            attestations.iter().map(|attestation| mark(attestation, agreement)).collect()
        };
        let owner = marks(opening.op.attestations());
        let recorded = opening.recorded.iter();
        let recorded = recorded.map(|recorded| (recorded.epoch, marks(recorded.attestations()))).collect();
        let parts = Parts { sequence, previous, epoch, expires, owner, recorded };
        // A copy of its own: what encoding had reserved beyond would stay behind in pieces.
        Some(Self(Box::from(encode(&parts).as_slice())))
    }

    /// Returns the opening of this channel.
    pub(super) fn opening(&self, paid: &Paid, domain: DomainId) -> Option<Opening<Checked>> {
        let parts: Parts = decode_own(&self.0, PROOF_BYTES_MAX).ok()?;
        let Parts { sequence, previous, epoch, expires, owner, recorded } = parts;
        let body = OpBody::OpenChannel(OpenChannel {
            payee: paid.terms.payee,
            terms: paid.terms.id(),
            cap: paid.cap,
            expires,
            payer: paid.payer,
            payer_key: paid.payer_key,
        });
        let op = AccountOp { account: paid.payer_account, sequence, previous, epoch, body };
        let id = id_of(&op, domain);
        let recorded = recorded.into_iter().map(|(epoch, marks)| {
            let recorded = Recorded { op: id, epoch };
            let id = id_of(&recorded, domain);
            Some(Verified::of_parts(recorded, id, attestations(&marks, paid)?))
        });
        let recorded = recorded.collect::<Option<_>>()?;
        let op = Verified::of_parts(op, id, attestations(&owner, paid)?);
        // Of another opening than the channel's, as only a channel made up of parts could have.
        let is_ours = paid.channel == ChannelId::from(id);
        is_ours.then(|| Opening { op, terms: Verified::clone(&paid.terms), recorded })
    }
}
