//! What the shell may ask of a node without changing it.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::advert::{Advert, ModelOffer};
use crate::ids::{AccountId, ChannelId, Digest, DomainId, ModelId, NodeId, RecordId};
use crate::job::JobSpec;
use crate::keys::PublicKey;
use crate::ledger::account::Lineage;
use crate::ledger::issuer::{Balance, Issuer};
use crate::ledger::records::{AccountOp, Epoch, Receipt, Rights};
use crate::manifest::Manifest;
use crate::router::Considered;
use crate::signed::Verified;
use crate::time::Time;

use super::{Delegation, Node, RotationView, peers};

/// What the open channels of a node come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelSums {
    /// Channels on which we pay.
    pub paying: usize,
    /// Base that we have signed on them, in nano-credits.
    pub signed: u64,
    /// Channels on which we are paid.
    pub paid: usize,
    /// Base earned on them that the issuers have not paid out yet.
    pub unredeemed: u64,
}

/// A channel as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelView {
    /// The channel.
    pub channel: ChannelId,
    /// The other side.
    pub partner: NodeId,
    /// Says whether we are the side that pays.
    pub paying: bool,
    /// Model.
    pub model: ModelId,
    /// Most base that it can pay.
    pub cap: u64,
    /// Base paid.
    pub paid: u64,
    /// Base paid to us that the issuer has not paid out.
    pub unredeemed: u64,
    /// Newest receipt.
    pub head: RecordId,
    /// Says whether a job is in flight.
    pub busy: bool,
    /// Says whether it is being closed.
    pub closing: bool,
    /// Base that is committed to no job.
    pub room: u64,
    /// Base that the issuer has paid out, as far as we know.
    pub redeemed: u64,
    /// Last epoch in which it takes jobs.
    pub expires: Epoch,
}

/// A connected peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerView {
    /// The peer.
    pub node: NodeId,
    /// Account for which it acts, if it has said so.
    pub account: Option<AccountId>,
    /// Says whether it may take part.
    pub admitted: bool,
}

/// The account as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountView {
    /// The account.
    pub account: AccountId,
    /// Key in force, as far as is known.
    pub key: PublicKey,
    /// Says whether this node holds that key.
    pub held: bool,
    /// Says whether the key can be replaced.
    pub rotatable: bool,
    /// How often it was.
    pub rotations: usize,
    /// Position of the next step, once an issuer has said.
    pub sequence: Option<u64>,
    /// The wallet node.
    pub wallet: NodeId,
    /// What this node may do for the account.
    pub rights: Rights,
    /// Until when it may, unless that is renewed.
    pub expires: Epoch,
    /// The rotation that is under way, or was refused.
    pub rotation: RotationView,
    /// The nodes that this node has authorised, and those it has revoked lately.
    pub devices: Vec<DeviceView>,
}

/// A node that may act for the account, or may no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceView {
    /// The node.
    pub node: NodeId,
    /// What it may do.
    pub rights: Rights,
    /// Counts the changes.
    pub version: u32,
    /// Last epoch in which it may.
    pub until: Epoch,
    /// Nano-credits that it may have escrowed in an epoch.
    pub budget: u64,
}

impl Node {
    /// Returns the account with its key and its nodes.
    #[must_use]
    pub fn account_view(&self) -> AccountView {
        let lineage = self.wallet.lineage();
        let device = |device: &super::accounts::Authorised| DeviceView {
            node: device.device.node,
            rights: device.device.rights,
            version: device.device.version,
            until: device.until,
            budget: device.budget,
        };
        AccountView {
            account: self.wallet.account(),
            key: lineage.map_or_else(|| self.wallet.account().into(), Lineage::key),
            held: self.wallet.holds_key(),
            rotatable: lineage.is_some(),
            rotations: lineage.map_or(0, Lineage::rotations),
            sequence: self.wallet.next(),
            wallet: self.wallet_node(),
            rights: self.device.rights,
            expires: self.device.expires,
            rotation: self.rotation.view(),
            devices: self.devices.values().map(device).collect(),
        }
    }

    /// Returns the promise of the account's next key, if it has one.
    #[must_use]
    pub fn next_key(&self) -> Option<Digest> {
        self.wallet.lineage().map(Lineage::next)
    }

    /// Returns what an owner gives to a node that it has authorised, so that it can begin.
    #[must_use]
    pub fn delegation_of(&self, node: NodeId) -> Option<Delegation> {
        let device = self.devices.get(&node)?.device.clone();
        Some(Delegation { device, lineage: self.wallet.lineage().cloned(), wallet: self.me })
    }

    /// Returns this node's name.
    #[must_use]
    pub const fn id(&self) -> NodeId {
        self.me
    }

    /// Returns the account for which this node acts.
    #[must_use]
    pub const fn account(&self) -> AccountId {
        self.wallet.account()
    }

    /// Returns the network's name.
    #[must_use]
    pub const fn domain(&self) -> DomainId {
        self.domain
    }

    /// Returns the network.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.config.manifest
    }

    /// Returns what the issuer last said that the account holds.
    #[must_use]
    pub const fn balance(&self) -> Balance {
        self.wallet.balance()
    }

    /// Returns the step of the account that was signed here and is not known to be certified: it may still take effect.
    #[must_use]
    pub const fn step_under_way(&self) -> Option<&Verified<AccountOp>> {
        self.wallet.pending()
    }

    /// Returns the issuer's books, on a node that is one.
    #[must_use]
    pub fn books(&self) -> Option<&Issuer> {
        self.issuing.as_ref().map(|issuing| &issuing.books)
    }

    /// Returns, on a node that is an issuer, what it may still give away, in nano-credits: the network's whole budget, or
    /// among several issuers its part.
    #[must_use]
    pub fn budget_left(&self) -> Option<u64> {
        let issuing = self.issuing.as_ref()?;
        Some(if self.has_many_issuers() { issuing.part_left() } else { issuing.books.budget_left() })
    }

    /// Returns the issuers' nodes that can be spoken to now, this one among them.
    #[must_use]
    pub fn reachable_issuers(&self) -> Vec<NodeId> {
        self.issuers()
    }

    /// Returns by how many milliseconds the issuers' clocks are ahead of this node's, if that does harm and a quorum of
    /// them has said its time.
    #[must_use]
    pub fn clock_off_ms(&self) -> Option<i64> {
        self.clocks.off_ms(self.config.manifest.quorum())
    }

    /// Says whether the issuer can be spoken to now.
    #[must_use]
    pub fn reaches_issuer(&self) -> bool {
        self.issuer().is_some()
    }

    /// Returns the connected peers.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> + '_ {
        let view = |(node, peer): (&NodeId, &peers::Peer)| PeerView {
            node: *node,
            account: peer.account(),
            admitted: peer.is_admitted(),
        };
        self.peers.iter().map(view)
    }

    /// Returns what providers say of themselves, this node included.
    pub fn providers(&self, now: Time) -> impl Iterator<Item = &Verified<Advert>> + '_ {
        self.router.adverts(now)
    }

    /// Returns who would be considered for a job now, the usable ones first, best first. Nothing is asked of anybody, so a
    /// provider that is taken to be usable may still refuse.
    #[must_use]
    pub fn quote(&self, spec: &JobSpec, now: Time) -> Vec<Considered> {
        let mut considered = self.router.rank(spec, self.domain, |node| self.is_connected(node), now);
        let is_meant =
            |offer: &ModelOffer| offer.model == spec.model && offer.modality == spec.input.modality;
        let has_slot =
            self.served().any(|(offer, busy, ready)| is_meant(offer) && ready && busy < offer.slots);
        if spec.constraints.may_stay(self.me) && has_slot {
            considered.insert(0, Considered::ourselves(self.me));
        }
        considered
    }

    /// Returns what this node serves, with the jobs that run now.
    pub fn served(&self) -> impl Iterator<Item = (&ModelOffer, u16, bool)> + '_ {
        self.served.values().map(|(offer, _)| {
            let (busy, _) = self.scheduler.load(offer.model);
            (offer, busy, self.scheduler.is_ready(offer.model))
        })
    }

    /// Returns the models that somebody, or this node, calls `name`.
    #[must_use]
    pub fn models_named(&self, name: &str, now: Time) -> Vec<ModelId> {
        let mut models = self.router.named(name, now);
        models.extend(
            self.served.values().filter(|(offer, _)| offer.name == name).map(|(offer, _)| offer.model),
        );
        models.sort_unstable();
        models.dedup();
        models
    }

    /// Returns what the open channels come to: of a hundred thousand, much sooner than they are listed.
    #[must_use]
    pub fn channel_sums(&self) -> ChannelSums {
        ChannelSums {
            paying: self.paying.len(),
            signed: self.paying.values().map(|channel| channel.side.paid()).fold(0, u64::saturating_add),
            paid: self.paid.len(),
            unredeemed: self.paid.values().map(|side| side.unredeemed()).fold(0, u64::saturating_add),
        }
    }

    /// Returns the open channels.
    #[must_use]
    pub fn channels(&self) -> Vec<ChannelView> {
        let paying =
            self.paying.values().map(|channel| (&channel.side, channel.expires)).map(|(side, expires)| {
                ChannelView {
                    channel: side.channel,
                    partner: side.terms.payee,
                    paying: true,
                    model: side.terms.model,
                    cap: side.cap(),
                    paid: side.paid(),
                    unredeemed: 0,
                    head: side.head().map_or(RecordId::NONE, Verified::id),
                    busy: side.is_busy(),
                    closing: side.is_closing(),
                    room: side.room(),
                    redeemed: side.due().min(side.paid()),
                    expires,
                }
            });
        let paid = self.paid.iter().map(|(&channel, side)| ChannelView {
            channel,
            partner: side.payer,
            paying: false,
            model: side.terms.model,
            cap: side.cap(),
            paid: side.paid(),
            unredeemed: side.unredeemed(),
            head: side.head_id(channel),
            busy: side.is_busy(),
            closing: side.is_closing(),
            room: side.room(),
            redeemed: side.amount_redeemed(),
            expires: side.expires,
        });
        paying.chain(paid).collect()
    }

    /// Returns the nodes that we pay on open channels, each once: with them a payer stays in touch, so that what it owes
    /// arrives, and so that it is given back what it has lost. And the wallet node of our account, if that is another.
    #[must_use]
    pub fn payees(&self) -> BTreeSet<NodeId> {
        let wallet = self.is_device().then(|| self.wallet_node());
        let known = self.paying.values().map(|channel| channel.side.terms.payee);
        known.chain(self.payees_forgotten()).chain(wallet).collect()
    }

    /// Returns the receipts that this node keeps as a mirror, each with the payee whose it is.
    pub fn kept_receipts(&self) -> impl Iterator<Item = (NodeId, &Verified<Receipt>)> {
        self.mirrors.kept.receipts()
    }

    /// Returns how many jobs the engine runs for others and for the owner.
    #[must_use]
    pub fn serving_count(&self) -> usize {
        self.serving.len()
    }
}
