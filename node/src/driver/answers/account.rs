//! The account: its key, its nodes, its rotation.

use protocol::ids::{Digest, NodeId};
use protocol::keys::Signer;
use protocol::ledger::account::promise;
use protocol::ledger::records::{Epoch, Rights};
use protocol::node::{DeviceView as Authorised, Input, OwnerCommand, RotationView};

use crate::api::views::{AccountView, AuthoriseBody, DelegationView, DeviceView};
use crate::command::Reply;
use crate::delegation;
use crate::driver::Driver;
use crate::driver::promises::Answer;
use crate::exit::{Failure, FailureKind};

use super::answer;

/// How long a rotation waits for the issuers before it is answered that it is under way.
const ROTATE_MS: u64 = 20_000;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Whoever waits for a rotation.
#[derive(Debug)]
pub(in crate::driver) struct Rotating {
    reply: Reply<AccountView>,
    until_ms: u64,
}

impl Driver {
    pub(super) fn account_view(&self) -> AccountView {
        let view = self.node.account_view();
        let device = |device: &Authorised| DeviceView {
            node: device.node.to_string(),
            serve: device.rights.serve,
            spend: device.rights.spend,
            version: device.version,
            until_epoch: device.until.0,
            budget: device.budget.into(),
        };
        AccountView {
            account: view.account.to_string(),
            key: data_encoding::HEXLOWER.encode(&view.key.0),
            held: view.held,
            encrypted: self.identity.vault.is_some(),
            rotatable: view.rotatable,
            rotations: u32::try_from(view.rotations).unwrap_or(u32::MAX),
            sequence: view.sequence,
            wallet_node: view.wallet.to_string(),
            is_wallet: view.wallet == self.node.id(),
            serve: view.rights.serve,
            spend: view.rights.spend,
            epoch: self.node.manifest().epoch(self.now()).0,
            expires_epoch: view.expires.0,
            rotation: match view.rotation {
                RotationView::None => "none".to_owned(),
                RotationView::Pending => "pending".to_owned(),
                RotationView::Refused(error) => format!("refused: {error}"),
            },
            devices: view.devices.iter().map(device).collect(),
        }
    }

    /// The next key is on the disk before the step that needs it is signed.
    pub(super) fn on_rotate(&mut self, seed: [u8; 32], next: Digest, reply: Reply<AccountView>) {
        match self.prepare_rotation(seed) {
            Ok(()) => {
                self.inputs.push_back(Input::Owner(OwnerCommand::Rotate { seed, next }));
                let until_ms = self.clock.now_ms().saturating_add(ROTATE_MS);
                self.waiting.rotating.push(Rotating { reply, until_ms });
            }
            Err(failure) => answer(reply, Err(failure)),
        }
    }

    fn prepare_rotation(&mut self, seed: [u8; 32]) -> Result<(), Failure> {
        let view = self.node.account_view();
        let Some(vault) = &mut self.identity.vault else { return Err(cannot_rotate()) };
        if self.node.next_key().is_none_or(|next| next != promise(Signer::from_seed(seed).public())) {
            let what = "the phrase does not make this account's next key: is it the right phrase?";
            return Err(Failure::new(FailureKind::Forbidden, what));
        }
        vault.hold(seed, view.key);
        vault.write(&self.folder).map_err(|error| Failure::internal(error.to_string()))
    }

    /// Answers whoever waits for a rotation that is over, or waits no longer.
    pub(super) fn answer_rotating(&mut self) {
        let now = self.clock.now_ms();
        let rotation = self.node.account_view().rotation;
        for waiting in std::mem::take(&mut self.waiting.rotating) {
            match rotation {
                RotationView::Pending if waiting.until_ms > now => self.waiting.rotating.push(waiting),
                RotationView::None | RotationView::Pending => answer(waiting.reply, Ok(self.account_view())),
                RotationView::Refused(error) => {
                    let what = format!("the issuer refused the rotation: {error}");
                    answer(waiting.reply, Err(Failure::new(FailureKind::Refused, what)));
                }
            }
        }
    }

    pub(super) fn on_authorise(&mut self, body: &AuthoriseBody, reply: Reply<DelegationView>) {
        match self.authorise(body) {
            Ok(node) => self.promise(Digest(node.0), Answer::Device(reply, node)),
            Err(failure) => answer(reply, Err(failure)),
        }
    }

    fn authorise(&mut self, body: &AuthoriseBody) -> Result<NodeId, Failure> {
        let node: NodeId =
            body.node.parse().map_err(|error: protocol::ids::IdError| Failure::usage(error.to_string()))?;
        let view = self.node.account_view();
        if view.wallet != self.node.id() || !view.held {
            let what =
                "this node does not hold the account's key: run the command on the account's wallet node";
            return Err(Failure::new(FailureKind::Forbidden, what));
        }
        if node == self.node.id() {
            return Err(Failure::usage("this is the account's wallet node itself: name another node"));
        }
        let known = view.devices.iter().any(|device| device.node == node);
        let rights = Rights { serve: body.serve, spend: body.spend };
        if !known && view.devices.len() >= protocol::message::DEVICES_MAX {
            return Err(Failure::new(FailureKind::Refused, "the account has as many nodes as it may have"));
        }
        if !known && !rights.serve && !rights.spend {
            return Err(Failure::new(FailureKind::NotFound, "this node was never authorised"));
        }
        let until = self.until(body)?;
        let budget = body.budget_nano;
        self.inputs.push_back(Input::Owner(OwnerCommand::Authorise { node, rights, until, budget }));
        Ok(node)
    }

    fn until(&self, body: &AuthoriseBody) -> Result<Epoch, Failure> {
        let manifest = self.node.manifest();
        let now = manifest.epoch(self.now());
        let epochs = u64::from(body.days).saturating_mul(DAY_MS).div_ceil(manifest.epoch_ms);
        let until =
            body.until_epoch.map_or_else(|| now.plus(u32::try_from(epochs).unwrap_or(u32::MAX)), Epoch);
        if until < now {
            return Err(Failure::usage(format!("epoch {} is over: it is epoch {} now", until.0, now.0)));
        }
        Ok(until)
    }

    /// Returns what a node that was authorised must be given.
    pub(in crate::driver) fn delegation_view(&self, node: NodeId) -> Result<DelegationView, Failure> {
        let given = self.node.delegation_of(node);
        let given = given.ok_or_else(|| Failure::internal("the node could not be authorised"))?;
        let rights = given.device.rights;
        Ok(DelegationView {
            node: node.to_string(),
            account: given.device.account.to_string(),
            serve: rights.serve,
            spend: rights.spend,
            version: given.device.version,
            delegation: (rights.serve || rights.spend).then(|| delegation::to_text(&given)),
        })
    }
}

fn cannot_rotate() -> Failure {
    let what = "this account was made without a recovery phrase, so its key cannot be replaced: make an account with `sharemesh account new` in a new folder";
    Failure::new(FailureKind::Forbidden, what)
}
