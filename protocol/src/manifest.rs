//! A network: its issuers, its rules and its numbers, in one record whose id is the network's name.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, DomainId, NodeId, RecordId};
use crate::keys::{PublicKey, Signer};
use crate::ledger::money::{BPS, QUANTUM};
use crate::ledger::records::Epoch;
use crate::model::{Modality, NAME_BYTES_MAX};
use crate::mutant;
use crate::price::NANO_PER_CREDIT;
use crate::signed::{Role, Signable, Signed, SignedError, Verified, id_of, sign};
use crate::time::Time;

/// Least share of the base that any network leaves to whoever serves, in basis points.
pub const PROVIDER_FLOOR_BPS_MIN: u16 = 7_000;

/// Bounds the issuers of a network, and so the signatures that prove what a quorum of them did.
pub const ISSUERS_MAX: usize = 16;

/// Epochs for which it is one operator's turn to pay a withdrawal: time for a bank and a holiday.
pub const PAYOUT_EPOCHS: u32 = 7;

/// What everybody in a network has agreed to by joining it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name for people; two networks may share one.
    pub name: String,
    /// When it began; epochs count from here.
    pub created: Time,
    /// Who holds deposits and witnesses account operations: `n = 3f + 1`.
    pub issuers: Vec<Issuer>,
    /// Issuers that must agree: `n - f`.
    pub quorum: u8,
    /// Key that may sign a successor of this manifest.
    pub root: PublicKey,
    /// Who may join.
    pub admission: Admission,
    /// Length of an epoch in milliseconds.
    pub epoch_ms: u64,
    /// Epochs after a channel's expiry in which it can still be redeemed.
    pub grace_epochs: u32,
    /// Fee for opening a channel, in nano-credits; at least a quantum, so that cycling small channels never pays.
    pub open_fee: u64,
    /// Fee for a payment to an account and for a step that does nothing, in nano-credits; at least a quantum, because
    /// each is kept by the issuers.
    pub pay_fee: u64,
    /// Fee for a withdrawal, in nano-credits: somebody pays it out by hand.
    pub withdraw_fee: u64,
    /// Account that receives fees and the network's share.
    pub network: AccountId,
    /// The network's share of the base, in basis points.
    pub network_bps: u16,
    /// Pools by class of model.
    pub pools: Vec<Pool>,
    /// The pool's share of the base, in basis points.
    pub pool_bps: u16,
    /// Least share of the base for the provider and its causes, in basis points.
    pub provider_floor_bps: u16,
    /// Largest markup that a builder may take on top of the base, in basis points.
    pub markup_max_bps: u16,
    /// All that grants and tickets may ever give away, in nano-credits.
    pub grant_budget: u64,
    /// Permits the fake engine: for tests and development only.
    pub development: bool,
    /// Manifest that this one replaces.
    pub previous: Option<RecordId>,
}

/// One issuer: the key that signs for it and the node on which it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuer {
    /// Key of its votes and acknowledgements.
    pub key: PublicKey,
    /// Node that speaks for it.
    pub node: NodeId,
}

/// The pool of a class of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Class.
    pub class: Modality,
    /// Account that collects its share.
    pub account: AccountId,
}

/// Who may join a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// Everybody.
    Open,
    /// Holders of a ticket.
    Ticket,
}

impl Signable for Manifest {
    const TAG: &'static str = "manifest";

    fn check_bounds(&self) -> Result<(), &'static str> {
        let issuers = self.issuers.len();
        let shares =
            u64::from(self.network_bps) + u64::from(self.pool_bps) + u64::from(self.provider_floor_bps);
        let check = |holds: bool, field| if holds { Ok(()) } else { Err(field) };
        check(self.name.len() <= NAME_BYTES_MAX, "name")?;
        check((1..=ISSUERS_MAX).contains(&issuers), "issuers")?;
        let mut keys: Vec<PublicKey> = self.issuers.iter().map(|issuer| issuer.key).collect();
        let mut nodes: Vec<NodeId> = self.issuers.iter().map(|issuer| issuer.node).collect();
        keys.sort_unstable();
        keys.dedup();
        nodes.sort_unstable();
        nodes.dedup();
        // Whoever were named twice would count twice.
        check(keys.len() == issuers && nodes.len() == issuers, "issuers")?;
        check(issuers % 3 == 1 && usize::from(self.quorum) == issuers - (issuers - 1) / 3, "quorum")?;
        check(self.epoch_ms >= 1000, "epoch_ms")?;
        check(self.grace_epochs >= 1, "grace_epochs")?;
        check(self.open_fee >= QUANTUM, "open_fee")?;
        check(self.pay_fee >= QUANTUM, "pay_fee")?;
        check(self.withdraw_fee >= QUANTUM, "withdraw_fee")?;
        check(self.provider_floor_bps >= PROVIDER_FLOOR_BPS_MIN, "provider_floor_bps")?;
        check(self.pools.len() <= 16, "pools")?;
        check(shares <= BPS, "network_bps, pool_bps and provider_floor_bps")
    }
}

impl Manifest {
    /// Returns the manifest of a home network whose one issuer signs with `issuer` on `node`.
    #[must_use]
    pub fn home(name: String, created: Time, issuer: &Signer, node: NodeId) -> Self {
        let account = |purpose: &[u8]| AccountId::from(issuer.derive(purpose).public());
        Self {
            name,
            created,
            issuers: Vec::from([Issuer { key: issuer.public(), node }]),
            quorum: 1,
            root: issuer.public(),
            admission: Admission::Ticket,
            epoch_ms: 24 * 60 * 60 * 1000,
            grace_epochs: 3,
            open_fee: QUANTUM,
            pay_fee: QUANTUM,
            withdraw_fee: 100 * QUANTUM,
            network: account(b"network account"),
            network_bps: 300,
            pools: Vec::from([Pool { class: Modality::Text, account: account(b"text pool account") }]),
            pool_bps: 500,
            provider_floor_bps: PROVIDER_FLOOR_BPS_MIN,
            markup_max_bps: 3_000,
            grant_budget: 1_000_000 * NANO_PER_CREDIT,
            development: false,
            previous: None,
        }
    }

    /// Returns the network's name, which is the id that the manifest would have in no network.
    #[must_use]
    pub fn domain(&self) -> DomainId {
        DomainId(id_of(self, NO_DOMAIN).0)
    }

    /// Returns the epoch at `now`.
    #[must_use]
    pub fn epoch(&self, now: Time) -> Epoch {
        Epoch(u32::try_from(now.since_ms(self.created) / self.epoch_ms).unwrap_or(u32::MAX))
    }

    /// Returns the account of the pool for `class`, or the network's where the manifest names none.
    #[must_use]
    pub fn pool(&self, class: Modality) -> AccountId {
        self.pools.iter().find(|pool| pool.class == class).map_or(self.network, |pool| pool.account)
    }

    /// Returns how many issuers may fail, in whatever way, without harm to anybody.
    #[must_use]
    pub const fn faults_max(&self) -> usize {
        self.issuers.len().saturating_sub(1) / 3
    }

    /// Returns how many issuers must agree.
    #[must_use]
    pub fn quorum(&self) -> usize {
        if mutant::is_in("quorum-of-two") { self.issuers.len() / 2 } else { usize::from(self.quorum) }
    }

    /// Says whether a quorum of issuers is among those whose keys satisfy `says`.
    pub fn agrees(&self, says: impl Fn(PublicKey) -> bool) -> bool {
        self.issuers.iter().filter(|issuer| says(issuer.key)).count() >= self.quorum().max(1)
    }

    /// Returns the issuer whose operator pays a withdrawal taken in epoch `taken`, and in which epoch another one's turn
    /// comes. Operators who both paid would pay twice: so it is one's turn, by the step's id, and when it has not paid
    /// for [`PAYOUT_EPOCHS`], the next one's.
    #[must_use]
    pub fn payer_of(&self, step: RecordId, taken: Epoch, now: Epoch) -> Option<(&Issuer, Epoch)> {
        let first = step.0.iter().take(4).fold(0, |number: u32, byte| number << 8 | u32::from(*byte));
        let turns = now.0.saturating_sub(taken.0) / PAYOUT_EPOCHS;
        let count = u32::try_from(self.issuers.len()).unwrap_or(u32::MAX);
        let place = (u64::from(first) + u64::from(turns)).checked_rem(u64::from(count))?;
        let next = taken.plus(turns.saturating_add(1).saturating_mul(PAYOUT_EPOCHS));
        Some((self.issuers.get(usize::try_from(place).ok()?)?, next))
    }

    /// Returns the issuer that runs on `node`.
    #[must_use]
    pub fn issuer_on(&self, node: NodeId) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.node == node)
    }

    /// Says whether `key` is an issuer's.
    #[must_use]
    pub fn has_issuer_key(&self, key: PublicKey) -> bool {
        self.issuers.iter().any(|issuer| issuer.key == key)
    }

    /// Says whether an issuer runs on `node`.
    #[must_use]
    pub fn has_issuer_node(&self, node: NodeId) -> bool {
        self.issuers.iter().any(|issuer| issuer.node == node)
    }

    /// Returns the manifest signed by its root.
    #[must_use]
    pub fn signed_by(self, root: &Signer) -> Verified<Self> {
        sign(self, NO_DOMAIN, Role::Root, root)
    }
}

/// Checks that a manifest is signed by the root it names.
///
/// # Errors
/// When it is not, or not canonical, or out of bounds.
pub fn verify_manifest(signed: Signed<Manifest>) -> Result<Verified<Manifest>, SignedError> {
    let manifest = signed.verify(NO_DOMAIN, crate::keys::Scheme::Strict)?;
    if manifest.is_signed_by(Role::Root, manifest.root) {
        Ok(manifest)
    } else {
        Err(SignedError::Signature(manifest.root))
    }
}

/// A manifest is what makes a network, so it is signed in none.
const NO_DOMAIN: DomainId = DomainId([0; 32]);
