//! One message of every kind, and one line of a journal of every kind.

use protocol::agreeing::{AgreedRecord, Agreeing};
use protocol::books::{BooksMessage, BooksRecord, LeafKind, Leaves, PageName};
use protocol::encoding::{decode, encode};
use protocol::forward::{AccountEntry, ChannelEntry, Entry, Forward, Happened, HeldEntry, Totals};
use protocol::ids::{Digest, JobId};
use protocol::job::{Constraints, Finish, Input, JobRecord, JobSpec, Sampling, Sort, Trace};
use protocol::keys::Scheme;
use protocol::ledger::checkpoint::Checkpoint;
use protocol::ledger::equivocation::Equivocation;
use protocol::ledger::issuer::{Balance, Booked, IssuerError, Routed, Withdrawal};
use protocol::ledger::merkle::Tree;
use protocol::ledger::quorum::{Certificate, EndCertificate, Fact};
use protocol::ledger::records::{Markup, Terms, TermsError};
use protocol::message::{Head, Heads, JoinError, Kept, Message, News, Opening, SpendRefusal, Wire};
use protocol::model::Modality;
use protocol::price::Usage;
use protocol::record::Record;
use protocol::scheduler::Refusal;
use protocol::signed::Role;
use protocol::statement::{Kind, Line};
use protocol::time::Time;

use crate::enums::{first_word, variants};
use crate::samples::{self, CHANNEL, DOMAIN, EPOCH, JOB, MODEL};

const BALANCE: Balance = Balance { cash: 1_000_000, earned: 300, held: 20_000, as_of: 17 };

fn opening() -> Opening<Wire> {
    Opening {
        op: samples::open_channel().signed(),
        terms: samples::terms().signed(),
        recorded: vec![samples::recorded().signed()],
    }
}

fn heads() -> Message<Wire> {
    let head = Head {
        channel: CHANNEL,
        amount: 414_000,
        receipt: samples::receipt().id(),
        due: 400_000,
        counted: 414_000,
    };
    Message::Heads(Heads::pages(vec![head]).remove(0))
}

fn kept() -> Kept<Wire> {
    Kept { opening: opening(), receipt: Some(samples::receipt().signed()) }
}

fn booked() -> Booked {
    Booked {
        channel: CHANNEL,
        payer: samples::open_channel().account,
        payee: samples::name(&samples::node()),
        expires: EPOCH,
        redeemed: 400_000,
        closed: false,
    }
}

fn markup() -> Markup {
    Markup { builder: samples::id(&samples::signer(7)), bps: 250 }
}

fn routed() -> Routed {
    Routed {
        channel: CHANNEL,
        payer: samples::open_channel().account,
        bps: markup().bps,
        redeemed: 400_000,
        closed: false,
        epoch: EPOCH,
    }
}

fn spec() -> JobSpec {
    let sampling = Sampling {
        temperature_milli: 700,
        top_p_milli: 950,
        top_k: 40,
        repetition_penalty_milli: 1_100,
        seed: 42,
    };
    let constraints = Constraints {
        price_max: Some(5_000_000),
        only: Box::new([samples::name(&samples::node())]),
        ignore: Box::default(),
        sort: Sort::Price,
        order: Box::new([samples::name(&samples::node())]),
    };
    let input = Input { digest: Digest::of(b"prompt"), bytes: 6, modality: Modality::Text };
    let (markup, trace) = (Some(markup()), Trace([0x61; 16]));
    JobSpec { model: MODEL, input, sampling, max_tokens: 200, constraints, markup, trace }
}

fn job_record() -> JobRecord {
    JobRecord {
        job: JOB,
        channel: Some(CHANNEL),
        provider: samples::name(&samples::node()),
        requester: samples::name(&samples::signer(6)),
        model: MODEL,
        usage: Usage { calls: 1, tokens_in: 12, tokens_out: 96, compute: 0 },
        price: samples::price(),
        start: Time(1_700_000_000_000),
        end: Time(1_700_000_002_500),
        input: Digest::of(b"prompt"),
        output: Digest::of(b"tokens"),
        finish: Finish::Length,
    }
}

fn certificate() -> Certificate<Wire> {
    let votes = vec![samples::vote().signed()];
    Certificate { op: samples::open_channel().signed(), terms: Some(samples::terms().signed()), votes }
}

/// Returns a message of every kind, in the order of their numbers.
pub(crate) fn messages() -> Vec<Message<Wire>> {
    let (account, op) = (samples::id(&samples::account()), samples::open_channel().id());
    vec![
        Message::Hello {
            device: samples::device().signed(),
            lineage: Some(samples::lineage().signed()),
            membership: Some(samples::membership().signed()),
            advert: Some(samples::advert().signed()),
            asks: true,
        },
        Message::Join { secret: [0x60; 16] },
        Message::Joined {
            membership: samples::membership().signed(),
            deposit: Some(samples::deposit().signed()),
        },
        Message::JoinRefused(JoinError::Deposit(IssuerError::Budget { left: 12 })),
        Message::Advert(samples::advert().signed()),
        Message::AdvertQuery,
        Message::Ask { job: JOB, model: MODEL, account, markup: Some(markup()) },
        Message::Offer { job: JOB, terms: samples::terms().signed() },
        Message::Refused {
            job: JOB,
            refusal: Refusal::PromptTooLong { tokens: 9_000, context: 8_192, text: Some(3) },
        },
        Message::AccountQuery,
        Message::AccountState { account, next: 8, head: op, balance: BALANCE },
        Message::Step { op: samples::open_channel().signed(), terms: Some(samples::terms().signed()) },
        Message::Stepped {
            vote: samples::vote().signed(),
            recorded: samples::recorded().signed(),
            balance: BALANCE,
        },
        Message::StepRefused { op, error: IssuerError::BadTerms(TermsError::Floor), balance: BALANCE },
        Message::Submit { job: JOB, spec: spec(), channel: Some(CHANNEL), opening: Some(opening()) },
        Message::Accepted(samples::accepted().signed()),
        Message::Pay { receipt: samples::receipt().signed(), allowances: vec![(JOB, 96)] },
        Message::CoSigned(samples::receipt().signed()),
        Message::Finished { record: job_record(), jobs: Digest::of(b"jobs") },
        Message::Failed { job: JOB, tokens_out: 3, reason: "out of memory".to_owned() },
        Message::Cancel { job: JobId([0x11; 16]) },
        heads(),
        Message::Redeem { receipt: samples::receipt().signed(), claim: samples::claim().signed() },
        Message::Redeemed(samples::redeem_ack().signed()),
        Message::Close { closing: samples::closing().signed(), opening: Some(opening()) },
        Message::Notice(News::Step(certificate())),
        Message::Noticed(op),
        Message::Payout { step: samples::withdrawal().id(), to: "bank account 1".to_owned() },
        Message::Withdrawal {
            step: samples::withdrawal().id(),
            paid: Some(samples::withdrawal_paid().signed()),
        },
        Message::Books(BooksMessage::Checkpoint(samples::checkpoint().signed())),
        Message::Lineage(samples::lineage().signed()),
        Message::Devices {
            devices: vec![samples::device().signed()],
            lineage: Some(samples::lineage().signed()),
        },
        Message::Spend {
            request: 21,
            terms: samples::terms().signed(),
            cap: 1_000_000,
            payer_key: samples::signer(4).public(),
        },
        Message::Spent(opening()),
        Message::SpendRefused { request: 21, refusal: SpendRefusal::Budget { left: 5 } },
        Message::Keep(vec![kept()]),
        Message::Kept { entries: vec![Kept { receipt: None, ..kept() }], last: true },
        Message::Compare(vec![0; 19]),
        Message::Compared(vec![0; 2]),
        Message::KeptQuery(vec![samples::receipt().id()]),
        Message::Over(vec![CHANNEL]),
        Message::RedeemKept(samples::receipt().signed()),
        Message::RedeemedKept(samples::receipt().id()),
        Message::ChannelsQuery(CHANNEL),
        Message::Channels { channels: vec![booked()], last: true },
        Message::Recover(CHANNEL),
        Message::Voted { vote: samples::vote().signed(), balance: BALANCE },
        Message::Recorded { recorded: samples::recorded().signed(), balance: BALANCE },
        Message::Fact(Fact::Step(certificate())),
        Message::Deposit(samples::deposit().signed()),
        Message::CloseVoted(samples::close_vote().signed()),
        Message::FactsQuery(7),
        Message::Facts { first: 7, names: vec![op] },
        Message::FactQuery(vec![op]),
        Message::Agreeing(Agreeing::Ballot(samples::ballot().signed())),
        Message::Clock(Time(1_795_290_000_000)),
        Message::Markups(vec![routed()]),
        Message::MarkupsNoted(vec![routed()]),
        Message::Confirm(vec![samples::redeem_ack().signed()]),
        Message::Confirmed { channel: CHANNEL, amount: 414_000 },
    ]
}

/// Returns what issuers say to agree on a checkpoint, in the order of the numbers.
pub(crate) fn agreeing() -> Vec<Agreeing<Wire>> {
    let (previous, checkpoint) = (samples::checkpoint().previous, samples::checkpoint());
    let facts = checkpoint.facts;
    vec![
        Agreeing::Round { previous, round: 2 },
        Agreeing::Proposal {
            round: 2,
            checkpoint: Box::new(Checkpoint::clone(&checkpoint)),
            prepares: vec![samples::ballot().signed()],
        },
        Agreeing::NamesQuery { facts, from: 1_024 },
        Agreeing::Names { facts, from: 1_024, names: vec![samples::withdrawal().id()] },
        Agreeing::Ballot(samples::ballot().signed()),
        Agreeing::Signed(checkpoint.signed()),
        Agreeing::Locked(samples::withdrawal().signed()),
    ]
}

/// Returns what can be handed from issuer to issuer, in the order of the numbers.
pub(crate) fn facts() -> Vec<Fact<Wire>> {
    vec![
        Fact::Deposit(samples::deposit().signed()),
        Fact::Step(certificate()),
        Fact::End(EndCertificate { votes: vec![samples::close_vote().signed()] }),
        Fact::Paid(samples::withdrawal_paid().signed()),
        Fact::Redeemed { receipt: samples::receipt().signed(), claim: Some(samples::claim().signed()) },
        Fact::Doubled(samples::withdrawal().signed(), samples::open_channel().signed()),
        Fact::Lapsed(samples::withdrawal().signed()),
    ]
}

/// Returns what an issuer keeps of an agreement, in the order of the numbers.
pub(crate) fn agreed() -> Vec<AgreedRecord> {
    let fact = || facts().remove(4);
    vec![
        AgreedRecord::Taken(fact()),
        AgreedRecord::Learned(fact()),
        AgreedRecord::Names(vec![samples::withdrawal().id()]),
        AgreedRecord::Candidate(Checkpoint::clone(&samples::checkpoint())),
        AgreedRecord::Frozen {
            epoch: EPOCH,
            slots: vec![(samples::account_leaf().account, 8)],
            channels: vec![CHANNEL],
        },
        AgreedRecord::Balloted {
            ballot: samples::ballot().signed(),
            prepares: vec![samples::ballot().signed()],
        },
        AgreedRecord::Signed(samples::checkpoint().signed()),
        AgreedRecord::Adopted(samples::checkpoint().signed()),
    ]
}

/// Returns what is said of the issuers' books, in the order of the numbers.
pub(crate) fn books() -> Vec<BooksMessage<Wire>> {
    let checkpoint = samples::checkpoint().id();
    let tree = Tree::new(vec![samples::account_leaf()]).expect("one");
    let proof = tree.prove(samples::account_leaf().account.0).map(|proof| (proof, 17));
    let name = PageName { checkpoint, kind: LeafKind::Accounts, after: Some([2; 32]) };
    vec![
        BooksMessage::Checkpoint(samples::checkpoint().signed()),
        BooksMessage::Query(Some(checkpoint)),
        BooksMessage::LeafQuery,
        BooksMessage::Leaf { checkpoint, proof },
        BooksMessage::Equivocation(equivocation()),
        BooksMessage::PageQuery(name),
        BooksMessage::Page(name, Leaves::Accounts(vec![samples::account_leaf()], None)),
    ]
}

fn equivocation() -> Equivocation<Wire> {
    let proof = Equivocation::of_checkpoints(samples::checkpoint(), samples::other_checkpoint());
    proof.expect("one epoch, one signer").signed()
}

#[test]
fn everything_that_is_said_of_books_is_listed_and_read_back() {
    let books = books();
    let names: Vec<_> = books.iter().map(first_word).collect();
    assert_eq!(names, variants::<BooksMessage<Wire>>());

    for message in books {
        let message = Message::Books(message);
        let read = Message::check(&message.to_bytes(), DOMAIN, Scheme::Strict);
        assert_eq!(read.expect("well formed").to_wire(), message);
    }
}

/// Returns every kind of entry by which books are brought forward, in the order of their numbers.
pub(crate) fn entries() -> Vec<Entry> {
    let terms = samples::terms();
    let held = HeldEntry { earned: 600_000, cash: 400_000 };
    let account = AccountEntry {
        account: booked().payer,
        balance: Balance { cash: 5_000_000, earned: 7, held: 586_000, as_of: 12 },
        next: 3,
        head: Some(samples::withdrawal().id()),
        channels: 1,
        lineage: Some(samples::lineage().signed()),
    };
    let channel = ChannelEntry {
        channel: CHANNEL,
        payer: booked().payer,
        payer_node: booked().payee,
        payer_key: terms.payee_key,
        terms: Terms::clone(&terms),
        cap: 1_000_000,
        held: HeldEntry { earned: 186_000, ..held },
        opened: held,
        redeemed: 414_000,
        expires: EPOCH.plus(3),
        closed: false,
        ended: false,
        kept_to: None,
    };
    let withdrawal = Withdrawal {
        account: booked().payer,
        amount: 2_000_000,
        payout: Digest::of(b"bank account 1"),
        epoch: EPOCH,
        paid: None,
        is_settled: true,
    };
    vec![
        Entry::Totals(Totals { deposited: 12_000_000, given: 10_000_000, withdrawn: 2_000_000 }),
        Entry::Account(Box::new(account)),
        Entry::Channel(Box::new(channel)),
        Entry::Due(EPOCH.plus(6), CHANNEL),
        Entry::Booked { reference: Digest::of(b"secret"), account: booked().payer, amount: 10_000_000 },
        Entry::Withdrawal(samples::withdrawal().id(), withdrawal),
        Entry::Payout(samples::withdrawal_paid().signed()),
        Entry::Ticket { fingerprint: Digest::of(b"unused"), amount: 5 },
        Entry::Admitted {
            fingerprint: Digest::of(b"secret"),
            membership: samples::membership().signed(),
            deposit: Some(samples::deposit().signed()),
        },
        Entry::News {
            number: 1,
            node: None,
            what: Happened::Step { op: samples::withdrawal().signed(), epoch: EPOCH },
        },
        Entry::Told(1),
    ]
}

#[test]
fn every_entry_of_books_is_listed() {
    let listed: Vec<_> = entries().iter().map(first_word).collect();
    assert_eq!(listed, variants::<Entry>());
}

/// Returns a journal line of every kind, in the order of their numbers.
pub(crate) fn lines() -> Vec<Record> {
    let step = || (samples::open_channel().signed(), Some(samples::terms().signed()));
    let (op, terms) = step();
    let (stepped, its_terms) = step();
    vec![
        Record::Joined {
            membership: samples::membership().signed(),
            deposit: Some(samples::deposit().signed()),
        },
        Record::Step { op, terms },
        Record::Paying(opening()),
        Record::Paid(opening()),
        Record::Receipt(samples::receipt().signed()),
        Record::Job(job_record()),
        Record::Final(samples::closing().signed()),
        Record::Redeemed(samples::redeem_ack().signed()),
        Record::Ticket { fingerprint: Digest::of(b"secret"), amount: 5 },
        Record::Admitted {
            ticket: Digest::of(b"secret"),
            membership: samples::membership().signed(),
            deposit: None,
        },
        Record::Deposited(samples::deposit().signed()),
        Record::Stepped { op: stepped, terms: its_terms, epoch: EPOCH },
        Record::PaidOut { receipt: samples::receipt().signed(), amount: 400_000 },
        Record::Closed(samples::closing().signed()),
        Record::Expired(EPOCH),
        Record::Taken(samples::recorded().signed()),
        Record::Text("bank account 1".to_owned()),
        Record::WithdrawalPaid(samples::withdrawal_paid().signed()),
        Record::Noticed(News::Deposit(samples::deposit().signed())),
        Record::Books(BooksRecord::Equivocation(equivocation())),
        Record::Lineage(samples::lineage().signed()),
        Record::Authorised { device: samples::device().signed(), until: EPOCH.plus(30), budget: 5_000_000 },
        Record::Delegated { device: samples::device().signed(), lineage: Some(samples::lineage().signed()) },
        Record::Lent { request: 21, opening: opening() },
        Record::Kept { opening: Some(opening()), receipt: samples::receipt().signed() },
        Record::Over(CHANNEL),
        Record::Recovering,
        Record::Ended { channel: CHANNEL, expires: EPOCH, payer: booked().payer },
        Record::Recovered(EPOCH),
        Record::Voted { op: samples::withdrawal().signed(), terms: None, epoch: EPOCH },
        Record::Certified { certificate: certificate(), epoch: EPOCH },
        Record::Endorsed {
            deposit: samples::deposit().signed(),
            proposer: samples::deposit().signer(Role::Issuer).expect("one"),
        },
        Record::Promised { channel: CHANNEL, amount: 414_000 },
        Record::Concluded(EndCertificate { votes: vec![samples::close_vote().signed()] }),
        Record::Vouched(samples::deposit().signed()),
        Record::Agreed(agreed().remove(4)),
        Record::GivenUp(samples::withdrawal().id()),
        Record::Moved(Line {
            epoch: EPOCH,
            kind: Kind::Sold,
            credit: 202_400,
            debit: 0,
            partner: Some(booked().payer),
            record: Some(samples::receipt().id()),
            channel: Some(CHANNEL),
        }),
        Record::Missing(booked()),
        Record::Forward(Forward { part: 0, parts: 1, entries: entries() }),
        Record::Counted { channel: CHANNEL, amount: 414_000 },
    ]
}

#[test]
fn every_message_is_listed_and_read_back() {
    let messages = messages();
    let names: Vec<_> = messages.iter().map(first_word).collect();
    assert_eq!(names, variants::<Message<Wire>>());

    for message in &messages {
        let read = Message::check(&message.to_bytes(), DOMAIN, Scheme::Strict);
        let read = read.unwrap_or_else(|error| panic!("{}: {error}", message.name()));
        assert_eq!(read.to_wire(), *message);
    }
}

#[test]
fn every_line_of_a_journal_is_listed_and_read_back() {
    let lines = lines();
    let names: Vec<_> = lines.iter().map(first_word).collect();
    assert_eq!(names, variants::<Record>());

    for line in &lines {
        assert_eq!(Record::from_bytes(&line.to_bytes()).as_ref(), Ok(line));
    }
}

#[test]
fn everything_about_an_agreement_is_listed_and_read_back() {
    let said: Vec<_> = agreeing().iter().map(first_word).collect();
    assert_eq!(said, variants::<Agreeing<Wire>>());
    for message in agreeing() {
        let message = Message::<Wire>::Agreeing(message);
        let read = Message::check(&message.to_bytes(), DOMAIN, Scheme::Strict).expect("as it was signed");
        assert_eq!(read.to_wire(), message);
    }

    let handed: Vec<_> = facts().iter().map(first_word).collect();
    assert_eq!(handed, variants::<Fact<Wire>>());
    for fact in facts() {
        let message = Message::Fact(fact.clone());
        let read = Message::check(&message.to_bytes(), DOMAIN, Scheme::Strict).expect("as it was signed");
        assert_eq!(read.to_wire(), message);
        assert_eq!(fact.clone().read_back(DOMAIN).expect("our own").signed(), fact);
    }

    let kept: Vec<_> = agreed().iter().map(first_word).collect();
    assert_eq!(kept, variants::<AgreedRecord>());
    for record in agreed() {
        let line = Record::Agreed(record);
        assert_eq!(Record::from_bytes(&line.to_bytes()), Ok(line));
    }
}

#[test]
fn no_message_is_read_in_another_network() {
    let signed = messages().into_iter().filter(|message| {
        let bytes = message.to_bytes();
        Message::check(&bytes, protocol::ids::DomainId([1; 32]), Scheme::Strict).is_ok()
    });
    let unsigned: Vec<_> = signed.map(|message| message.name()).collect();

    assert_eq!(
        unsigned,
        [
            "join",
            "join_refused",
            "advert_query",
            "ask",
            "refused",
            "account_query",
            "account_state",
            "step_refused",
            "finished",
            "failed",
            "cancel",
            "heads",
            "noticed",
            "payout",
            "spend_refused",
            "compare",
            "compared",
            "kept_query",
            "over",
            "redeemed_kept",
            "channels_query",
            "channels",
            "recover",
            "facts_query",
            "facts",
            "fact_query",
            "clock",
            "markups",
            "markups_noted",
            "confirmed",
        ],
        "only what is bound to its connection carries no signature"
    );
}

#[test]
fn a_message_with_a_byte_left_over_or_a_padded_number_is_refused() {
    for message in messages() {
        let bytes = message.to_bytes();
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode::<Message<Wire>>(&longer, 1 << 17).is_err(), "{}", message.name());

        let padded = [&[bytes[0] | 0x80, 0], &bytes[1..]].concat();
        assert!(decode::<Message<Wire>>(&padded, 1 << 17).is_err(), "{}", message.name());
        assert_eq!(encode(&message), bytes);
    }
}
