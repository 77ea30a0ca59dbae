//! Answers commands in place of the driver, for tests of what stands in front of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use engine::frame::{Alternative, Embed, EmbedInput, Generate, Prompt, TokenLogprob};
use engine::tools::Turn;
use tokio::sync::mpsc;

use super::views::{
    AccountView, AuditView, BalanceView, CandidateView, DelegationView, DepositView, EntryView, FeesView,
    GrantView, JobAccount, JobEvent, JobView, LedgerChannelView, PayView, ProviderView, PruneView, QuoteView,
    ReceiptDetailView, ReceiptView, ReceiptsView, SettleView, SplitView, StatementLine, StatementView,
    StatusView, TicketView, VerifyView, WithdrawalView,
};
use crate::command::{Command, JobId, JobRequest, Reply, Work, format_job};
use crate::exit::{Failure, FailureKind};

/// What the fake driver was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    cancelled: Arc<Mutex<Vec<JobId>>>,
    submitted: Arc<AtomicUsize>,
}

impl Told {
    pub(crate) fn cancelled(&self) -> Vec<JobId> {
        self.cancelled.lock().expect("alone").clone()
    }

    pub(crate) fn submitted(&self) -> usize {
        self.submitted.load(Ordering::Relaxed)
    }
}

/// What a job costs.
const PRICE_NANO: u64 = 100;

/// Answers until the queue of commands is gone. Models: `echo` answers, `slow` never ends, `half` fails after its first
/// part, `relay` does so at each of its first three tokens, `crash` too because its engine fails, `stuck` has an engine that fails
/// each time after the first, `poor` costs too much, `broken` fails
/// before its first token, `lost` after it without an account, `taken` with more paid ahead than was set aside.
pub(crate) fn spawn(mut commands: mpsc::Receiver<Command>) -> Told {
    let told = Told::default();
    let mut slow = Vec::new();
    let kept = told.clone();
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            if let Command::Cancel { job } = command {
                kept.cancelled.lock().expect("alone").push(job);
                slow.retain(|(other, _)| *other != job);
            } else if let Command::Submit { job, request, events } = command {
                kept.submitted.fetch_add(1, Ordering::Relaxed);
                slow.extend(submit(job, &request, events).map(|events| (job, events)));
            } else {
                answer(command);
            }
        }
    });
    told
}

fn submit(
    job: JobId,
    request: &JobRequest,
    events: mpsc::Sender<JobEvent>,
) -> Option<mpsc::Sender<JobEvent>> {
    let say = |event| events.try_send(event).expect("room for all events");
    let Work::Generate(generate) = &request.work else {
        embed(job, request, say);
        return None;
    };
    let fail =
        |kind, message: &str| say(JobEvent::Failed { failure: Failure::new(kind, message), account: None });
    match request.model.as_str() {
        _ if request.max_price_nano.is_some_and(|most| most < PRICE_NANO) => {
            fail(FailureKind::NoProvider, "everybody asks for more");
        }
        "poor" => fail(FailureKind::NoCredits, "needs 2 credits and has 1: ask the issuer for a grant"),
        "echo" | "slow" | "half" | "lost" | "relay" | "crash" | "stuck" | "broken" | "taken" => {
            let why = vec![CandidateView { node: "aa".to_owned(), chosen: true, ..CandidateView::default() }];
            say(JobEvent::Chosen { job: format_job(&job), provider: "aa".to_owned(), why });
            say(JobEvent::Accepted { tokens_in: 2, price_max: 10.into() });
        }
        _ => fail(FailureKind::NoProvider, "nobody serves this model: see `sharemesh providers`"),
    }
    if request.model == "slow" {
        return Some(events.clone());
    }
    if matches!(request.model.as_str(), "echo" | "half") {
        let text = match &generate.prompt {
            Prompt::Chat(messages) => messages.last().map(|message| message.content.clone()),
            Prompt::Tools(chat) => match chat.turns.last() {
                Some(Turn::Said(message)) => Some(message.content.clone()),
                Some(Turn::Called { content, .. } | Turn::Returned { content, .. }) => Some(content.clone()),
                None => None,
            },
            Prompt::Text(text) => Some(text.clone()),
            Prompt::Tokens(ids) => Some(format!("{ids:?}")),
        };
        let text = text.unwrap_or_default();
        let logprobs = generate.logprobs.map(|_| logprob(&text)).into_iter().collect();
        say(JobEvent::Text { text, index: 0, tokens: 1, ids: Vec::new(), logprobs });
    }
    if matches!(request.model.as_str(), "relay" | "crash" | "stuck") {
        relay(job, request, generate, say);
        return None;
    }
    if request.model == "lost" {
        say(JobEvent::Text { text: "l".into(), index: 0, tokens: 1, ids: vec![0], logprobs: Vec::new() });
    }
    match request.model.as_str() {
        "broken" => fail(FailureKind::WorkerLost, "the engine ended before its first token"),
        "taken" => {
            let failure = Failure::new(FailureKind::ProviderLost, "lost the provider in mid-stream");
            let account = JobAccount { ahead_nano: 1_000, ..account(job) };
            say(JobEvent::Failed { failure, account: Some(Box::new(account)) });
        }
        "echo" => say(JobEvent::Done(Box::new(account(job)))),
        "lost" => fail(FailureKind::Unavailable, "the node goes down"),
        "half" => {
            let failure = Failure::new(FailureKind::ProviderLost, "lost the provider in mid-stream");
            say(JobEvent::Failed { failure, account: Some(Box::new(account(job))) });
        }
        _ => {}
    }
    None
}

/// Gives a vector for each text, of its length and the number of the text in the job; with `half` the provider is lost
/// after the first, and with `short` it says that it is done.
fn embed(job: JobId, request: &JobRequest, say: impl Fn(JobEvent)) {
    let Work::Embed(Embed { inputs, truncate }) = &request.work else { return };
    if !["echo", "half", "short"].contains(&request.model.as_str()) {
        let failure = Failure::new(FailureKind::NoProvider, "nobody serves this model");
        return say(JobEvent::Failed { failure, account: None });
    }
    say(JobEvent::Accepted { tokens_in: 7, price_max: 10.into() });
    let length = |input: &EmbedInput| match input {
        EmbedInput::Text(text) => text.len(),
        EmbedInput::Tokens(ids) => ids.len(),
    };
    let most = if request.model == "echo" { inputs.len() } else { 1 };
    for (index, input) in (0..).zip(inputs).take(most) {
        let vectors = vec![vec![length(input) as f32, index as f32, if *truncate { 0.5 } else { -1.5 }]];
        say(JobEvent::Vectors { index, vectors });
    }
    let provider = format!("p{}", request.ignore.len());
    let account = Box::new(JobAccount { provider, tokens_in: 7, ..account(job) });
    if request.model == "half" {
        let failure = Failure::new(FailureKind::ProviderLost, "lost the provider in mid-stream");
        say(JobEvent::Failed { failure, account: Some(account) });
    } else {
        say(JobEvent::Done(account));
    }
}

/// Gives the next token of an answer of four, and fails unless it was the last. Each provider does so once.
fn relay(job: JobId, request: &JobRequest, generate: &Generate, say: impl Fn(JobEvent)) {
    let index = generate.resume.len();
    assert!(generate.resume.iter().copied().eq(0..4_u32.min(index as u32)), "{request:?}");
    let provider = format!("p{index}");
    assert!(!request.ignore.contains(&provider) || request.model == "stuck", "{request:?}");
    let ids = vec![u32::try_from(index).expect("few")];
    let is_stuck = request.model == "stuck" && index > 0;
    if !is_stuck {
        let text = format!("t{index} ");
        say(JobEvent::Text { text, index: ids[0], tokens: 1, ids, logprobs: Vec::new() });
    }
    let kind = if request.model == "relay" { FailureKind::ProviderLost } else { FailureKind::WorkerLost };
    let account = Box::new(JobAccount { provider, finish: "lost".to_owned(), ..account(job) });
    if index < 3 {
        let failure = Failure::new(kind, "lost the provider in mid-stream");
        say(JobEvent::Failed { failure, account: Some(account) });
    } else {
        say(JobEvent::Done(Box::new(JobAccount { finish: "stop".to_owned(), ..*account })));
    }
}

fn logprob(text: &str) -> TokenLogprob {
    let other = Alternative { id: 1, logprob: -1.5, bytes: b"no".to_vec() };
    TokenLogprob { logprob: -0.5, bytes: text.as_bytes().to_vec(), top: vec![other] }
}

fn account(job: JobId) -> JobAccount {
    JobAccount {
        job: format_job(&job),
        model: "echo".to_owned(),
        provider: "aa".to_owned(),
        provider_name: "there".to_owned(),
        why: "the only one".to_owned(),
        tokens_in: 2,
        tokens_out: 1,
        price: 100.into(),
        split: vec![SplitView {
            role: "provider".to_owned(),
            account: "bb".to_owned(),
            bps: 9_200,
            amount: 92.into(),
        }],
        receipt: Some("cc".to_owned()),
        finish: "stop".to_owned(),
        attempts: 1,
        ..JobAccount::default()
    }
}

fn answer(command: Command) {
    fn say<T>(reply: Reply<T>, answer: T) {
        // The client may have gone.
        let _ = reply.send(Ok(answer));
    }
    match command {
        Command::Submit { .. } | Command::Cancel { .. } => {}
        Command::Quote { reply, .. } => {
            let best = CandidateView { node: "aa".to_owned(), chosen: true, ..CandidateView::default() };
            say(
                reply,
                QuoteView {
                    price_max: Some(100.into()),
                    range: Some((100, 150)),
                    usable: true,
                    resting: false,
                    candidates: vec![best],
                },
            );
        }
        Command::Status(reply) => say(reply, StatusView { ready: true, ..StatusView::default() }),
        Command::Peers(reply) => say(reply, Vec::new()),
        Command::Providers { model, reply } => {
            let name = model.clone().unwrap_or_default();
            let offer = ProviderView { model: name, slots: 4, ..ProviderView::default() };
            say(reply, if model.as_deref() == Some("nobody") { Vec::new() } else { vec![offer] });
        }
        Command::Models(reply) => say(reply, Vec::new()),
        Command::Load { reply, .. } => drop(reply),
        Command::Unload { reply, .. } => say(reply, ()),
        Command::Balance(reply) => say(reply, BalanceView { available: 7.into(), ..BalanceView::default() }),
        Command::Receipts { limit, before, reply } => {
            let receipt =
                ReceiptView { seq: limit.into(), id: before.unwrap_or_default(), ..ReceiptView::default() };
            say(reply, ReceiptsView { receipts: vec![receipt], next: None });
        }
        Command::ShowReceipt { id, reply } => {
            let failure = Failure::new(FailureKind::NotFound, format!("no receipt begins with {id}"));
            let found = if id == "00" { Ok(Box::<ReceiptDetailView>::default()) } else { Err(failure) };
            let _ = reply.send(found);
        }
        Command::ShowJob { job, reply } => {
            say(reply, Box::new(JobView { job: format_job(&job), ..JobView::default() }));
        }
        Command::Prune { reply, .. } => say(reply, PruneView::default()),
        Command::Verify(reply) => say(reply, VerifyView { ok: true, ..VerifyView::default() }),
        Command::Ticket { credits_nano, reply, .. } => {
            let ticket = "sharemesh1fake".to_owned();
            say(reply, TicketView { ticket, credits: credits_nano.into(), ..TicketView::default() });
        }
        Command::Grant { account, nano, reply } => {
            say(reply, GrantView { account, credits: nano.into(), ..GrantView::default() });
        }
        Command::Fees(reply) => say(reply, FeesView { withdraw: 5.into(), ..FeesView::default() }),
        Command::Pay { account, nano, reply } => {
            say(reply, PayView { account, amount: nano.into(), ..PayView::default() });
        }
        Command::Withdraw { nano, to, reply } => {
            say(reply, WithdrawalView { to: Some(to), amount: nano.into(), ..WithdrawalView::default() });
        }
        Command::Withdrawals(reply) => say(reply, vec![WithdrawalView::default()]),
        Command::MarkPaid { id, reference, reply } => {
            say(reply, WithdrawalView { id, reference: Some(reference), ..WithdrawalView::default() });
        }
        Command::Deposit { account, nano, reference, reply } => {
            say(reply, DepositView { account, amount: nano.into(), reference, ..DepositView::default() });
        }
        Command::Channels(reply) => say(reply, vec![LedgerChannelView::default()]),
        Command::Statement { reply, .. } => {
            say(reply, StatementView { lines: vec![StatementLine::default()], ..StatementView::default() });
        }
        Command::Entry { id, reply } => {
            let found = if id == "0e" {
                Ok(EntryView { id, ..EntryView::default() })
            } else {
                Err(Failure::new(FailureKind::NotFound, format!("nothing begins with {id}")))
            };
            let _ = reply.send(found);
        }
        Command::Audit { epoch, reply } => {
            let epoch = u64::from(epoch.unwrap_or(3));
            say(reply, Box::new(AuditView { ok: true, epoch, ..AuditView::default() }));
        }
        Command::Settle(reply) => say(reply, SettleView::default()),
        Command::Account(reply) | Command::Rotate { reply, .. } => {
            say(reply, AccountView { account: "ab".to_owned(), ..AccountView::default() });
        }
        Command::Authorise { body, reply } => {
            say(reply, DelegationView { node: body.node, ..DelegationView::default() });
        }
        Command::Shutdown(reply) => say(reply, ()),
    }
}
