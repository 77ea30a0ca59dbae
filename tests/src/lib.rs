//! Starts whole nodes as separate processes on loopback, asks them what a user would, and ends them.
//!
//! Nothing here sleeps to be in time: what is waited for is looked at again and again until it holds, with a
//! deadline so generous that only a broken node misses it.

mod council;
mod program;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node::api::views::{
    BalanceView, BookView, JobAccount, JobBody, JobEvent, JobView, ReceiptDetailView, ReceiptView,
    ReceiptsView, SettleView, StatusView, TicketBody, TicketView, VerifyView,
};
use node::cli::client::{Client, Events};
use node::exit::{Failure, FailureKind};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

pub use council::{Council, Founded};
pub use program::{Ended, Process, Program};

/// How long anything may take on the slowest machine that these tests run on.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Nano-credits that a consumer is given unless a test says otherwise.
pub const OPENING_NANO: u64 = 2_000_000_000;

/// The fake engine at a pace at which a test has time to do something in mid-stream.
pub const PACED: &str = r#"--fake={"load_ms":0,"fail_to_load":null,"tokens_per_s":100,"prefill_tokens_per_s":0,"context_length":0,"crash_at":null,"hang_at":null}"#;

/// Where a test's nodes live; removed at the end.
#[derive(Debug)]
pub struct Ground {
    folder: TempDir,
    program: Program,
}

impl Ground {
    /// Prepares an empty folder for nodes of `program`.
    #[must_use]
    pub fn new(program: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder can be made");
        let program = Program::new(program, &folder.path().join("cache"));
        Self { folder, program }
    }

    /// Sets a variable in the environment of everything that is started from here on.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &Path) -> Self {
        self.program = self.program.with_env(name, value);
        self
    }

    /// Returns the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the program, to be called as a user calls it.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Returns where the node of this name keeps its data.
    #[must_use]
    pub fn data(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Starts a node and waits until it takes jobs.
    pub async fn start(&self, name: &str, flags: &[&str]) -> Peer {
        let mut peer = self.launch(name, flags).await;
        peer.until_ready().await;
        peer
    }

    /// Starts a node and waits until it can be asked.
    pub async fn launch(&self, name: &str, flags: &[&str]) -> Peer {
        let peer = Peer {
            name: name.to_owned(),
            data: self.data(name),
            log: self.path().join(format!("{name}.log")),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            program: self.program.clone(),
            listen: "127.0.0.1:0".to_owned(),
            process: None,
            client: None,
        };
        peer.up().await
    }

    /// Starts an issuer, a provider of the fake model with `flags`, and a consumer without a model.
    pub async fn trio(&self, flags: &[&str]) -> Trio {
        let issuer = self.start("issuer", &["--dev"]).await;
        let ticket = issuer.ticket(0).await;
        let serving = [&["--join", &ticket, "--serve", "fake"], flags].concat();
        let provider = self.start("provider", &serving).await;
        let consumer = self.start("consumer", &["--join", &issuer.ticket(OPENING_NANO).await]).await;
        let trio = Trio { issuer, provider, consumer };
        trio.consumer.until_provided("fake").await;
        trio
    }
}

/// A home network's issuer, a provider and a consumer.
#[derive(Debug)]
pub struct Trio {
    pub issuer: Peer,
    pub provider: Peer,
    pub consumer: Peer,
}

impl Trio {
    /// Returns all three.
    #[must_use]
    pub fn all(&self) -> [&Peer; 3] {
        [&self.issuer, &self.provider, &self.consumer]
    }

    /// Waits until both ledgers have the same head, then until every channel is closed and every receipt redeemed,
    /// and checks every ledger and that no credit was made or lost.
    pub async fn check_books(&self) {
        self.until_converged().await;
        self.until_settled().await;
        check_sums(&self.all()).await;
    }

    /// Waits until consumer and provider hold the same newest receipt of every channel, signed by both.
    pub async fn until_converged(&self) {
        until("both sides hold the same receipts", async || {
            let paid = self.consumer.heads().await?;
            let received = self.provider.heads().await?;
            (paid == received && received.iter().all(|(.., cosigned)| *cosigned))
                .then_some(())
                .ok_or_else(|| format!("paid {paid:?}, received {received:?}"))
        })
        .await;
    }

    async fn until_settled(&self) {
        until("all channels are closed and redeemed", async || {
            for peer in [&self.consumer, &self.provider] {
                peer.client().post::<SettleView>("ledger/settle", &()).await.map_err(|f| f.message)?;
            }
            // The parties first: a node that was killed may have signed the opening of a channel that the issuer learns
            // of only now, and with nothing under way nobody opens another.
            let (consumer, provider) = (self.consumer.balance().await, self.provider.balance().await);
            let at_issuer = self.issuer.balance().await.books.ok_or("the issuer has no books")?;
            let open = [&consumer, &provider].map(|view| (view.held.nano, view.pending.nano));
            let steps = [consumer, provider].map(|view| view.under_way);
            (at_issuer.held.nano == 0 && open == [(0, 0); 2] && steps == [None, None])
                .then_some(())
                .ok_or_else(|| format!("issuer holds {:?}, parties {open:?}, {steps:?}", at_issuer.held))
        })
        .await;
    }
}

/// Checks that every ledger verifies, and that what the accounts of `members` have is what the issuer's books say,
/// and together with the others' what was ever deposited.
pub async fn check_sums(members: &[&Peer]) {
    let mut books = None;
    for peer in members {
        let verified = peer.verify().await;
        assert!(verified.ok, "{} does not verify: {verified:#?}", peer.name);
        books = books.or(peer.balance().await.books);
    }
    let books = books.expect("one of them is the issuer");
    let total: u64 = books.accounts.iter().map(|b| b.cash.nano + b.earned.nano + b.held.nano).sum();
    assert!(books.conserved, "{books:#?}");
    assert_eq!(total, books.deposited.nano - books.withdrawn.nano, "{books:#?}");
    for peer in members {
        // A node that was restarted has to ask its issuer first.
        until("a member and the issuer agree", async || {
            let own = peer.balance().await;
            let book = books.accounts.iter().find(|book| book.account == own.account);
            let BookView { cash, earned, .. } = book.cloned().unwrap_or_default();
            let agree = (own.cash.nano, own.earned.nano) == (cash.nano, earned.nano);
            if agree { Ok(()) } else { Err(format!("{} has {own:?}, its book {book:?}", peer.name)) }
        })
        .await;
    }
}

/// One node; its process is killed when this is dropped.
#[derive(Debug)]
pub struct Peer {
    pub name: String,
    data: PathBuf,
    log: PathBuf,
    flags: Vec<String>,
    listen: String,
    program: Program,
    process: Option<Process>,
    client: Option<Client>,
}

impl Peer {
    async fn up(mut self) -> Self {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.process = Some(self.program.node(&self.name, &self.data, &self.listen, &self.log, &flags));
        let begun = Instant::now();
        loop {
            let pid = self.check_alive();
            if let Ok(client) = Client::open(&self.data, None)
                && client.pid() == pid
            {
                self.client = Some(client);
                return self;
            }
            assert!(begun.elapsed() < PATIENCE, "{} does not start\n{}", self.name, self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns the process id; fails if the process has ended.
    fn check_alive(&mut self) -> u32 {
        let process = self.process.as_mut().expect("started");
        match process.ended() {
            None => process.pid(),
            Some(status) => panic!("{} ended ({status})\n{}", self.name, self.log()),
        }
    }

    /// Waits until the node takes jobs.
    pub async fn until_ready(&mut self) {
        let begun = Instant::now();
        loop {
            self.check_alive();
            let status = self.status().await;
            if status.ready {
                // Kept for a restart: others may know it by this address.
                self.listen = port_of(&status.addresses);
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{} waits for {:?}", self.name, status.waiting_for);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Says whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().expect("started").ended().is_some()
    }

    /// Says whether the process was started and not killed.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("started").pid()
    }

    /// Ends the process as a power cut ends it.
    pub fn kill(&mut self) {
        self.client = None;
        self.process.take().expect("started").kill();
    }

    /// Starts the node again as it was started before, and waits until it takes jobs.
    pub async fn restart(self) -> Self {
        let mut peer = self.up().await;
        peer.until_ready().await;
        peer
    }

    /// Kills the node and starts it again.
    pub async fn kill_and_restart(mut self) -> Self {
        self.kill();
        self.restart().await
    }

    /// Takes other flags for the next start.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// Returns where its data is.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Returns the client of its API.
    #[must_use]
    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("the node runs")
    }

    /// Returns the last part of what it logged.
    #[must_use]
    pub fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(6_000)..]).into_owned();
        format!("---- log of {} ----\n{text}", self.name)
    }

    /// Calls the command line as the node's owner.
    pub async fn cli(&self, words: &[&str]) -> Ended {
        self.program.run(&self.data, words, b"").await
    }

    /// Calls the command line as the node's owner with something on standard input.
    pub async fn cli_with(&self, words: &[&str], input: &[u8]) -> Ended {
        self.program.run(&self.data, words, input).await
    }

    /// Begins a command as the node's owner that can be killed.
    #[must_use]
    pub fn cli_begin(&self, words: &[&str]) -> Process {
        self.program.begin(&self.data, words)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        match self.client().get(path).await {
            Ok(answer) => answer,
            Err(failure) => panic!("{} {path}: {failure}\n{}", self.name, self.log()),
        }
    }

    pub async fn status(&self) -> StatusView {
        self.get("status").await
    }

    pub async fn balance(&self) -> BalanceView {
        self.get("ledger/balance").await
    }

    pub async fn job(&self, job: &str) -> JobView {
        self.get(&format!("jobs/{job}")).await
    }

    /// Returns a receipt once it is in this ledger with both signatures.
    pub async fn receipt_once_signed(&self, id: &str) -> ReceiptDetailView {
        until("the receipt is in the ledger with both signatures", async || {
            let path = format!("ledger/receipts/{id}");
            let view = self.client().get::<ReceiptDetailView>(&path).await.map_err(|f| f.message)?;
            if view.receipt.cosigned { Ok(view) } else { Err("one signature".to_owned()) }
        })
        .await
    }

    /// Returns the node's record of a job, once it has one.
    pub async fn job_once_known(&self, job: &str) -> JobView {
        until("the job is in the ledger", async || {
            let view = self.client().get::<JobView>(&format!("jobs/{job}")).await;
            view.map_err(|failure| failure.message)
        })
        .await
    }

    pub async fn verify(&self) -> VerifyView {
        let verified = self.client().post("ledger/verify", &()).await;
        verified.unwrap_or_else(|failure| panic!("{} cannot verify: {failure}", self.name))
    }

    /// Makes a ticket with an opening amount.
    pub async fn ticket(&self, credits_nano: u64) -> String {
        let made = self.client().post::<TicketView>("network/tickets", &TicketBody { credits_nano }).await;
        made.unwrap_or_else(|failure| panic!("{} makes no ticket: {failure}", self.name)).ticket
    }

    /// Returns all receipts, newest first; an index that is being rebuilt is waited for.
    pub async fn receipts(&self) -> Vec<ReceiptView> {
        until("the receipts can be read", async || {
            let mut all = Vec::new();
            let mut path = "ledger/receipts?limit=500".to_owned();
            loop {
                let page = self.client().get::<ReceiptsView>(&path).await.map_err(|f| f.message)?;
                all.extend(page.receipts);
                let Some(next) = page.next else { return Ok(all) };
                path = format!("ledger/receipts?limit=500&before={next}");
            }
        })
        .await
    }

    /// Returns channel, id, amount of the newest receipt of every channel, and whether both have signed it.
    async fn heads(&self) -> Result<Vec<(String, String, u64, bool)>, String> {
        let mut heads: Vec<(String, String, u64, bool)> = Vec::new();
        for receipt in self.receipts().await {
            if !heads.iter().any(|(channel, ..)| *channel == receipt.channel) {
                heads.push((receipt.channel, receipt.id, receipt.cumulative.nano, receipt.cosigned));
            }
        }
        heads.sort();
        Ok(heads)
    }

    /// Waits until a provider of the model is known.
    pub async fn until_provided(&self, model: &str) {
        self.until_provided_by(model, 1).await;
    }

    /// Waits until so many providers of the model are known.
    pub async fn until_provided_by(&self, model: &str, providers: usize) {
        until("the providers are known", async || {
            let query = [("model", model)];
            let known: Vec<node::api::views::ProviderView> =
                self.client().get_with("providers", &query).await.map_err(|failure| failure.message)?;
            if known.len() >= providers { Ok(()) } else { Err(format!("{} are", known.len())) }
        })
        .await;
    }

    /// Waits until the node works on no job for others.
    pub async fn until_idle(&self) {
        self.until_serving(0).await;
    }

    /// Waits until the node works on so many jobs for others.
    pub async fn until_serving(&self, jobs: u32) {
        until("the node serves that many jobs", async || match self.status().await.jobs_serving {
            serving if serving == jobs => Ok(()),
            serving => Err(format!("{serving} of {jobs}")),
        })
        .await;
    }

    /// Submits a job and returns what becomes of it, event by event.
    pub async fn submit(&self, body: &JobBody) -> Result<Running, Failure> {
        Ok(Running { events: self.client().submit(body).await?, answer: Answer::default() })
    }

    /// Submits a job and waits for its end.
    pub async fn ask(&self, body: &JobBody) -> Answer {
        match self.submit(body).await {
            Ok(running) => running.end().await,
            Err(failure) => Answer { failure: Some(failure), ..Answer::default() },
        }
    }

    /// Submits a job that must succeed.
    pub async fn must_ask(&self, body: &JobBody) -> (String, JobAccount) {
        let answer = self.ask(body).await;
        match (answer.failure, answer.account) {
            (None, Some(account)) => (answer.text, account),
            (failure, _) => panic!("the job failed: {failure:?}\n{}", self.log()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.take());
        if std::thread::panicking() {
            eprintln!("{}", self.log());
            return;
        }
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        assert!(!log.contains("panicked"), "{} panicked:\n{log}", self.name);
    }
}

/// A job for the fake model with a fixed seed.
#[must_use]
pub fn job(prompt: &str, max_tokens: u32) -> JobBody {
    JobBody {
        model: "fake".to_owned(),
        prompt: Some(prompt.to_owned()),
        max_tokens: Some(max_tokens),
        seed: Some(7),
        ..JobBody::default()
    }
}

/// A job whose events are being read; dropping it cancels the job.
pub struct Running {
    events: Events,
    answer: Answer,
}

/// What came of a job.
#[derive(Debug, Default)]
pub struct Answer {
    pub job: String,
    pub text: String,
    pub tokens: u32,
    pub provider: String,
    pub account: Option<JobAccount>,
    pub failure: Option<Failure>,
}

impl Answer {
    /// Returns the kind of the failure.
    #[must_use]
    pub fn kind(&self) -> Option<FailureKind> {
        self.failure.as_ref().map(|failure| failure.kind)
    }
}

impl Running {
    /// Reads on until at least so many tokens have arrived; says whether the job is still on.
    pub async fn until_tokens(&mut self, tokens: u32) -> bool {
        while self.answer.tokens < tokens {
            if !self.step().await {
                return false;
            }
        }
        true
    }

    /// Reads to the end.
    pub async fn end(mut self) -> Answer {
        while self.step().await {}
        self.answer
    }

    async fn step(&mut self) -> bool {
        let next = tokio::time::timeout(PATIENCE, self.events.next()).await;
        match next.unwrap_or_else(|_| panic!("a job fell silent: {:?}", self.answer)) {
            Ok(JobEvent::Chosen { job, provider, .. }) => {
                (self.answer.job, self.answer.provider) = (job, provider);
            }
            Ok(JobEvent::Accepted { .. } | JobEvent::Vectors { .. }) => {}
            Ok(JobEvent::Text { text, tokens, .. }) => {
                self.answer.text += &text;
                self.answer.tokens += tokens;
            }
            Ok(JobEvent::Done(account)) => {
                self.answer.account = Some(*account);
                return false;
            }
            Ok(JobEvent::Failed { failure, account }) => {
                self.answer.failure = Some(failure);
                self.answer.account = account.map(|account| *account);
                return false;
            }
            Err(failure) => {
                self.answer.failure = Some(failure);
                return false;
            }
        }
        true
    }
}

/// Looks again and again until `look` succeeds; gives up after [`PATIENCE`] with what it saw last.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(last) => assert!(begun.elapsed() < PATIENCE, "waited too long until {what}: {last}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns `ip:port` of a QUIC address; the same port is free for TCP or becomes so with the process.
fn port_of(addresses: &[String]) -> String {
    let quic = addresses.iter().find(|address| address.contains("/quic-v1")).expect("listens on QUIC");
    let parts: Vec<&str> = quic.split('/').collect();
    format!("/ip4/{}/udp/{}/quic-v1", parts[2], parts[4])
}
