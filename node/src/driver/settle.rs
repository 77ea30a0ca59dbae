//! Waiting until the channels are closed and the earnings redeemed.

use std::collections::BTreeSet;

use protocol::ids::ChannelId;
use protocol::ledger::records::OpBody;
use protocol::node::{ChannelView, Input, OwnerCommand};

use crate::api::views::SettleView;
use crate::command::Reply;

use super::Driver;

/// How long the issuer and the partners are waited for.
const SETTLE_MS: u64 = 5_000;

/// A request to settle that waits for the others.
#[derive(Debug)]
pub(super) struct Settling {
    reply: Reply<SettleView>,
    until_ms: u64,
    /// The channels that were open whenever we looked.
    channels: BTreeSet<ChannelId>,
    unredeemed: usize,
    /// A channel was being opened when we last looked: once it is open, it is to be closed as well.
    opening: bool,
}

impl Driver {
    pub(super) fn settle(&mut self, reply: Reply<SettleView>) {
        self.inputs.push_back(Input::Owner(OwnerCommand::Settle));
        let channels = self.node.channels();
        self.waiting.settling.push(Settling {
            reply,
            until_ms: self.clock.now_ms() + SETTLE_MS,
            channels: ids(&channels),
            unredeemed: unredeemed(&channels),
            opening: self.is_opening(),
        });
    }

    pub(super) fn answer_settling(&mut self) {
        if self.waiting.settling.is_empty() {
            return;
        }
        let (now, opening) = (self.clock.now_ms(), self.is_opening());
        let channels = self.node.channels();
        let unredeemed = unredeemed(&channels);
        let are_closed = !opening && channels.iter().all(|channel| channel.busy || !channel.paying);
        let open = ids(&channels);
        for mut settling in std::mem::take(&mut self.waiting.settling) {
            if (are_closed && unredeemed == 0 && self.durable.is_indexed()) || settling.until_ms <= now {
                let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                let _ = settling.reply.send(Ok(SettleView {
                    closed: count(settling.channels.difference(&open).count()),
                    redeemed: count(settling.unredeemed.saturating_sub(unredeemed)),
                    open: count(channels.len() + usize::from(opening)),
                }));
                continue;
            }
            settling.channels.extend(&open);
            if std::mem::replace(&mut settling.opening, opening) && !opening {
                self.inputs.push_back(Input::Owner(OwnerCommand::Settle));
            }
            self.waiting.settling.push(settling);
        }
    }

    fn is_opening(&self) -> bool {
        self.node.step_under_way().is_some_and(|op| matches!(op.body, OpBody::OpenChannel(_)))
    }
}

fn ids(channels: &[ChannelView]) -> BTreeSet<ChannelId> {
    channels.iter().map(|channel| channel.channel).collect()
}

/// Returns how many channels have earned what is not redeemed.
fn unredeemed(channels: &[ChannelView]) -> usize {
    channels.iter().filter(|channel| !channel.paying && channel.unredeemed > 0).count()
}
