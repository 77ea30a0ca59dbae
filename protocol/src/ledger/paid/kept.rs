//! How a channel keeps its newest receipt and the proof of its opening: without what it says itself, because a node may
//! be paid on a hundred thousand.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::encoding::{array, decode_own, encoded};
use crate::ids::{ChannelId, Digest, RecordId};
use crate::keys::{PublicKey, Signature};
use crate::ledger::records::{AccountOp, Epoch, OpBody, OpenChannel, Receipt, Recorded};
use crate::message::{Checked, Opening};
use crate::price::Usage;
use crate::signed::{Attestation, Role, Verified, id_of};

use super::work::Count;
use super::{Agreement, Paid};

/// What a channel can show: its newest receipt, and the proof of its opening. Encoded: how many bytes the receipt has room
/// for and how many it takes, a byte each; the receipt in its room; the proof. Nothing as long as there is neither.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence(Box<[u8]>);

/// Room that is kept for a receipt: the next is written over the last, and memory stays in one piece. A receipt for millions
/// of tokens in hundreds of jobs takes as much; a longer one is given what it needs.
const ROOM: usize = 112;

/// The newest receipt. Its amount is the channel's to say, and our own signature is not kept: signing again gives the same.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) sequence: u64,
    settled: Usage,
    #[serde(with = "array")]
    jobs: [u8; 32],
    epoch: Epoch,
    #[serde(with = "array")]
    payer: [u8; 64],
}

impl Head {
    /// Returns what the receipt states to be delivered.
    pub(super) const fn count(&self) -> Count {
        Count { settled: self.settled, jobs: Digest(self.jobs) }
    }

    fn body(&self, channel: ChannelId, paid: &Paid) -> Receipt {
        let Self { sequence, settled: usage, jobs, epoch, .. } = *self;
        Receipt { channel, sequence, amount: paid.paid, usage, jobs: Digest(jobs), epoch }
    }

    pub(super) fn id(&self, channel: ChannelId, paid: &Paid) -> RecordId {
        id_of(&self.body(channel, paid), paid.domain)
    }

    /// Returns the channel's newest receipt, signed by both sides.
    pub(super) fn receipt(&self, channel: ChannelId, paid: &Paid) -> Verified<Receipt> {
        let body = self.body(channel, paid);
        let (id, key) = (id_of(&body, paid.domain), paid.payer_key);
        let by_payer = Attestation { role: Role::Payer, key, signature: signature_of(&self.payer) };
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
    #[serde(with = "array")]
    signature: [u8; 64],
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
    let key = place.map_or(Key::Other(key), Key::Shared);
    Mark { role, key, signature: bytes_of(&signature) }
}

fn bytes_of(Signature(r, s): &Signature) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(r);
    bytes[32..].copy_from_slice(s);
    bytes
}

fn signature_of(bytes: &[u8; 64]) -> Signature {
    let (mut r, mut s) = ([0; 32], [0; 32]);
    r.copy_from_slice(&bytes[..32]);
    s.copy_from_slice(&bytes[32..]);
    Signature(r, s)
}

fn attestations(marks: &[Mark], agreement: &Agreement) -> Option<Vec<Attestation>> {
    let attestation = |mark: &Mark| {
        let key = match mark.key {
            Key::Shared(place) => *agreement.keys.get(usize::from(place))?,
            Key::Other(key) => key,
        };
        Some(Attestation { role: mark.role, key, signature: signature_of(&mark.signature) })
    };
    marks.iter().map(attestation).collect()
}

/// Bounds what is read back; only what was written here is.
const BYTES_MAX: usize = 16 * 1024;

impl Evidence {
    fn join(receipt: &[u8], proof: &[u8]) -> Option<Self> {
        let lengths = [u8::try_from(receipt.len().max(ROOM)).ok()?, u8::try_from(receipt.len()).ok()?];
        let left = [0; ROOM];
        let left = left.get(receipt.len()..).unwrap_or_default();
        Some(Self([lengths.as_slice(), receipt, left, proof].concat().into()))
    }

    fn split(&self) -> (&[u8], &[u8]) {
        let Some((&[room, length], both)) = self.0.split_first_chunk() else { return Default::default() };
        let (receipt, proof) = both.split_at_checked(usize::from(room)).unwrap_or_default();
        (receipt.get(..usize::from(length)).unwrap_or_default(), proof)
    }

    /// Writes a receipt over the last one; says whether there is room for it.
    fn write_over(&mut self, receipt: &[u8]) -> bool {
        let Some((&mut [room, ref mut length], both)) = self.0.split_first_chunk_mut() else { return false };
        let place = both.get_mut(..receipt.len()).filter(|place| place.len() <= usize::from(room));
        let (Some(place), Ok(taken)) = (place, u8::try_from(receipt.len())) else { return false };
        place.copy_from_slice(receipt);
        *length = taken;
        true
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
        let head = Head {
            sequence: receipt.sequence,
            settled: receipt.usage,
            jobs: receipt.jobs.0,
            epoch: receipt.epoch,
            payer: bytes_of(&payer),
        };
        encoded(&head, |head| {
            if self.write_over(head) {
                return true;
            }
            let joined = Self::join(head, self.split().1);
            joined.map(|joined| *self = joined).is_some()
        })
    }

    /// Takes the proof of the opening; nothing of a step that opens nothing.
    pub(super) fn set_proof(
        &mut self,
        op: &Verified<AccountOp>,
        recorded: &[Verified<Recorded>],
        agreement: &Agreement,
    ) {
        let AccountOp { sequence, previous, epoch, .. } = **op;
        let OpBody::OpenChannel(OpenChannel { expires, .. }) = op.body else { return };
        let marks = |attestations: &[Attestation]| -> Vec<Mark> {
            attestations.iter().map(|attestation| mark(attestation, agreement)).collect()
        };
        let owner = marks(op.attestations());
        let recorded = recorded.iter();
        let recorded = recorded.map(|recorded| (recorded.epoch, marks(recorded.attestations()))).collect();
        encoded(&Parts { sequence, previous, epoch, expires, owner, recorded }, |proof| {
            let (receipt, _) = self.split();
            if let Some(joined) = Self::join(receipt, proof) {
                *self = joined;
            }
        });
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
