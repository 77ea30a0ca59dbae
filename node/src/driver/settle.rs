//! Waiting until the channels are closed and the earnings redeemed.

use protocol::node::{Input, OwnerCommand};

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
    channels: usize,
    unredeemed: usize,
}

impl Driver {
    pub(super) fn settle(&mut self, reply: Reply<SettleView>) {
        let channels = self.node.channels();
        let unredeemed = channels.iter().filter(|channel| !channel.paying && channel.unredeemed > 0).count();
        self.inputs.push_back(Input::Owner(OwnerCommand::Settle));
        let until_ms = self.clock.now_ms() + SETTLE_MS;
        self.waiting.settling.push(Settling { reply, until_ms, channels: channels.len(), unredeemed });
    }

    pub(super) fn answer_settling(&mut self) {
        if self.waiting.settling.is_empty() {
            return;
        }
        let now = self.clock.now_ms();
        let channels = self.node.channels();
        let unredeemed = channels.iter().filter(|channel| !channel.paying && channel.unredeemed > 0).count();
        let are_closed = channels.iter().all(|channel| channel.busy || !channel.paying);
        for settling in std::mem::take(&mut self.waiting.settling) {
            if (are_closed && unredeemed == 0 && self.durable.is_indexed()) || settling.until_ms <= now {
                let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                let _ = settling.reply.send(Ok(SettleView {
                    closed: count(settling.channels.saturating_sub(channels.len())),
                    redeemed: count(settling.unredeemed.saturating_sub(unredeemed)),
                    open: count(channels.len()),
                }));
            } else {
                self.waiting.settling.push(settling);
            }
        }
    }
}
