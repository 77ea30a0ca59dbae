//! How a channel keeps its newest receipt and the proof of its opening: without what it says itself, because a node may
//! be paid on a hundred thousand.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::encoding::{decode_own, encode};
use crate::ids::{ChannelId, RecordId};
use crate::keys::{PublicKey, Signature};
use crate::ledger::records::{AccountOp, Epoch, OpBody, OpenChannel, Receipt, Recorded};
use crate::message::{Checked, Opening};
use crate::signed::{Attestation, Role, Verified, id_of};

use super::work::Count;
use super::{Agreement, Paid};

/// What a channel can show: its newest receipt, and the proof of its opening. Encoded, one behind the other, and before
/// them how many bytes are the receipt (2, little endian); nothing as long as there is neither.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence(Box<[u8]>);

/// The newest receipt. Its amount is the channel's to say, and our own signature is not kept: signing again gives the same.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) sequence: u64,
    pub(super) count: Count,
    epoch: Epoch,
    payer: Signature,
}

impl Head {
    fn body(&self, channel: ChannelId, paid: &Paid) -> Receipt {
        let Self { sequence, count: Count { settled: usage, jobs }, epoch, .. } = *self;
        Receipt { channel, sequence, amount: paid.paid, usage, jobs, epoch }
    }

    pub(super) fn id(&self, channel: ChannelId, paid: &Paid) -> RecordId {
        id_of(&self.body(channel, paid), paid.domain)
    }

    /// Returns the channel's newest receipt, signed by both sides.
    pub(super) fn receipt(&self, channel: ChannelId, paid: &Paid) -> Verified<Receipt> {
        let body = self.body(channel, paid);
        let (id, key) = (id_of(&body, paid.domain), paid.payer_key);
        let by_payer = Attestation { role: Role::Payer, key, signature: self.payer };
        let receipt = Verified::of_parts(body, id, Vec::from([by_payer]));
        receipt.signed_also_by(paid.domain, Role::Payee, &paid.signer)
    }
}

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
const BYTES_MAX: usize = 16 * 1024;

impl Evidence {
    fn join(receipt: &[u8], proof: &[u8]) -> Option<Self> {
        let length = u16::try_from(receipt.len()).ok()?;
        Some(Self([&length.to_le_bytes(), receipt, proof].concat().into()))
    }

    fn split(&self) -> (&[u8], &[u8]) {
        let Some((length, both)) = self.0.split_first_chunk() else { return Default::default() };
        both.split_at_checked(usize::from(u16::from_le_bytes(*length))).unwrap_or_default()
    }

    pub(super) fn has_head(&self) -> bool {
        !self.split().0.is_empty()
    }

    /// Returns the newest receipt.
    pub(super) fn head(&self) -> Option<Head> {
        let (receipt, _) = self.split();
        if receipt.is_empty() { None } else { decode_own(receipt, BYTES_MAX).ok() }
    }

    /// Takes a receipt, if both sides have signed it and nobody else.
    pub(super) fn set_head(&mut self, receipt: &Verified<Receipt>, sides: &Agreement) -> bool {
        let both = [(Role::Payer, sides.payer_key), (Role::Payee, sides.terms.payee_key)];
        let signature = receipt.signature(Role::Payer, sides.payer_key);
        let Some(payer) = signature.filter(|_| receipt.is_signed_only_by(&both)) else { return false };
        let count = Count { settled: receipt.usage, jobs: receipt.jobs };
        let head = encode(&Head { sequence: receipt.sequence, count, epoch: receipt.epoch, payer });
        let (_, proof) = self.split();
        let Some(joined) = Self::join(&head, proof) else { return false };
        *self = joined;
        true
    }

    /// Takes the proof of the opening; nothing of a step that opens nothing.
    pub(super) fn set_proof(&mut self, opening: &Opening<Checked>, agreement: &Agreement) {
        let AccountOp { sequence, previous, epoch, .. } = *opening.op;
        let OpBody::OpenChannel(OpenChannel { expires, .. }) = opening.op.body else { return };
        let marks = |attestations: &[Attestation]| -> Vec<Mark> {
            attestations.iter().map(|attestation| mark(attestation, agreement)).collect()
        };
        let owner = marks(opening.op.attestations());
        let recorded = opening.recorded.iter();
        let recorded = recorded.map(|recorded| (recorded.epoch, marks(recorded.attestations()))).collect();
        let proof = encode(&Parts { sequence, previous, epoch, expires, owner, recorded });
        let (receipt, _) = self.split();
        if let Some(joined) = Self::join(receipt, &proof) {
            *self = joined;
        }
    }

    /// Returns the opening of the channel.
    pub(super) fn opening(&self, channel: ChannelId, paid: &Paid) -> Option<Opening<Checked>> {
        let (_, proof) = self.split();
        let parts: Parts = decode_own(proof, BYTES_MAX).ok()?;
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
        let id = id_of(&op, paid.domain);
        let recorded = recorded.into_iter().map(|(epoch, marks)| {
            let recorded = Recorded { op: id, epoch };
            let id = id_of(&recorded, paid.domain);
            Some(Verified::of_parts(recorded, id, attestations(&marks, paid)?))
        });
        let recorded = recorded.collect::<Option<_>>()?;
        let op = Verified::of_parts(op, id, attestations(&owner, paid)?);
        // Of another opening than the channel's, as only a channel made up of parts could have.
        let is_ours = channel == ChannelId::from(id);
        is_ours.then(|| Opening { op, terms: Verified::clone(&paid.terms), recorded })
    }
}
