//! Whose account it is: its keys and their rotation, the nodes that may act for it, and which of all that counts.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::ids::{AccountId, Digest, DomainId, NodeId};
use crate::job::Failure;
use crate::keys::PublicKey;
use crate::ledger::account::{Inception, Lineage};
use crate::ledger::issuer::IssuerError;
use crate::ledger::records::{Device, Epoch, OpBody, Rights, VALIDITY_EPOCHS_MAX};
use crate::ledger::wallet::Wallet;
use crate::message::{DEVICES_MAX, Message};
use crate::mutant;
use crate::record::Record;
use crate::signed::{Role, Verified, sign};
use crate::time::Time;

use super::peers::RENEW_EPOCHS;
use super::{Delegation, Effect, Node, Offence, Owner};

/// Most accounts, and most delegations, of others of which is remembered what is out of date. Without that memory an old
/// key or delegation is believed until its delegation ends; it can move no credits.
const OUTDATED_MAX: usize = 4096;

/// What this wallet node has authorised another node to do.
#[derive(Debug, Clone)]
pub(super) struct Authorised {
    pub(super) device: Verified<Device>,
    /// Last epoch until which the delegation is renewed.
    pub(super) until: Epoch,
    /// Nano-credits that it may have escrowed in an epoch.
    pub(super) budget: u64,
}

/// A rotation that the owner of this node wants.
#[derive(Debug, Clone, Default)]
pub(super) enum Rotation {
    /// None, or it is done.
    #[default]
    None,
    /// Wanted: signed as soon as nothing else is under way.
    Wanted(Inception),
    /// Refused for now: signed again after a while.
    Later(Inception),
    /// The issuers refused it.
    Refused(IssuerError),
}

/// A rotation as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationView {
    /// None is under way.
    None,
    /// It waits for the issuers.
    Pending,
    /// The issuers refused it.
    Refused(IssuerError),
}

/// Keys and delegations of other accounts that no longer count.
#[derive(Debug, Default)]
pub(super) struct Outdated {
    /// Accounts that have rotated: how often, and the key in force.
    keys: BTreeMap<AccountId, (usize, PublicKey)>,
    /// Delegations that were changed: the newest rank, and until when an older one may be shown.
    versions: BTreeMap<(AccountId, NodeId), (Rank, Epoch)>,
}

/// Orders the delegations of one node: whoever stole a key may sign any version with it, but not for the key after it.
type Rank = (usize, u32);

fn rank(device: &Device, lineage: Option<&Lineage>) -> Rank {
    (lineage.map_or(0, Lineage::rotations), device.version)
}

/// What a delegation is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Counts,
    /// Right once; its sender may not have heard.
    Outdated,
    Forged,
}

/// Returns the wallet of whoever owns a node.
pub(super) fn wallet(domain: DomainId, owner: &Owner) -> Wallet {
    match owner {
        Owner::Key(signer) => Wallet::new(domain, signer.clone()),
        Owner::Wallet { inception, key, next } => {
            let keys = core::iter::once(key).chain(next).cloned().collect();
            Wallet::of(domain, inception.account(), keys, Some(Lineage::new(*inception)))
        }
        Owner::Device(delegation) => {
            let Delegation { device, lineage, .. } = &**delegation;
            Wallet::of(domain, device.account, Vec::new(), lineage.clone())
        }
    }
}

/// Returns the delegation with which a node begins: its own, or the one that it was given.
pub(super) fn delegation(
    wallet: &Wallet,
    owner: &Owner,
    me: NodeId,
    domain: DomainId,
    epoch: Epoch,
) -> Verified<Device> {
    match owner {
        Owner::Device(delegation) => delegation.device.clone(),
        Owner::Key(key) | Owner::Wallet { key, .. } => {
            let rights = Rights { serve: true, spend: true };
            let (account, expires) = (wallet.account(), epoch.plus(VALIDITY_EPOCHS_MAX));
            let device = Device { account, node: me, rights, version: 1, expires };
            sign(device, domain, Role::Owner, wallet.signer().unwrap_or(key))
        }
    }
}

impl Rotation {
    pub(super) const fn view(&self) -> RotationView {
        match self {
            Self::None => RotationView::None,
            Self::Wanted(_) | Self::Later(_) => RotationView::Pending,
            Self::Refused(error) => RotationView::Refused(*error),
        }
    }
}

impl Outdated {
    fn learn_keys(&mut self, lineage: &Lineage) {
        let (account, rotations) = (lineage.account(), lineage.rotations());
        let known = self.keys.get(&account).map(|(known, _)| *known);
        if rotations > known.unwrap_or(0) && (known.is_some() || self.keys.len() < OUTDATED_MAX) {
            self.keys.insert(account, (rotations, lineage.key()));
        }
    }

    /// Remembers a delegation that may have replaced another one, until those before it would have ended anyway.
    fn learn_version(&mut self, device: &Device, rank: Rank, now: Epoch) {
        let place = (device.account, device.node);
        if rank <= self.rank(device) || device.version <= 1 {
            return;
        }
        self.versions.retain(|_, (_, until)| *until >= now);
        let of_account = (device.account, NodeId([0; 32]))..=(device.account, NodeId([255; 32]));
        let room =
            self.versions.len() < OUTDATED_MAX && self.versions.range(of_account).count() < DEVICES_MAX;
        if room || self.versions.contains_key(&place) {
            let until = device.expires.max(now.plus(VALIDITY_EPOCHS_MAX));
            self.versions.insert(place, (rank, until));
        }
    }

    fn rank(&self, device: &Device) -> Rank {
        self.versions.get(&(device.account, device.node)).map_or((0, 0), |(rank, _)| *rank)
    }
}

// What others say of their accounts.

impl Node {
    /// Says whether a peer that greets acts for the account that it names; if not, counts it or tells it what is new.
    pub(super) fn is_delegated(
        &mut self,
        from: NodeId,
        device: &Verified<Device>,
        lineage: Option<&Lineage>,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> bool {
        let standing = self.standing(device, lineage, now);
        if device.node != from || standing == Standing::Forged {
            out.push(Effect::Penalise(from, Offence::WrongSigner));
            return false;
        }
        if lineage.map_or(0, Lineage::rotations)
            < self.rotations_of(device.account).map_or(0, |(count, _)| count)
        {
            self.tell_lineage(from, device.account, out);
        }
        if standing == Standing::Counts {
            self.learn_device(device, lineage, now);
        }
        standing == Standing::Counts
    }

    fn standing(&self, device: &Verified<Device>, lineage: Option<&Lineage>, now: Time) -> Standing {
        let foreign = lineage.is_some_and(|lineage| lineage.account() != device.account);
        if foreign || device.expires < self.epoch(now) {
            return Standing::Forged;
        }
        let shown = lineage.map_or((0, device.account.into()), |shown| (shown.rotations(), shown.key()));
        let newer = self.rotations_of(device.account).filter(|(rotations, _)| *rotations > shown.0);
        let (_, key) = newer.unwrap_or(shown);
        let is_signed = device.is_signed_by(Role::Owner, key);
        let older = rank(device, lineage) < self.outdated.rank(device);
        let replaced = older && !mutant::is_in("old-delegation-counts");
        match (is_signed, newer) {
            (false, None) => Standing::Forged,
            (false, Some(_)) => Standing::Outdated,
            (true, _) if replaced => Standing::Outdated,
            (true, _) => Standing::Counts,
        }
    }

    /// Returns how often an account has rotated and its key in force, if anything is known of that: as issuer by the
    /// books, else by what its nodes have shown.
    fn rotations_of(&self, account: AccountId) -> Option<(usize, PublicKey)> {
        let booked = self.issuing.as_ref().and_then(|issuing| issuing.books.lineage(account));
        let booked = booked.map(|lineage| (lineage.rotations(), lineage.key()));
        booked.or_else(|| self.outdated.keys.get(&account).copied())
    }

    /// Takes note of what a delegation that counts puts out of date.
    fn learn_device(&mut self, device: &Verified<Device>, lineage: Option<&Lineage>, now: Time) {
        let epoch = self.epoch(now);
        self.outdated.learn_version(device, rank(device, lineage), epoch);
        let Some(lineage) = lineage.filter(|lineage| lineage.rotations() > 0) else { return };
        self.outdated.learn_keys(lineage);
        let (account, key) = (device.account, lineage.key());
        for peer in self.peers.values_mut() {
            let old = |device: &Verified<Device>| {
                device.account == account && !device.is_signed_by(Role::Owner, key)
            };
            if peer.device().is_some_and(old) {
                peer.dismiss();
            }
        }
    }

    /// As issuer: tells a node the keys that its account had, if it ever rotated.
    pub(super) fn tell_lineage(&mut self, to: NodeId, account: AccountId, out: &mut Vec<Effect>) {
        let Some(issuing) = &self.issuing else { return };
        let lineage = issuing.books.lineage(account).filter(|lineage| lineage.rotations() > 0).cloned();
        if let Some(lineage) = lineage {
            self.send(to, Message::Lineage(lineage), out);
        }
    }

    /// Says whether a node may submit jobs for the account for which it acts.
    pub(super) fn may_spend(&self, node: NodeId) -> bool {
        self.rights_of(node).is_some_and(|rights| rights.spend)
    }

    /// Returns the account for which a node may serve.
    pub(super) fn serves_for(&self, node: NodeId) -> Option<AccountId> {
        let serves = self.rights_of(node).is_some_and(|rights| rights.serve);
        self.account_of(node).filter(|_| serves)
    }

    fn rights_of(&self, node: NodeId) -> Option<Rights> {
        if node == self.me {
            return Some(self.device.rights);
        }
        self.peers.get(&node)?.device().map(|device| device.rights)
    }

    /// Another node tells of delegations of its account: ours, or those that ended.
    pub(super) fn on_devices(
        &mut self,
        from: NodeId,
        devices: Vec<Verified<Device>>,
        lineage: Option<&Lineage>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        for device in devices {
            let own = self.account_of(from) == Some(device.account);
            if !own || self.standing(&device, lineage, now) == Standing::Forged {
                out.push(Effect::Penalise(from, Offence::WrongSigner));
                return;
            }
            if self.standing(&device, lineage, now) == Standing::Outdated {
                continue;
            }
            self.learn_device(&device, lineage, now);
            if device.node == self.me {
                self.on_delegated(device, lineage, now, out);
                continue;
            }
            let peer = self.peers.get_mut(&device.node);
            let older =
                |known: &Verified<Device>| known.account == device.account && known.version < device.version;
            if let Some(peer) = peer.filter(|peer| peer.device().is_some_and(older)) {
                peer.replace_device(device);
            }
        }
    }
}

// Our own account.

impl Node {
    /// Returns the keys that go with this node's delegation: one by a key that was replaced is shown as it was right once.
    pub(super) fn shown_lineage(&self) -> Option<Lineage> {
        let lineage = self.wallet.lineage()?;
        let in_force = self.device.is_signed_by(Role::Owner, lineage.key());
        Some(if in_force { lineage.clone() } else { Lineage::new(lineage.inception()) })
    }

    /// Says whether another node is the wallet node of our account.
    pub(super) const fn is_device(&self) -> bool {
        matches!(self.config.owner, Owner::Device(_))
    }

    /// Returns the wallet node of our account.
    pub(super) fn wallet_node(&self) -> NodeId {
        match &self.config.owner {
            Owner::Device(delegation) => delegation.wallet,
            Owner::Key(_) | Owner::Wallet { .. } => self.me,
        }
    }

    /// Returns why this node has no jobs done for its account, if it may not.
    pub(super) fn may_not_spend(&self) -> Option<Failure> {
        let why = "its owner has not authorised this node to spend";
        (!self.device.rights.spend).then(|| Failure::WalletRefused(why.into()))
    }

    /// Returns why this node can open no channel for its account, if that is certain.
    pub(super) fn cannot_spend(&self) -> Option<Failure> {
        let why = "the account's key was replaced elsewhere, and this node does not hold the one in force";
        let replaced = !self.is_device() && !self.wallet.holds_key();
        self.may_not_spend().or_else(|| replaced.then(|| Failure::WalletRefused(why.into())))
    }

    /// Signs the delegation of this node again if it ends soon; says whether it did. A node that was given its delegation
    /// waits for the next one.
    pub(super) fn renew_device(&mut self, now: Time) -> bool {
        let epoch = self.epoch(now);
        let key = self.wallet.signer().map(crate::keys::Signer::public);
        let by_old_key = key.is_some_and(|key| !self.device.is_signed_by(Role::Owner, key));
        let due = by_old_key || self.device.expires < epoch.plus(RENEW_EPOCHS);
        due && self.sign_own_device(now)
    }

    /// Signs the delegation of this node, if that is ours to do; says whether it is.
    pub(super) fn sign_own_device(&mut self, now: Time) -> bool {
        let ours = !self.is_device();
        if ours {
            let epoch = self.epoch(now);
            self.device = delegation(&self.wallet, &self.config.owner, self.me, self.domain, epoch);
        }
        ours
    }

    /// The owner wants the key replaced.
    pub(super) fn want_rotation(&mut self, seed: [u8; 32], next: Digest, now: Time, out: &mut Vec<Effect>) {
        let signer = self.config.node.sibling(seed);
        let to = Inception { key: signer.public(), next };
        if self.wallet.lineage().is_none() || self.is_device() {
            self.rotation = Rotation::Refused(IssuerError::CannotRotate);
            return;
        }
        self.wallet.hold(signer);
        self.rotation = Rotation::Wanted(to);
        self.rotate_if_wanted(now, out);
    }

    pub(super) fn rotate_if_wanted(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Rotation::Wanted(to) = self.rotation else { return };
        if self.wallet.is_idle() {
            self.sign_step(OpBody::Rotate(to), None, now, out);
        }
    }

    /// A step of ours was refused: a rotation that is wanted waits a while, or for ever.
    pub(super) fn on_refused_rotation(&mut self, error: IssuerError) {
        let Rotation::Wanted(to) = self.rotation else { return };
        let final_word = matches!(error, IssuerError::CannotRotate | IssuerError::UnknownAccount);
        self.rotation = if final_word { Rotation::Refused(error) } else { Rotation::Later(to) };
    }

    /// Signs a rotation again that was refused a while ago.
    pub(super) fn rotate_again(&mut self, now: Time, out: &mut Vec<Effect>) {
        if let Rotation::Later(to) = self.rotation {
            self.rotation = Rotation::Wanted(to);
            self.rotate_if_wanted(now, out);
        }
    }

    /// The issuers hold our rotation: every delegation is signed anew, and everybody is told.
    pub(super) fn on_rotated(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.rotation = Rotation::None;
        self.on_new_keys(now, out);
    }

    /// An issuer tells which keys our account had.
    pub(super) fn on_lineage(&mut self, from: NodeId, lineage: &Lineage, now: Time, out: &mut Vec<Effect>) {
        let ours = lineage.account() == self.wallet.account();
        let by_issuer = from == self.me || self.config.manifest.has_issuer_node(from);
        // A node that was given its delegation needs one by the new key first, or it would contradict itself.
        if ours && by_issuer && !self.is_device() && self.wallet.learn_lineage(lineage) {
            self.on_new_keys(now, out);
        }
    }

    fn on_new_keys(&mut self, now: Time, out: &mut Vec<Effect>) {
        if let Some(lineage) = self.wallet.lineage().map(Lineage::signed) {
            out.push(Effect::Record(Record::Lineage(lineage)));
        }
        self.renew_device(now);
        self.sign_devices(now);
        self.greet_all(now, out);
        let nodes: Vec<NodeId> = self.devices.keys().copied().collect();
        for node in nodes {
            self.send_devices(node, out);
        }
    }

    /// The owner lets a node act for the account; with no rights, no longer.
    pub(super) fn authorise(
        &mut self,
        node: NodeId,
        rights: Rights,
        (until, budget): (Epoch, u64),
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        let known = self.devices.get(&node);
        let full = known.is_none() && self.devices.len() >= DEVICES_MAX;
        let Some(signer) = self.wallet.signer().filter(|_| node != self.me && !full) else { return };
        // One that was replaced without its rights must be outlived by the word that it ended.
        let revokes = !rights.serve && !rights.spend;
        let last = self.epoch(now).plus(VALIDITY_EPOCHS_MAX);
        let until = if revokes { last } else { until };
        let version = known.map_or(1, |known| known.device.version.saturating_add(1));
        let device =
            Device { account: self.wallet.account(), node, rights, version, expires: until.min(last) };
        let device = sign(device, self.domain, Role::Owner, signer);
        out.push(Effect::Record(Record::Authorised { device: device.signed(), until, budget }));
        self.devices.insert(node, Authorised { device, until, budget });
        let connected: Vec<NodeId> =
            self.peers.keys().copied().filter(|peer| self.is_connected(*peer)).collect();
        for peer in connected {
            self.send_devices(peer, out);
        }
        self.apply_own_devices();
    }

    pub(super) fn replay_authorised(&mut self, device: Verified<Device>, until: Epoch, budget: u64) {
        if device.account == self.wallet.account() {
            self.devices.insert(device.node, Authorised { device, until, budget });
        }
    }

    /// Tells a node its delegation, and everybody those that were taken back.
    pub(super) fn send_devices(&mut self, to: NodeId, out: &mut Vec<Effect>) {
        let concerns = |authorised: &&Authorised| {
            let rights = authorised.device.rights;
            authorised.device.node == to || authorised.device.version > 1 && !(rights.serve && rights.spend)
        };
        let devices: Vec<_> = self.devices.values().filter(concerns).map(|a| a.device.clone()).collect();
        if !devices.is_empty() && self.is_connected(to) {
            self.send(to, Message::Devices { devices, lineage: self.wallet.lineage().cloned() }, out);
        }
    }

    /// Renews delegations that end before their time, and forgets those whose time is over.
    pub(super) fn renew_devices(&mut self, now: Time, out: &mut Vec<Effect>) {
        let epoch = self.epoch(now);
        self.devices.retain(|_, authorised| authorised.until >= epoch);
        let due = |authorised: &Authorised| {
            let ends_soon = authorised.device.expires < epoch.plus(RENEW_EPOCHS);
            ends_soon && authorised.device.expires < authorised.until
        };
        let nodes: Vec<NodeId> =
            self.devices.values().filter(|authorised| due(authorised)).map(|a| a.device.node).collect();
        if nodes.is_empty() {
            return;
        }
        self.sign_devices(now);
        for node in nodes {
            self.send_devices(node, out);
        }
    }

    /// Signs every delegation again with the key in force.
    fn sign_devices(&mut self, now: Time) {
        let last = self.epoch(now).plus(VALIDITY_EPOCHS_MAX);
        let Some(signer) = self.wallet.signer().cloned() else { return };
        for authorised in self.devices.values_mut() {
            let device = Device { expires: authorised.until.min(last), ..Device::clone(&authorised.device) };
            authorised.device = sign(device, self.domain, Role::Owner, &signer);
        }
    }

    /// What was taken back counts here first.
    fn apply_own_devices(&mut self) {
        for (node, authorised) in &self.devices {
            let device = &authorised.device;
            let older =
                |known: &Verified<Device>| known.account == device.account && known.version < device.version;
            if let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.device().is_some_and(older)) {
                peer.replace_device(device.clone());
            }
        }
    }

    fn on_delegated(
        &mut self,
        device: Verified<Device>,
        lineage: Option<&Lineage>,
        now: Time,
        out: &mut Vec<Effect>,
    ) {
        if !self.is_device() || self.device == device || device.version < self.device.version {
            return;
        }
        let record = Record::Delegated { device: device.signed(), lineage: lineage.map(Lineage::signed) };
        if self.take_delegation(device, lineage) {
            out.push(Effect::Record(record));
            self.greet_all(now, out);
            self.resume_openings(now, out);
        }
    }

    /// Takes a delegation to this node in place of an older one; says whether it is newer.
    pub(super) fn take_delegation(&mut self, device: Verified<Device>, lineage: Option<&Lineage>) -> bool {
        let ours = self.is_device() && device.node == self.me && device.account == self.wallet.account();
        let newer = (device.version, device.expires) >= (self.device.version, self.device.expires);
        if ours && newer {
            lineage.map(|lineage| self.wallet.learn_lineage(lineage));
            self.device = device;
        }
        ours && newer
    }
}

/// Keeps a delegation on the heap, where a node's owner is written down.
impl From<Delegation> for Owner {
    fn from(delegation: Delegation) -> Self {
        Self::Device(Box::new(delegation))
    }
}
