//! What messages are called, and which of them stand for a job.

use super::{Message, Stage};
use crate::ids::JobId;

impl<S: Stage> Message<S> {
    /// Returns the message's name, for logs and counts.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Join { .. } => "join",
            Self::Joined { .. } => "joined",
            Self::JoinRefused(_) => "join_refused",
            Self::Advert(_) => "advert",
            Self::AdvertQuery => "advert_query",
            Self::Ask { .. } => "ask",
            Self::Offer { .. } => "offer",
            Self::Refused { .. } => "refused",
            Self::AccountQuery => "account_query",
            Self::AccountState { .. } => "account_state",
            Self::Step { .. } => "step",
            Self::Stepped { .. } => "stepped",
            Self::StepRefused { .. } => "step_refused",
            Self::Submit { .. } => "submit",
            Self::Accepted(_) => "accepted",
            Self::Pay { .. } => "pay",
            Self::CoSigned(_) => "co_signed",
            Self::Finished { .. } => "finished",
            Self::Failed { .. } => "failed",
            Self::Cancel { .. } => "cancel",
            Self::Heads(_) => "heads",
            Self::Redeem { .. } => "redeem",
            Self::Redeemed(_) => "redeemed",
            Self::Close { .. } => "close",
            Self::Voted { .. } => "voted",
            Self::Recorded { .. } => "recorded",
            Self::Fact(_) => "fact",
            Self::Deposit(_) => "deposit",
            Self::CloseVoted(_) => "close_voted",
            Self::FactsQuery(_) => "facts_query",
            Self::Facts { .. } => "facts",
            Self::FactQuery(_) => "fact_query",
            Self::Agreeing(message) => message.name(),
            Self::Clock(_) => "clock",
            Self::Markups(_) => "markups",
            Self::MarkupsNoted(_) => "markups_noted",
            Self::Confirm(_) => "confirm",
            Self::Confirmed { .. } => "confirmed",
            Self::Notice(_) => "notice",
            Self::Noticed(_) => "noticed",
            Self::Payout { .. } => "payout",
            Self::Withdrawal { .. } => "withdrawal",
            Self::Books(message) => message.name(),
            Self::Lineage(_) => "lineage",
            Self::Devices { .. } => "devices",
            Self::Spend { .. } => "spend",
            Self::Spent(_) => "spent",
            Self::SpendRefused { .. } => "spend_refused",
            Self::Keep(_) => "keep",
            Self::Kept { .. } => "kept",
            Self::Compare(_) => "compare",
            Self::Compared(_) => "compared",
            Self::KeptQuery(_) => "kept_query",
            Self::Over(_) => "over",
            Self::RedeemKept(_) => "redeem_kept",
            Self::RedeemedKept(_) => "redeemed_kept",
            Self::ChannelsQuery(_) => "channels_query",
            Self::Channels { .. } => "channels",
            Self::Recover(_) => "recover",
        }
    }

    /// Returns the job that the message hands over or asks about, whose failure to arrive the sender must know of.
    #[must_use]
    pub const fn job(&self) -> Option<JobId> {
        match self {
            Self::Ask { job, .. } | Self::Submit { job, .. } => Some(*job),
            Self::Hello { .. }
            | Self::Join { .. }
            | Self::Joined { .. }
            | Self::JoinRefused(_)
            | Self::Advert(_)
            | Self::AdvertQuery
            | Self::Offer { .. }
            | Self::Refused { .. }
            | Self::AccountQuery
            | Self::AccountState { .. }
            | Self::Step { .. }
            | Self::Stepped { .. }
            | Self::StepRefused { .. }
            | Self::Accepted(_)
            | Self::Pay { .. }
            | Self::CoSigned(_)
            | Self::Finished { .. }
            | Self::Failed { .. }
            | Self::Cancel { .. }
            | Self::Heads(_)
            | Self::Redeem { .. }
            | Self::Redeemed(_)
            | Self::Close { .. }
            | Self::Books(_)
            | Self::Voted { .. }
            | Self::Recorded { .. }
            | Self::Fact(_)
            | Self::Deposit(_)
            | Self::CloseVoted(_)
            | Self::FactsQuery(_)
            | Self::Facts { .. }
            | Self::FactQuery(_)
            | Self::Agreeing(_)
            | Self::Notice(_)
            | Self::Noticed(_)
            | Self::Payout { .. }
            | Self::Withdrawal { .. }
            | Self::Lineage(_)
            | Self::Devices { .. }
            | Self::Spend { .. }
            | Self::Spent(_)
            | Self::SpendRefused { .. }
            | Self::Keep(_)
            | Self::Kept { .. }
            | Self::Compare(_)
            | Self::Compared(_)
            | Self::KeptQuery(_)
            | Self::Over(_)
            | Self::RedeemKept(_)
            | Self::RedeemedKept(_)
            | Self::ChannelsQuery(_)
            | Self::Channels { .. }
            | Self::Recover(_)
            | Self::Clock(_)
            | Self::Markups(_)
            | Self::MarkupsNoted(_)
            | Self::Confirm(_)
            | Self::Confirmed { .. } => None,
        }
    }
}
