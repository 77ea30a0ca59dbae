//! What the local API asks of the driver: one bounded queue of commands, each with the way back for its answer.

use std::sync::Arc;

use engine::frame::Generate;
use protocol::ids::Digest;
use protocol::job::{Sort, Trace};
use protocol::ledger::records::Markup;
use tokio::sync::{mpsc, oneshot};

use crate::api::views::{
    AccountView, AuditView, AuthoriseBody, BalanceView, DelegationView, DepositView, EntryView, FeesView,
    GrantView, JobView, LedgerChannelView, PayView, PeerView, ProviderView, PruneView, QuoteView,
    ReceiptDetailView, ReceiptsView, ServedModelView, SettleView, StatementView, StatusView, TicketView,
    VerifyView, WithdrawalView,
};
use crate::exit::{Failure, FailureKind};
use crate::models::ServedModel;
use crate::trace;

pub use engine::frame::Request as Work;

pub use crate::api::views::{CandidateView, JobAccount, JobEvent, SplitView};

/// Bounds the commands that wait for the driver; a full queue is answered "busy" at once.
pub const COMMANDS_MAX: usize = 256;

/// Bounds the answer that can be asked for, because the queue of a job's events has room for all of it.
pub const ANSWER_TOKENS_MAX: u32 = 65_536;

/// Events of a job beside its tokens: choices, acceptance, a last text, the end.
const EVENTS_BESIDE_TOKENS: usize = 64;

/// The name of a job; whoever submits it draws it.
pub type JobId = [u8; 16];

/// The way back for an answer. Whoever asked may have gone: then nobody minds that it is not sent.
pub type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// What is asked of the driver.
#[derive(Debug)]
pub enum Command {
    /// Runs a job. Its events go to `events`, the last of them `Done` or `Failed`.
    ///
    /// `events` has room for one event per token and those beside them ([`events_of`]), so `try_send` never
    /// finds it full. When it is closed, the client has gone: the job is to be cancelled.
    Submit {
        /// The job's id.
        job: JobId,
        /// What to do.
        request: Arc<JobRequest>,
        /// Where its events go.
        events: mpsc::Sender<JobEvent>,
    },
    /// Asks what a job would cost and who would be considered for it; nothing is run.
    Quote {
        /// What it would do.
        request: Arc<JobRequest>,
        /// The way back.
        reply: Reply<QuoteView>,
    },
    /// Ends a job within a token; a job that is not there is not an error.
    Cancel {
        /// The job's id.
        job: JobId,
    },
    /// Asks for this node's state.
    Status(Reply<StatusView>),
    /// Asks who is connected.
    Peers(Reply<Vec<PeerView>>),
    /// Asks who serves what, or who serves `model`.
    Providers {
        /// A model's name or id.
        model: Option<String>,
        /// The way back.
        reply: Reply<Vec<ProviderView>>,
    },
    /// Asks for the models that this node serves.
    Models(Reply<Vec<ServedModelView>>),
    /// Serves one more model; answered when its worker was started, not when it is loaded.
    Load {
        /// The model.
        model: Box<ServedModel>,
        /// The way back.
        reply: Reply<ServedModelView>,
    },
    /// Serves a model no longer.
    Unload {
        /// Its name.
        model: String,
        /// The way back.
        reply: Reply<()>,
    },
    /// Asks what the account has, and at an issuer what everybody has.
    Balance(Reply<BalanceView>),
    /// Asks for receipts, newest first.
    Receipts {
        /// At most so many.
        limit: u32,
        /// Only those after this one in that order, by id.
        before: Option<String>,
        /// The way back.
        reply: Reply<ReceiptsView>,
    },
    /// Asks for a receipt.
    ShowReceipt {
        /// Its id or the unambiguous beginning of it.
        id: String,
        /// The way back.
        reply: Reply<Box<ReceiptDetailView>>,
    },
    /// Asks for a job that this node submitted or served.
    ShowJob {
        /// The job's id.
        job: JobId,
        /// The way back.
        reply: Reply<Box<JobView>>,
    },
    /// Checks every signature and sum of the ledger again.
    Verify(Reply<VerifyView>),
    /// Prunes the journal.
    Prune {
        /// For how many epochs after their end the lines of channels are kept all the same; as configured unless given.
        keep_epochs: Option<u32>,
        /// The way back.
        reply: Reply<PruneView>,
    },
    /// Makes a ticket; only an issuer can.
    Ticket {
        /// The opening amount it carries, out of the budget.
        credits_nano: u64,
        /// How many nodes may use it.
        uses: u32,
        /// The way back.
        reply: Reply<TicketView>,
    },
    /// Deposits out of the budget; only an issuer can.
    Grant {
        /// The account's id.
        account: String,
        /// How much.
        nano: u64,
        /// The way back.
        reply: Reply<GrantView>,
    },
    /// Asks what steps cost.
    Fees(Reply<FeesView>),
    /// Pays an account; answered when the issuer has taken it.
    Pay {
        /// The account's id.
        account: String,
        /// How much.
        nano: u64,
        /// The way back.
        reply: Reply<PayView>,
    },
    /// Takes cash out of the network; answered when the issuer has taken it.
    Withdraw {
        /// How much.
        nano: u64,
        /// Where the operator shall pay it.
        to: String,
        /// The way back.
        reply: Reply<WithdrawalView>,
    },
    /// Asks for the account's withdrawals, and at an issuer for everybody's.
    Withdrawals(Reply<Vec<WithdrawalView>>),
    /// Notes that a withdrawal was paid out; only an issuer can.
    MarkPaid {
        /// The withdrawal's id or its beginning.
        id: String,
        /// The operator's reference.
        reference: String,
        /// The way back.
        reply: Reply<WithdrawalView>,
    },
    /// Books credits that were paid for outside; only an issuer can.
    Deposit {
        /// The account's id.
        account: String,
        /// How much.
        nano: u64,
        /// Names the payment outside.
        reference: String,
        /// The way back.
        reply: Reply<DepositView>,
    },
    /// Asks for the channels, ended ones included.
    Channels(Reply<Vec<LedgerChannelView>>),
    /// Asks what moved on the account.
    Statement {
        /// First epoch, or a day as in 2026-11-21.
        from: Option<String>,
        /// Last epoch, or a day.
        to: Option<String>,
        /// The way back.
        reply: Reply<StatementView>,
    },
    /// Asks for anything that has an id and is no receipt.
    Entry {
        /// Its id or the unambiguous beginning of it.
        id: String,
        /// The way back.
        reply: Reply<EntryView>,
    },
    /// Closes idle channels and redeems now; answered when the issuer has, or after a deadline.
    Settle(Reply<SettleView>),
    /// Computes a checkpoint again from what the issuer serves; answered when everything was compared.
    Audit {
        /// The epoch; none for the newest.
        epoch: Option<u32>,
        /// The way back.
        reply: Reply<Box<AuditView>>,
    },
    /// Asks for the account's key and nodes.
    Account(Reply<AccountView>),
    /// Replaces the account's key; answered when the issuer has, or after a deadline.
    Rotate {
        /// Seed of the promised key.
        seed: [u8; 32],
        /// Promise of the key after it.
        next: Digest,
        /// The way back.
        reply: Reply<AccountView>,
    },
    /// Lets another node act for the account, or no longer.
    Authorise {
        /// Which, and what.
        body: AuthoriseBody,
        /// The way back.
        reply: Reply<DelegationView>,
    },
    /// Ends the node as Ctrl-C does.
    Shutdown(Reply<()>),
}

/// What a job asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRequest {
    /// The model's name or id.
    pub model: String,
    /// What is to be done; validated.
    pub work: Work,
    /// Whether the answer's length is a default, to be lowered to what the model's context holds.
    pub open_ended: bool,
    /// The most that the whole job may cost, in nano-credits.
    pub max_price_nano: Option<u64>,
    /// Only these nodes, by id; empty for all.
    pub only: Vec<String>,
    /// Never these nodes, by id.
    pub ignore: Vec<String>,
    /// What to weigh in choosing one.
    pub sort: Sort,
    /// These nodes first, by id, in this order.
    pub order: Vec<String>,
    /// What a provider must say of itself.
    pub wants: Wants,
    /// Whether another provider may go on with an answer that its provider did not bring to its end.
    pub fallbacks: bool,
    /// Who routed the request, and what they get on top of its price.
    pub markup: Option<Markup>,
    /// Names the request in the logs of both sides.
    pub trace: Trace,
}

/// What adverts must say of those that may serve a job; an empty list is content with anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// How weights are stored, in any case of letters.
    pub quantisations: Vec<String>,
    /// Where the provider says that it is.
    pub regions: Vec<String>,
    /// `community` or `company`.
    pub class: Option<String>,
    /// Thousandths of tokens per second of one answer, which is a wish: without anybody who is as fast, all may serve.
    pub speed_milli: Option<u64>,
}

impl JobRequest {
    /// Makes a request that any provider may serve, at any price.
    #[must_use]
    pub fn new(model: String, work: impl Into<Work>) -> Self {
        Self {
            model,
            work: work.into(),
            open_ended: false,
            max_price_nano: None,
            only: Vec::new(),
            ignore: Vec::new(),
            sort: Sort::default(),
            order: Vec::new(),
            wants: Wants::default(),
            fallbacks: true,
            markup: None,
            trace: trace::current(),
        }
    }

    /// Returns what is asked for, if that is text.
    #[must_use]
    pub fn generate(&self) -> Option<&Generate> {
        match &self.work {
            Work::Generate(generate) => Some(generate),
            Work::Embed(_) => None,
        }
    }

    /// Returns the most parts that the answer may have: tokens, or vectors.
    #[must_use]
    pub fn parts_max(&self) -> usize {
        match &self.work {
            Work::Generate(generate) => generate.max_tokens as usize,
            Work::Embed(embed) => embed.inputs.len(),
        }
    }
}

/// Makes the queue of commands.
#[must_use]
pub fn queue() -> (Commands, mpsc::Receiver<Command>) {
    let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
    (Commands { sender }, receiver)
}

/// Makes the queue of a job's events, with room for all of them.
#[must_use]
pub fn events_of(request: &JobRequest) -> (mpsc::Sender<JobEvent>, mpsc::Receiver<JobEvent>) {
    // Room is a number here, not memory: the queue allocates as it fills.
    mpsc::channel(request.parts_max() + EVENTS_BESIDE_TOKENS)
}

/// The asking end of the queue of commands.
#[derive(Clone, Debug)]
pub struct Commands {
    sender: mpsc::Sender<Command>,
}

impl Commands {
    /// Asks and waits for the answer: `commands.ask(Command::Status).await`.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply))?;
        answer.await.unwrap_or_else(|_| Err(going_down()))
    }

    /// Gives a command whose answer, if any, comes another way.
    pub fn tell(&self, command: Command) -> Result<(), Failure> {
        self.sender.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Failure::new(FailureKind::Busy, "the node has too much to do: try again in a moment")
                    .retry_after(500)
            }
            mpsc::error::TrySendError::Closed(_) => going_down(),
        })
    }

    /// Cancels a job, waiting in the background for room in the queue.
    pub fn cancel(&self, job: JobId) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            // A queue that is gone has no jobs either.
            let _ = sender.send(Command::Cancel { job }).await;
        });
    }
}

fn going_down() -> Failure {
    Failure::new(FailureKind::Unavailable, "the node is going down: start it again with `sharemesh up`")
        .retry_after(5_000)
}

/// Draws the id of a new job.
#[must_use]
pub fn new_job() -> JobId {
    let mut job = JobId::default();
    getrandom::fill(&mut job).expect("the operating system has randomness");
    job
}

/// Reads the id of a job.
pub fn parse_job(text: &str) -> Result<JobId, Failure> {
    let bytes = data_encoding::HEXLOWER.decode(text.to_ascii_lowercase().as_bytes()).ok();
    bytes.and_then(|bytes| JobId::try_from(bytes).ok()).ok_or_else(|| {
        Failure::usage(format!("`{text}` is not the id of a job: write its 32 hexadecimal digits"))
    })
}

/// Writes the id of a job.
#[must_use]
pub fn format_job(job: &JobId) -> String {
    data_encoding::HEXLOWER.encode(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_survives_being_printed_and_parsed() {
        let job = new_job();

        assert_eq!(parse_job(&format_job(&job)), Ok(job));
        assert!(parse_job("12").is_err());
    }

    #[tokio::test]
    async fn a_full_queue_is_answered_at_once() {
        let (commands, _receiver) = queue();
        for _ in 0..COMMANDS_MAX {
            commands.tell(Command::Cancel { job: [0; 16] }).expect("room");
        }

        let failure = commands.ask(Command::Status).await.expect_err("full");

        assert_eq!(failure.kind, FailureKind::Busy);
    }

    #[tokio::test]
    async fn a_driver_that_is_gone_is_said_so() {
        let (commands, receiver) = queue();
        drop(receiver);

        assert_eq!(commands.ask(Command::Status).await.expect_err("gone").kind, FailureKind::Unavailable);
    }
}
