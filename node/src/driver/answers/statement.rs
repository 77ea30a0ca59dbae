//! What moved on the account, the channels on which it did, and whatever in the journal has an id.

use protocol::ids::{ChannelId, DomainId, JobId, NodeId, RecordId};
use protocol::ledger::records::OpBody;
use protocol::manifest::Manifest;
use protocol::message::News;
use protocol::record::Record;
use protocol::signed::{Signable, Signed};
use protocol::statement::{Line, Statement};
use protocol::time::Time;

use crate::api::views::{EntryView, FactView, LedgerChannelView, StatementLine, StatementView};
use crate::command::Reply;
use crate::driver::Driver;
use crate::driver::index::{Asker, ChannelEntry};
use crate::exit::{Failure, FailureKind};
use crate::journal::{History, Position};

use super::answer;
use super::ledger::{broken, job_view};

/// Most channels in one answer, newest ones open first.
const CHANNELS_MAX: usize = 1_000;

impl Driver {
    pub(super) fn on_channels(&self, reply: Reply<Vec<LedgerChannelView>>) {
        let asker = match self.asker() {
            Ok(asker) => asker,
            Err(failure) => return answer(reply, Err(failure)),
        };
        let open = self.node.channels();
        tokio::task::spawn_blocking(move || answer(reply, channels(&asker, &open)));
    }

    pub(super) fn on_statement(
        &self,
        (from, to): (Option<String>, Option<String>),
        reply: Reply<StatementView>,
    ) {
        let manifest = Manifest::clone(self.node.manifest());
        let now = manifest.epoch(self.now()).0;
        let epoch = |text: Option<String>, otherwise, ends| {
            text.map_or(Ok(otherwise), |text| epoch_of(&text, &manifest, ends))
        };
        let period = epoch(from, 0, false).and_then(|from| Ok((from, epoch(to, now, true)?)));
        let (from, to) = match period {
            Ok(period) => period,
            Err(failure) => return answer(reply, Err(failure)),
        };
        let (me, account) = (self.node.id(), self.node.account());
        let (history, until) = (self.durable.history(), self.durable.position());
        tokio::task::spawn_blocking(move || {
            let mut statement = Statement::new(&manifest, me, account);
            let read = scan(&history, until, |record| statement.take(&record));
            let view = read.and_then(|()| {
                let lines = statement.finish();
                Ok(StatementView { account: account.to_string(), ..period_view(&lines, from, to)? })
            });
            answer(reply, view);
        });
    }

    pub(super) fn on_entry(&self, id: String, reply: Reply<EntryView>) {
        let asker = match self.asker() {
            Ok(asker) => asker,
            Err(failure) => return answer(reply, Err(failure)),
        };
        let (me, domain) = (self.node.id(), self.node.domain());
        let (history, until) = (self.durable.history(), self.durable.position());
        tokio::task::spawn_blocking(move || {
            answer(reply, entry(&asker, &history, until, &id, (me, domain)));
        });
    }
}

fn scan(history: &History, until: Position, mut each: impl FnMut(Record)) -> Result<(), Failure> {
    let read = history.replay(Position::default(), until, |_, _, bytes| {
        if let Ok(record) = Record::from_bytes(bytes) {
            each(record);
        }
    });
    read.map_err(|error| Failure::internal(format!("the journal cannot be read: {error}")))
}

/// Reads an epoch, or a day (UTC): its first epoch, or its last.
fn epoch_of(text: &str, manifest: &Manifest, is_last: bool) -> Result<u32, Failure> {
    if let Ok(epoch) = text.parse() {
        return Ok(epoch);
    }
    let wrong = || Failure::usage(format!("`{text}` is neither an epoch nor a day such as 2026-11-21"));
    let parts: Vec<u64> = text.split('-').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
    let [year, month, day] = parts.as_slice() else { return Err(wrong()) };
    let days = days_since_1970(*year, *month, *day).ok_or_else(wrong)?;
    let ms = days * DAY_MS + if is_last { DAY_MS - 1 } else { 0 };
    Ok(manifest.epoch(Time(ms)).0)
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Counts the days from 1970 to a day of the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1970..10_000).contains(&year) || !(1..=length).contains(&day) {
        return None;
    }
    let leaps = (1970..year).filter(|year| is_leap(*year)).count() as u64;
    let before = BEFORE[usize::try_from(month - 1).ok()?] + u64::from(month > 2 && is_leap(year));
    Some((year - 1970) * 365 + leaps + before + day - 1)
}

fn period_view(lines: &[Line], from: u32, to: u32) -> Result<StatementView, Failure> {
    if from > to {
        return Err(Failure::usage(format!(
            "the period ends with epoch {to}, before it begins with epoch {from}"
        )));
    }
    let sum = |until: Option<u32>| {
        let within = lines.iter().filter(|line| until.is_some_and(|until| line.epoch.0 <= until));
        let (credit, debit) = within.fold((0_u128, 0_u128), |(credit, debit), line| {
            (credit + u128::from(line.credit), debit + u128::from(line.debit))
        });
        u64::try_from(credit.saturating_sub(debit)).unwrap_or(u64::MAX)
    };
    let shown = lines.iter().filter(|line| (from..=to).contains(&line.epoch.0));
    Ok(StatementView {
        account: String::new(),
        from,
        to,
        opening: sum(from.checked_sub(1)).into(),
        lines: shown.map(line_view).collect(),
        closing: sum(Some(to)).into(),
    })
}

fn line_view(line: &Line) -> StatementLine {
    StatementLine {
        epoch: line.epoch.0,
        kind: line.kind.name().to_owned(),
        credit: line.credit.into(),
        debit: line.debit.into(),
        partner: line.partner.map(|account| account.to_string()),
        record: line.record.map(|record| record.to_string()),
        channel: line.channel.map(|channel| channel.to_string()),
    }
}

fn channels(asker: &Asker, open: &[protocol::node::ChannelView]) -> Result<Vec<LedgerChannelView>, Failure> {
    let mut views = Vec::new();
    for view in open.iter().take(CHANNELS_MAX) {
        let known = asker.channel(view.channel).map_err(broken)?;
        let partner = known.map_or(String::new(), |known| partner_of(&known));
        views.push(LedgerChannelView {
            id: view.channel.to_string(),
            side: side(view.paying),
            state: if view.closing { "closing" } else { "open" }.to_owned(),
            partner,
            model: asker.name(view.model),
            cap: view.cap.into(),
            room: view.room.into(),
            paid: view.paid.into(),
            redeemed: view.redeemed.into(),
            receipt: (view.head != RecordId::NONE).then(|| view.head.to_string()),
            expires: Some(view.expires.0),
        });
    }
    let left = CHANNELS_MAX.saturating_sub(views.len());
    let ended = asker.channels().map_err(broken)?;
    let ended = ended.into_iter().filter(|(id, _)| !open.iter().any(|view| view.channel == *id));
    for (id, known) in ended.take(left) {
        views.push(ended_view(asker, id, &known)?);
    }
    Ok(views)
}

fn ended_view(asker: &Asker, id: ChannelId, known: &ChannelEntry) -> Result<LedgerChannelView, Failure> {
    let head = asker.head(id).map_err(broken)?;
    let redeemed = asker.redeemed(id).map_err(broken)?;
    Ok(LedgerChannelView {
        id: id.to_string(),
        side: side(known.paying),
        state: "ended".to_owned(),
        partner: partner_of(known),
        model: asker.name(known.model),
        cap: known.cap.into(),
        room: 0.into(),
        paid: head.as_ref().map_or(0, |head| head.amount).into(),
        redeemed: redeemed.map_or(0, |redeemed| redeemed.amount).into(),
        receipt: head.map(|head| head.id.to_string()),
        expires: None,
    })
}

fn side(paying: bool) -> String {
    if paying { "paying" } else { "paid" }.to_owned()
}

fn partner_of(channel: &ChannelEntry) -> String {
    if channel.paying { channel.payee } else { channel.payer }.to_string()
}

/// Finds what has an id that begins so: a job, a channel, a step or a deposit.
fn entry(
    asker: &Asker,
    history: &History,
    until: Position,
    id: &str,
    (me, domain): (NodeId, DomainId),
) -> Result<EntryView, Failure> {
    if let Ok(job) = id.parse::<JobId>()
        && let Some(record) = asker.job(job).map_err(broken)?
    {
        return Ok(job_entry(&job_view(asker, &record, me)?));
    }
    let mut found: Vec<EntryView> = Vec::new();
    scan(history, until, |record| {
        for view in entries_of(&record, domain) {
            if view.id.starts_with(id) && !found.iter().any(|known| known.id == view.id) {
                found.push(view);
            }
        }
    })?;
    let mut view = match found.as_slice() {
        [one] => one.clone(),
        [] => {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!("nothing begins with `{id}` in this node's ledger"),
            ));
        }
        _ => return Err(Failure::usage(format!("several ids begin with `{id}`: give more of it"))),
    };
    if view.kind == "channel"
        && let Ok(channel) = view.id.parse::<ChannelId>()
    {
        let head = asker.head(channel).map_err(broken)?;
        view.follow.extend(head.map(|head| fact("receipt", head.id.to_string())));
        let jobs = asker.jobs_of(channel).map_err(broken)?.jobs;
        view.follow.extend(jobs.iter().map(|job| fact("job", job.job.to_string())));
    }
    Ok(view)
}

fn job_entry(job: &crate::api::views::JobView) -> EntryView {
    let facts = [
        ("role", job.role.clone()),
        ("state", job.state.clone()),
        ("model", job.model.clone()),
        ("peer", job.peer.clone()),
        ("tokens", format!("{} in, {} out", job.tokens_in, job.tokens_out)),
        ("price", job.price.to_string()),
    ];
    let facts = facts.into_iter().map(|(name, value)| fact(name, value)).collect();
    let receipt = job.receipt.clone().map(|receipt| fact("receipt", receipt));
    let channel = job.channel.clone().map(|channel| fact("channel", channel));
    let follow = receipt.into_iter().chain(channel).collect();
    EntryView { kind: "job".to_owned(), id: job.job.clone(), facts, follow }
}

fn fact(name: &str, value: String) -> FactView {
    FactView { name: name.to_owned(), value }
}

/// Returns what a record of the journal shows under an id of its own.
fn entries_of(record: &Record, domain: DomainId) -> Vec<EntryView> {
    fn read<T: Signable>(record: &Signed<T>, domain: DomainId) -> Option<(T, RecordId)> {
        record.peek_in(domain).map(|(value, id, _)| (value, id))
    }
    let deposit = |deposit: &Signed<_>| read(deposit, domain).map(|(value, id)| deposit_entry(&value, id));
    let step = |op: &Signed<_>| read(op, domain).map(|(value, id)| step_entry(&value, id));
    let found = match record {
        Record::Joined { deposit: Some(paid_in), .. }
        | Record::Admitted { deposit: Some(paid_in), .. }
        | Record::Deposited(paid_in) => deposit(paid_in),
        Record::Step { op, .. } | Record::Stepped { op, .. } => step(op),
        Record::Certified { certificate, .. } => step(&certificate.op),
        Record::Paying(opening) | Record::Paid(opening) | Record::Lent { opening, .. } => step(&opening.op),
        Record::Noticed(News::Deposit(paid_in)) => deposit(paid_in),
        Record::Noticed(News::Step(certificate)) => step(&certificate.op),
        Record::Joined { .. }
        | Record::Admitted { .. }
        | Record::Receipt(_)
        | Record::Job(_)
        | Record::Final(_)
        | Record::Redeemed(_)
        | Record::Ticket { .. }
        | Record::PaidOut { .. }
        | Record::Closed(_)
        | Record::Expired(_)
        | Record::Taken(_)
        | Record::Text(_)
        | Record::WithdrawalPaid(_)
        | Record::Books(_)
        | Record::Lineage(_)
        | Record::Authorised { .. }
        | Record::Delegated { .. }
        | Record::Kept { .. }
        | Record::Over(_)
        | Record::Recovering
        | Record::Ended { .. }
        | Record::Recovered(_)
        | Record::Missing(_)
        | Record::Forward(_)
        | Record::GivenUp(_)
        | Record::Moved(_)
        | Record::Voted { .. }
        | Record::Endorsed { .. }
        | Record::Promised { .. }
        | Record::Counted { .. }
        | Record::Vouched(_)
        | Record::Concluded(_)
        | Record::Agreed(_) => None,
    };
    found.into_iter().collect()
}

fn deposit_entry(deposit: &protocol::ledger::records::Deposit, id: RecordId) -> EntryView {
    let facts = [
        ("account", deposit.account.to_string()),
        ("amount", crate::api::views::Money::from_nano(deposit.amount).to_string()),
        ("epoch", deposit.epoch.0.to_string()),
        ("reference", deposit.reference.to_string()),
    ];
    let facts = facts.into_iter().map(|(name, value)| fact(name, value)).collect();
    EntryView { kind: "deposit".to_owned(), id: id.to_string(), facts, follow: Vec::new() }
}

fn step_entry(op: &protocol::ledger::records::AccountOp, id: RecordId) -> EntryView {
    let money = |nano: u64| crate::api::views::Money::from_nano(nano).to_string();
    let mut facts = vec![
        fact("account", op.account.to_string()),
        fact("position", op.sequence.to_string()),
        fact("epoch", op.epoch.0.to_string()),
    ];
    let mut follow = Vec::new();
    let kind = match &op.body {
        OpBody::OpenChannel(open) => {
            facts.extend([fact("payee", open.payee.to_string()), fact("cap", money(open.cap))]);
            "channel"
        }
        OpBody::Expire(channel) => {
            follow.push(fact("channel", channel.to_string()));
            "step"
        }
        OpBody::Pay { to, amount } => {
            facts.extend([fact("paid to", to.to_string()), fact("amount", money(*amount))]);
            "step"
        }
        OpBody::Withdraw { amount, .. } => {
            facts.push(fact("withdrawn", money(*amount)));
            "step"
        }
        OpBody::Inception(keys) | OpBody::Rotate(keys) => {
            facts.push(fact("key", data_encoding::HEXLOWER.encode(&keys.key.0)));
            "step"
        }
        OpBody::Noop => "step",
    };
    if op.previous != RecordId::NONE {
        follow.push(fact("step before", op.previous.to_string()));
    }
    EntryView { kind: kind.to_owned(), id: id.to_string(), facts, follow }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::ledger::records::Epoch;
    use protocol::statement::Kind;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(days_since_1970(1970, 1, 1), Some(0));
        assert_eq!(days_since_1970(2000, 2, 29), Some(11_016));
        assert_eq!(days_since_1970(2026, 11, 21), Some(20_778));
        assert_eq!(days_since_1970(2100, 3, 1), Some(47_541));
        assert_eq!((days_since_1970(2026, 2, 29), days_since_1970(2026, 13, 1)), (None, None));
    }

    #[test]
    fn a_period_begins_with_what_was_there_before_it() {
        let line = |epoch, credit, debit| Line {
            epoch: Epoch(epoch),
            kind: Kind::Deposit,
            credit,
            debit,
            partner: None,
            record: None,
            channel: None,
        };
        let lines = [line(0, 10, 0), line(1, 0, 3), line(2, 5, 0)];

        let view = period_view(&lines, 1, 1).expect("in order");
        assert_eq!((view.opening.nano, view.lines.len(), view.closing.nano), (10, 1, 7));
        assert_eq!(period_view(&lines, 0, 9).expect("in order").closing.nano, 12);
        assert!(period_view(&lines, 2, 1).is_err());
    }
}
