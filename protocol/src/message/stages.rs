//! From messages as received to messages as checked, and back.

use alloc::vec::Vec;

use super::{Checked, DEVICES_MAX, KEPT_MAX, Kept, Message, Opening, Wire};
use crate::ids::DomainId;
use crate::keys::Scheme;
use crate::ledger::account::Lineage;
use crate::ledger::quorum::{all, as_signed};
use crate::signed::{Signable, Signed, SignedError, Verified};

impl Message<Wire> {
    /// Checks every signature in it.
    pub(super) fn verify(self, domain: DomainId, scheme: Scheme) -> Result<Message<Checked>, SignedError> {
        fn maybe<T: Signable>(
            part: Option<Signed<T>>,
            domain: DomainId,
            scheme: Scheme,
        ) -> Result<Option<Verified<T>>, SignedError> {
            part.map(|part| part.verify(domain, scheme)).transpose()
        }
        Ok(match self {
            Self::Hello { device, lineage, membership, advert, asks } => Message::Hello {
                device: device.verify(domain, scheme)?,
                lineage: lineage.map(|lineage| lineage.verify(domain, scheme)).transpose()?,
                membership: maybe(membership, domain, scheme)?,
                advert: maybe(advert, domain, scheme)?,
                asks,
            },
            Self::Join { secret } => Message::Join { secret },
            Self::Joined { membership, deposit } => Message::Joined {
                membership: membership.verify(domain, scheme)?,
                deposit: maybe(deposit, domain, scheme)?,
            },
            Self::JoinRefused(error) => Message::JoinRefused(error),
            Self::Advert(advert) => Message::Advert(advert.verify(domain, scheme)?),
            Self::AdvertQuery => Message::AdvertQuery,
            Self::Ask { job, model, account, markup } => Message::Ask { job, model, account, markup },
            Self::Offer { job, terms } => Message::Offer { job, terms: terms.verify(domain, scheme)? },
            Self::Refused { job, refusal } => Message::Refused { job, refusal },
            Self::AccountQuery => Message::AccountQuery,
            Self::AccountState { account, next, head, balance } => {
                Message::AccountState { account, next, head, balance }
            }
            Self::Step { op, terms } => {
                Message::Step { op: op.verify(domain, scheme)?, terms: maybe(terms, domain, scheme)? }
            }
            Self::Stepped { vote, recorded, balance } => Message::Stepped {
                vote: vote.verify(domain, scheme)?,
                recorded: recorded.verify(domain, scheme)?,
                balance,
            },
            Self::StepRefused { op, error, balance } => Message::StepRefused { op, error, balance },
            Self::Submit { job, spec, channel, opening } => {
                let opening = opening.map(|opening| opening.verify(domain, scheme)).transpose()?;
                Message::Submit { job, spec, channel, opening }
            }
            Self::Accepted(accepted) => Message::Accepted(accepted.verify(domain, scheme)?),
            Self::Pay { receipt, allowances } => {
                Message::Pay { receipt: receipt.verify(domain, scheme)?, allowances }
            }
            Self::CoSigned(receipt) => Message::CoSigned(receipt.verify(domain, scheme)?),
            Self::Finished { record, jobs } => Message::Finished { record, jobs },
            Self::Failed { job, tokens_out, reason } => Message::Failed { job, tokens_out, reason },
            Self::Cancel { job } => Message::Cancel { job },
            Self::Heads(heads) => Message::Heads(heads),
            Self::Redeem { receipt, claim } => Message::Redeem {
                receipt: receipt.verify(domain, scheme)?,
                claim: claim.verify(domain, scheme)?,
            },
            Self::Redeemed(ack) => Message::Redeemed(ack.verify(domain, scheme)?),
            Self::Close { closing, opening } => Message::Close {
                closing: closing.verify(domain, scheme)?,
                opening: opening.map(|opening| opening.verify(domain, scheme)).transpose()?,
            },
            Self::Voted { vote, balance } => Message::Voted { vote: vote.verify(domain, scheme)?, balance },
            Self::Recorded { recorded, balance } => {
                Message::Recorded { recorded: recorded.verify(domain, scheme)?, balance }
            }
            Self::Fact(fact) => Message::Fact(fact.verify(domain, scheme)?),
            Self::Deposit(deposit) => Message::Deposit(deposit.verify(domain, scheme)?),
            Self::CloseVoted(vote) => Message::CloseVoted(vote.verify(domain, scheme)?),
            Self::FactsQuery(since) => Message::FactsQuery(since),
            Self::Facts { first, names } => Message::Facts { first, names },
            Self::FactQuery(names) => Message::FactQuery(names),
            Self::Agreeing(message) => Message::Agreeing(message.verify(domain, scheme)?),
            Self::Notice(news) => Message::Notice(news.verify(domain, scheme)?),
            Self::Noticed(record) => Message::Noticed(record),
            Self::Payout { step, to } => Message::Payout { step, to },
            Self::Withdrawal { step, paid } => {
                Message::Withdrawal { step, paid: maybe(paid, domain, scheme)? }
            }
            Self::Books(message) => Message::Books(message.verify(domain, scheme)?),
            Self::Lineage(lineage) => Message::Lineage(lineage.verify(domain, scheme)?),
            Self::Devices { devices, .. } if devices.len() > DEVICES_MAX => {
                return Err(SignedError::Bounds("devices"));
            }
            Self::Devices { devices, lineage } => Message::Devices {
                devices: devices.into_iter().map(|d| d.verify(domain, scheme)).collect::<Result<_, _>>()?,
                lineage: lineage.map(|lineage| lineage.verify(domain, scheme)).transpose()?,
            },
            Self::Spend { request, terms, cap, payer_key } => {
                Message::Spend { request, terms: terms.verify(domain, scheme)?, cap, payer_key }
            }
            Self::Spent(opening) => Message::Spent(opening.verify(domain, scheme)?),
            Self::SpendRefused { request, refusal } => Message::SpendRefused { request, refusal },
            Self::Keep(entries) => Message::Keep(kept(entries, domain, scheme)?),
            Self::Kept { entries, last } => Message::Kept { entries: kept(entries, domain, scheme)?, last },
            Self::Compare(question) => Message::Compare(question),
            Self::Compared(answer) => Message::Compared(answer),
            Self::KeptQuery(receipts) => Message::KeptQuery(receipts),
            Self::Over(channels) => Message::Over(channels),
            Self::RedeemKept(receipt) => Message::RedeemKept(receipt.verify(domain, scheme)?),
            Self::RedeemedKept(receipt) => Message::RedeemedKept(receipt),
            Self::ChannelsQuery(after) => Message::ChannelsQuery(after),
            Self::Channels { channels, last } => Message::Channels { channels, last },
            Self::Recover(after) => Message::Recover(after),
            Self::Clock(time) => Message::Clock(time),
            Self::Markups(routed) => Message::Markups(routed),
            Self::MarkupsNoted(routed) => Message::MarkupsNoted(routed),
            Self::Confirm(acks) => Message::Confirm(all(acks, &|ack| ack.verify(domain, scheme))?),
            Self::Confirmed { channel, amount } => Message::Confirmed { channel, amount },
        })
    }
}

fn kept(
    entries: Vec<Kept<Wire>>,
    domain: DomainId,
    scheme: Scheme,
) -> Result<Vec<Kept<Checked>>, SignedError> {
    if entries.len() > KEPT_MAX {
        return Err(SignedError::Bounds("kept"));
    }
    entries.into_iter().map(|entry| entry.verify(domain, scheme)).collect()
}

impl Message<Checked> {
    /// Returns the message as it travels.
    #[must_use]
    pub fn to_wire(&self) -> Message<Wire> {
        match self {
            Self::Hello { device, lineage, membership, advert, asks } => Message::Hello {
                device: device.signed(),
                lineage: lineage.as_ref().map(Lineage::signed),
                membership: membership.as_ref().map(Verified::signed),
                advert: advert.as_ref().map(Verified::signed),
                asks: *asks,
            },
            Self::Join { secret } => Message::Join { secret: *secret },
            Self::Joined { membership, deposit } => Message::Joined {
                membership: membership.signed(),
                deposit: deposit.as_ref().map(Verified::signed),
            },
            Self::JoinRefused(error) => Message::JoinRefused(*error),
            Self::Advert(advert) => Message::Advert(advert.signed()),
            Self::AdvertQuery => Message::AdvertQuery,
            Self::Ask { job, model, account, markup } => {
                Message::Ask { job: *job, model: *model, account: *account, markup: *markup }
            }
            Self::Offer { job, terms } => Message::Offer { job: *job, terms: terms.signed() },
            Self::Refused { job, refusal } => Message::Refused { job: *job, refusal: *refusal },
            Self::AccountQuery => Message::AccountQuery,
            Self::AccountState { account, next, head, balance } => {
                Message::AccountState { account: *account, next: *next, head: *head, balance: *balance }
            }
            Self::Step { op, terms } => {
                Message::Step { op: op.signed(), terms: terms.as_ref().map(Verified::signed) }
            }
            Self::Stepped { vote, recorded, balance } => {
                Message::Stepped { vote: vote.signed(), recorded: recorded.signed(), balance: *balance }
            }
            Self::StepRefused { op, error, balance } => {
                Message::StepRefused { op: *op, error: *error, balance: *balance }
            }
            Self::Submit { job, spec, channel, opening } => Message::Submit {
                job: *job,
                spec: spec.clone(),
                channel: *channel,
                opening: opening.as_ref().map(Opening::signed),
            },
            Self::Accepted(accepted) => Message::Accepted(accepted.signed()),
            Self::Pay { receipt, allowances } => {
                Message::Pay { receipt: receipt.signed(), allowances: allowances.clone() }
            }
            Self::CoSigned(receipt) => Message::CoSigned(receipt.signed()),
            Self::Finished { record, jobs } => Message::Finished { record: record.clone(), jobs: *jobs },
            Self::Failed { job, tokens_out, reason } => {
                Message::Failed { job: *job, tokens_out: *tokens_out, reason: reason.clone() }
            }
            Self::Cancel { job } => Message::Cancel { job: *job },
            Self::Heads(heads) => Message::Heads(heads.clone()),
            Self::Redeem { receipt, claim } => {
                Message::Redeem { receipt: receipt.signed(), claim: claim.signed() }
            }
            Self::Redeemed(ack) => Message::Redeemed(ack.signed()),
            Self::Close { closing, opening } => {
                Message::Close { closing: closing.signed(), opening: opening.as_ref().map(Opening::signed) }
            }
            Self::Voted { vote, balance } => Message::Voted { vote: vote.signed(), balance: *balance },
            Self::Recorded { recorded, balance } => {
                Message::Recorded { recorded: recorded.signed(), balance: *balance }
            }
            Self::Fact(fact) => Message::Fact(fact.signed()),
            Self::Deposit(deposit) => Message::Deposit(deposit.signed()),
            Self::CloseVoted(vote) => Message::CloseVoted(vote.signed()),
            Self::FactsQuery(since) => Message::FactsQuery(*since),
            Self::Facts { first, names } => Message::Facts { first: *first, names: names.clone() },
            Self::FactQuery(names) => Message::FactQuery(names.clone()),
            Self::Agreeing(message) => Message::Agreeing(message.to_wire()),
            Self::Notice(news) => Message::Notice(news.signed()),
            Self::Noticed(record) => Message::Noticed(*record),
            Self::Payout { step, to } => Message::Payout { step: *step, to: to.clone() },
            Self::Withdrawal { step, paid } => {
                Message::Withdrawal { step: *step, paid: paid.as_ref().map(Verified::signed) }
            }
            Self::Books(message) => Message::Books(message.to_wire()),
            Self::Lineage(lineage) => Message::Lineage(lineage.signed()),
            Self::Devices { devices, lineage } => Message::Devices {
                devices: devices.iter().map(Verified::signed).collect(),
                lineage: lineage.as_ref().map(Lineage::signed),
            },
            Self::Spend { request, terms, cap, payer_key } => {
                let (request, cap, payer_key) = (*request, *cap, *payer_key);
                Message::Spend { request, terms: terms.signed(), cap, payer_key }
            }
            Self::Spent(opening) => Message::Spent(opening.signed()),
            Self::SpendRefused { request, refusal } => {
                Message::SpendRefused { request: *request, refusal: *refusal }
            }
            Self::Keep(entries) => Message::Keep(entries.iter().map(Kept::signed).collect()),
            Self::Kept { entries, last } => {
                Message::Kept { entries: entries.iter().map(Kept::signed).collect(), last: *last }
            }
            Self::Compare(question) => Message::Compare(question.clone()),
            Self::Compared(answer) => Message::Compared(answer.clone()),
            Self::KeptQuery(receipts) => Message::KeptQuery(receipts.clone()),
            Self::Over(channels) => Message::Over(channels.clone()),
            Self::RedeemKept(receipt) => Message::RedeemKept(receipt.signed()),
            Self::RedeemedKept(receipt) => Message::RedeemedKept(*receipt),
            Self::ChannelsQuery(after) => Message::ChannelsQuery(*after),
            Self::Channels { channels, last } => {
                Message::Channels { channels: channels.clone(), last: *last }
            }
            Self::Recover(after) => Message::Recover(*after),
            Self::Clock(time) => Message::Clock(*time),
            Self::Markups(routed) => Message::Markups(routed.clone()),
            Self::MarkupsNoted(routed) => Message::MarkupsNoted(routed.clone()),
            Self::Confirm(acks) => Message::Confirm(as_signed(acks)),
            Self::Confirmed { channel, amount } => Message::Confirmed { channel: *channel, amount: *amount },
        }
    }
}
