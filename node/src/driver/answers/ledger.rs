//! What the ledger says: balances, and from the index receipts and jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::ids::{ChannelId, DomainId, JobId, ModelId, NodeId, RecordId};
use protocol::job::{Finish, JobRecord};
use protocol::ledger::money::{shares_of, waiting};
use protocol::ledger::records::{AccountOp, OpBody, SplitLine, SplitRole};
use protocol::price::Usage;
use protocol::signed::Verified;

use crate::api::views::{
    BalanceView, BookView, BooksView, BuilderView, JobView, Money, PaidByView, PriceView, ReceiptDetailView,
    ReceiptView, ReceiptsView, SplitView, StepView,
};
use crate::command::Reply;
use crate::driver::Driver;
use crate::driver::index::{Asker, JobsOf, ReceiptEntry};
use crate::exit::{Failure, FailureKind};
use crate::journal::{History, Position};
use crate::store::StoreError;

use super::jobs::{finish_name, role_name};
use super::mesh::price_view;
use super::{PAGE_MAX, answer};

/// How long the index may be behind the journal before a job that has just ended is not found.
const INDEX_PAUSE: Duration = Duration::from_millis(20);

/// How often it is looked for meanwhile.
const INDEX_LOOKS: u32 = 100;

impl Driver {
    pub(super) fn balance(&self) -> BalanceView {
        let balance = self.node.balance();
        let channels = self.node.channel_sums();
        let count = |channels| u32::try_from(channels).unwrap_or(u32::MAX);
        BalanceView {
            account: self.node.account().to_string(),
            available: balance.available().into(),
            cash: balance.cash.into(),
            earned: balance.earned.into(),
            held: balance.held.saturating_sub(channels.signed).into(),
            pending: channels.unredeemed.into(),
            channels_out: count(channels.paying),
            channels_in: count(channels.paid),
            under_way: self.node.step_under_way().map(step_view),
            books: self.books(),
        }
    }

    pub(super) fn books(&self) -> Option<BooksView> {
        let books = self.node.books()?;
        let manifest = self.node.manifest();
        let role = |account| {
            if account == manifest.network {
                "network"
            } else if manifest.pools.iter().any(|pool| pool.account == account) {
                "pool"
            } else {
                "member"
            }
        };
        let accounts: Vec<BookView> = books
            .balances()
            .map(|(account, balance)| BookView {
                account: account.to_string(),
                role: role(account).to_owned(),
                cash: balance.cash.into(),
                earned: balance.earned.into(),
                held: balance.held.into(),
            })
            .collect();
        let sum = |of: fn(&BookView) -> u64| Money::from_nano(accounts.iter().map(of).sum());
        Some(BooksView {
            deposited: u64::try_from(books.deposited()).unwrap_or(u64::MAX).into(),
            withdrawn: u64::try_from(books.withdrawn()).unwrap_or(u64::MAX).into(),
            available: sum(|book| book.cash.nano + book.earned.nano),
            held: sum(|book| book.held.nano),
            conserved: books.is_conserved(),
            budget: manifest.grant_budget.into(),
            budget_left: books.budget_left().into(),
            accounts,
        })
    }

    pub(super) fn asker(&self) -> Result<Asker, Failure> {
        let names = self.model_names();
        self.durable.reader().map(|reader| Asker { reader, names }).ok_or_else(|| {
            Failure::new(
                FailureKind::Unavailable,
                "the index is being opened or rebuilt: try again in a moment",
            )
            .retry_after(1000)
        })
    }

    /// Returns what the models that are known now are called.
    pub(super) fn model_names(&self) -> BTreeMap<ModelId, String> {
        let offers = self.node.providers(self.now()).flat_map(|advert| &advert.models);
        let served = self.node.served().map(|(offer, ..)| offer);
        offers.chain(served).map(|offer| (offer.model, offer.name.clone())).collect()
    }

    pub(super) fn on_receipts(&self, limit: u32, before: Option<String>, reply: Reply<ReceiptsView>) {
        let asker = match self.asker() {
            Ok(asker) => asker,
            Err(failure) => return answer(reply, Err(failure)),
        };
        tokio::task::spawn_blocking(move || {
            answer(reply, receipts(&asker, limit.min(PAGE_MAX), before.as_deref()))
        });
    }

    pub(super) fn on_show_receipt(&self, id: String, reply: Reply<Box<ReceiptDetailView>>) {
        let asker = match self.asker() {
            Ok(asker) => asker,
            Err(failure) => return answer(reply, Err(failure)),
        };
        let (me, history, domain) = (self.node.id(), self.durable.history(), self.node.domain());
        tokio::task::spawn_blocking(move || {
            let shown = show_receipt(&asker, &id, me).and_then(|(position, mut view)| {
                let signed = signatures_at(&history, position, domain)?;
                (view.payer_signature, view.payee_signature) = signed;
                Ok(Box::new(view))
            });
            answer(reply, shown);
        });
    }

    pub(super) fn on_show_job(&self, job: JobId, reply: Reply<Box<JobView>>) {
        let running = self.node.jobs().find(|(id, _)| *id == job);
        if let Some((_, view)) = running {
            let why = self.jobs.get(&job).map(|own| own.why.clone()).unwrap_or_default();
            let view = JobView {
                job: job.to_string(),
                role: "consumer".to_owned(),
                state: if view.phase == "running" { "running" } else { "placed" }.to_owned(),
                detail: view.phase.to_owned(),
                model: self.model_names().remove(&view.model).unwrap_or_else(|| view.model.to_string()),
                peer: view.provider.map(|node| node.to_string()).unwrap_or_default(),
                tokens_out: view.tokens,
                started_ms: view.submitted.0,
                why,
                ..JobView::default()
            };
            return answer(reply, Ok(Box::new(view)));
        }
        let asker = match self.asker() {
            Ok(asker) => asker,
            Err(failure) => return answer(reply, Err(failure)),
        };
        let me = self.node.id();
        let ended = self.ended.find(job);
        let is_coming = ended.is_some_and(|ended| ended.accounted);
        let known = ended.map(|ended| (ended.view(), ended.accounted));
        tokio::task::spawn_blocking(move || {
            let found =
                recorded(&asker, job, is_coming).map_err(|error| Failure::internal(error.to_string()));
            let view = found.and_then(|record| match (record, known) {
                (Some(record), known) => {
                    let why = known.map(|(known, _)| known.why).unwrap_or_default();
                    Ok(JobView { why, ..job_view(&asker, &record, me)? })
                }
                (None, Some((known, false))) => Ok(known),
                (None, _) => {
                    Err(Failure::new(FailureKind::NotFound, format!("no job {job} in this node's ledger")))
                }
            });
            answer(reply, view.map(Box::new));
        });
    }
}

/// Returns the record of a job. That of one which has just ended is in the index a moment later.
fn recorded(asker: &Asker, job: JobId, is_coming: bool) -> Result<Option<JobRecord>, StoreError> {
    let looks = if is_coming { INDEX_LOOKS } else { 1 };
    for look in 1..=looks {
        let found = asker.job(job)?;
        if found.is_some() || look == looks {
            return Ok(found);
        }
        std::thread::sleep(INDEX_PAUSE);
    }
    Ok(None)
}

pub(super) fn broken(error: StoreError) -> Failure {
    Failure::new(FailureKind::Unavailable, format!("{error}: try again in a moment")).retry_after(1000)
}

pub(super) fn receipts(asker: &Asker, limit: u32, before: Option<&str>) -> Result<ReceiptsView, Failure> {
    let before = match before {
        None => None,
        Some(id) => Some(one_receipt(asker, id)?.0),
    };
    let page = asker.receipts(limit as usize, before).map_err(broken)?;
    let next =
        if page.len() == limit as usize { page.last().map(|(_, entry)| entry.id.to_string()) } else { None };
    let receipts = page.iter().map(|(_, entry)| receipt_view(asker, entry)).collect::<Result<_, _>>()?;
    Ok(ReceiptsView { receipts, next })
}

pub(super) fn one_receipt(asker: &Asker, id: &str) -> Result<(Position, ReceiptEntry), Failure> {
    let even = &id[..id.len() / 2 * 2];
    let prefix = data_encoding::HEXLOWER_PERMISSIVE.decode(even.as_bytes()).ok().filter(|p| !p.is_empty());
    let prefix =
        prefix.ok_or_else(|| Failure::usage(format!("`{id}` is not the beginning of a receipt's id")))?;
    let mut found = asker.receipts_beginning(&prefix).map_err(broken)?;
    found.retain(|(_, entry)| entry.id.to_string().starts_with(&id.to_ascii_lowercase()));
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(FailureKind::NotFound, format!("no receipt `{id}` in this node's ledger"))),
        _ => Err(Failure::usage(format!("several receipts begin with `{id}`: give more of the id"))),
    }
}

pub(super) fn receipt_view(asker: &Asker, entry: &ReceiptEntry) -> Result<ReceiptView, Failure> {
    let channel = asker.channel(entry.channel).map_err(broken)?;
    let redeemed = asker.redeemed(entry.channel).map_err(broken)?;
    let (paying, payer, payee, model) = channel
        .map_or((false, String::new(), String::new(), String::new()), |c| {
            (c.paying, c.payer.to_string(), c.payee.to_string(), asker.name(c.model))
        });
    Ok(ReceiptView {
        id: entry.id.to_string(),
        channel: entry.channel.to_string(),
        seq: entry.sequence,
        direction: if paying { "paid" } else { "received" }.to_owned(),
        payer,
        payee,
        model,
        cumulative: entry.amount.into(),
        calls: entry.usage.calls,
        tokens_in: entry.usage.tokens_in,
        tokens_out: entry.usage.tokens_out,
        epoch: u64::from(entry.epoch),
        cosigned: entry.cosigned,
        redeemed: redeemed.is_some_and(|redeemed| redeemed.closed || redeemed.amount >= entry.amount),
    })
}

pub(super) fn show_receipt(
    asker: &Asker,
    id: &str,
    me: NodeId,
) -> Result<(Position, ReceiptDetailView), Failure> {
    let (position, entry) = one_receipt(asker, id)?;
    let channel = asker.channel(entry.channel).map_err(broken)?;
    let jobs = asker.jobs_of(entry.channel).map_err(broken)?;
    let views = jobs.jobs.iter().map(|record| job_view_among(asker, record, me, &jobs));
    let jobs = views.collect::<Result<_, _>>()?;
    let (terms, price, split) =
        channel.map_or((String::new(), PriceView::default(), Vec::new()), |channel| {
            let split = split_of(&channel.split, entry.amount);
            (channel.terms.to_string(), price_view(&channel.price), split)
        });
    let receipt = receipt_view(asker, &entry)?;
    let view = ReceiptDetailView {
        receipt,
        terms,
        price,
        split,
        jobs,
        payer_signature: false,
        payee_signature: false,
    };
    Ok((position, view))
}

/// Returns how the full quanta of `amount` are divided, and what waits.
pub(super) fn split_of(lines: &[SplitLine], amount: u64) -> Vec<SplitView> {
    split_between(lines, 0, amount)
}

/// Returns who gets what when the bill of a channel rises from `before` to `after`, without markup. What waits in it for a
/// full quantum is `pending`; what earlier jobs had left in it, and the shares contain, is `carried`.
fn split_between(lines: &[SplitLine], before: u64, after: u64) -> Vec<SplitView> {
    let line = |(line, amount): (SplitLine, u64)| SplitView {
        role: role_name(line.role).to_owned(),
        account: line.account.to_string(),
        bps: u32::from(line.bps),
        amount: amount.into(),
    };
    let shares = shares_of(lines.iter().copied(), before, after).unwrap_or_default();
    let mut views: Vec<SplitView> = shares.into_iter().map(line).collect();
    let mut more = |role: &str, amount: u64| {
        if amount > 0 {
            let (role, account) = (role.to_owned(), String::new());
            views.push(SplitView { role, account, bps: 0, amount: amount.into() });
        }
    };
    more("pending", waiting(after).saturating_sub(waiting(before)));
    more("carried", waiting(before).saturating_sub(waiting(after)));
    views
}

pub(super) fn job_view(asker: &Asker, record: &JobRecord, me: NodeId) -> Result<JobView, Failure> {
    let alone = JobsOf { jobs: Vec::new(), is_whole: true };
    let jobs = record.channel.map_or(Ok(alone), |channel| asker.jobs_of(channel));
    job_view_among(asker, record, me, &jobs.map_err(broken)?)
}

/// Returns what a channel's bill was before a job and after it, without markup: shares fall due by its full quanta. Where not
/// all jobs of the channel are known it is the job's own bill.
fn bills(record: &JobRecord, jobs: &JobsOf) -> (u64, u64) {
    let rank = |job: &JobRecord| (job.end, job.start, job.job);
    let before = jobs.jobs.iter().filter(|job| jobs.is_whole && rank(job) < rank(record));
    let before = before.fold(Usage::default(), |sum, job| sum.plus(&job.usage));
    let cost = |usage: &Usage| record.price.cost(usage).unwrap_or(u64::MAX);
    (cost(&before), cost(&before.plus(&record.usage)))
}

/// What a job cost, and whose that is.
struct Share {
    price: u64,
    builder: Option<BuilderView>,
    /// Nothing where it cannot be known.
    split: Vec<SplitView>,
}

/// Returns what a job cost in a channel with such lines.
fn share_of(record: &JobRecord, lines: &[SplitLine], jobs: &JobsOf) -> Share {
    let (before, after) = bills(record, jobs);
    let split = split_between(lines, before, after);
    let builder = lines.iter().zip(&split).find(|(line, _)| line.role == SplitRole::Builder);
    let builder = builder.map(|(line, share)| BuilderView {
        account: share.account.clone(),
        markup_bps: line.bps,
        amount: share.amount.clone(),
    });
    let markup = builder.as_ref().map_or(0, |builder| builder.amount.nano);
    let price = after.saturating_sub(before).saturating_add(markup);
    Share { price, builder, split: if jobs.is_whole { split } else { Vec::new() } }
}

/// Shows a job; `jobs` are those of its channel.
fn job_view_among(asker: &Asker, record: &JobRecord, me: NodeId, jobs: &JobsOf) -> Result<JobView, Failure> {
    let channel = record.channel.map(|channel| asker.channel(channel)).transpose().map_err(broken)?.flatten();
    let lines = channel.as_ref().map(|channel| channel.split.as_slice()).unwrap_or_default();
    let Share { price, builder, split } = share_of(record, lines, jobs);
    let head =
        record.channel.map(|channel: ChannelId| asker.head(channel)).transpose().map_err(broken)?.flatten();
    let requested = record.requester == me;
    let paid_by = record.channel.zip(channel.as_ref());
    let paid_by = paid_by
        .map(|(id, channel)| PaidByView { account: channel.payer.to_string(), channel: id.to_string() });
    Ok(JobView {
        job: record.job.to_string(),
        role: if requested { "consumer" } else { "provider" }.to_owned(),
        state: if record.finish == Finish::Lost { "failed" } else { "settled" }.to_owned(),
        detail: finish_name(record.finish).to_owned(),
        model: asker.name(record.model),
        peer: if requested { record.provider } else { record.requester }.to_string(),
        tokens_in: u32::try_from(record.usage.tokens_in).unwrap_or(u32::MAX),
        tokens_out: u32::try_from(record.usage.tokens_out).unwrap_or(u32::MAX),
        price: price.into(),
        builder,
        split,
        paid_by,
        receipt: head.filter(|head| head.cosigned).map(|head: ReceiptEntry| RecordId::to_string(&head.id)),
        channel: record.channel.map(|channel| channel.to_string()),
        started_ms: record.start.0,
        ended_ms: Some(record.end.0),
        ..JobView::default()
    })
}

/// Checks, now, the signatures of the receipt at a position of the journal.
pub(in crate::driver) fn signatures_at(
    history: &History,
    position: Position,
    domain: DomainId,
) -> Result<(bool, bool), Failure> {
    use protocol::keys::Scheme;
    use protocol::record::Record;
    use protocol::signed::Role;

    let mut signed = None;
    let before = Position(position.0.saturating_sub(1));
    let read = history.replay(before, position, |_, _, bytes| {
        if let Ok(Record::Receipt(receipt)) = Record::from_bytes(bytes)
            && let Ok(receipt) = receipt.verify(domain, Scheme::Strict)
        {
            signed = Some((receipt.signer(Role::Payer).is_some(), receipt.signer(Role::Payee).is_some()));
        }
    });
    read.map_err(|error| Failure::internal(format!("the journal cannot be read: {error}")))?;
    signed.ok_or_else(|| {
        Failure::new(FailureKind::NotFound, "the receipt was pruned: only what its channel moved is kept")
    })
}

fn step_view(op: &Verified<AccountOp>) -> StepView {
    let (kind, nano) = match &op.body {
        OpBody::OpenChannel(open) => ("channel", open.cap),
        OpBody::Pay { amount, .. } => ("payment", *amount),
        OpBody::Withdraw { amount, .. } => ("withdrawal", *amount),
        OpBody::Expire(_) => ("expiry", 0),
        OpBody::Inception(_) => ("inception", 0),
        OpBody::Rotate(_) => ("rotation", 0),
        OpBody::Noop => ("noop", 0),
    };
    StepView { id: op.id().to_string(), kind: kind.to_owned(), amount: nano.into() }
}

#[cfg(test)]
mod tests {
    use protocol::ids::{AccountId, Digest};
    use protocol::price::Price;
    use protocol::time::Time;

    use super::*;

    fn record(number: u8, calls: u64) -> JobRecord {
        JobRecord {
            job: JobId([number; 16]),
            channel: Some(ChannelId([1; 32])),
            provider: NodeId([2; 32]),
            requester: NodeId([3; 32]),
            model: ModelId([4; 32]),
            usage: Usage { calls, ..Usage::default() },
            price: Price { call: 1_000, ..Price::default() },
            start: Time(0),
            end: Time(number.into()),
            input: Digest([0; 32]),
            output: Digest([0; 32]),
            finish: Finish::Stop,
        }
    }

    #[test]
    fn a_job_of_a_channel_whose_other_jobs_are_not_all_known_has_its_own_price_and_no_split() {
        let line = |role, bps| SplitLine { role, account: AccountId([5; 32]), bps };
        let lines = [line(SplitRole::Provider, 10_000), line(SplitRole::Builder, 500)];
        let own = record(2, 14);
        let share =
            |is_whole| share_of(&own, &lines, &JobsOf { jobs: vec![record(1, 7), own.clone()], is_whole });
        let builder = |share: &Share| share.builder.as_ref().map(|builder| builder.amount.nano);

        let (whole, part) = (share(true), share(false));

        // 7,000 and then 21,000 nano-credits: two quanta are full.
        assert_eq!((whole.price, builder(&whole)), (15_000, Some(1_000)));
        assert!(!whole.split.is_empty());
        // 14,000 by itself: one is.
        assert_eq!((part.price, builder(&part)), (14_500, Some(500)));
        assert!(part.split.is_empty());
    }
}
