//! A network of separate processes on this machine, as the demo has it: an issuer, a provider and a consumer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use node::api::views::{
    JobAccount, JobBody, JobEvent, NANO_PER_CREDIT, ProviderView, StatusView, TicketBody, TicketView,
};
use node::cli::client::{Client, Events};
use node::exit::Failure;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// How long anything may take before the benchmark gives up; loading a model takes longest.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often something is looked at whose time is measured.
pub(super) const POLL: Duration = Duration::from_millis(1);

/// What a consumer's ticket carries: enough that no channel is kept small for want of credits.
const OPENING_CREDITS: u64 = 10_000;

/// A running `sharemesh up`. Its process ends when this is dropped.
pub(super) struct Node {
    pub(super) client: Client,
    child: Child,
    program: PathBuf,
    data: PathBuf,
    flags: Vec<String>,
}

impl Node {
    /// Starts a node and waits until its API answers.
    pub(super) async fn start(program: &Path, data: &Path, flags: &[String]) -> Result<Self> {
        let mut child = spawn(program, data, flags)?;
        let client = connect(&mut child, data).await?;
        let (program, data, flags) = (program.to_owned(), data.to_owned(), flags.to_vec());
        Ok(Self { client, child, program, data, flags })
    }

    /// Starts a node again that has ended, with the same folder.
    pub(super) async fn start_again(&mut self) -> Result<()> {
        *self = Self::start(&self.program, &self.data, &self.flags).await?;
        Ok(())
    }

    /// Waits until it is ready, with all its models.
    pub(super) async fn until_ready(&self) -> Result<StatusView> {
        until("a node to be ready", async || {
            let status: StatusView = self.client.get("status").await?;
            Ok(status.ready.then_some(status))
        })
        .await
    }

    pub(super) async fn status(&self) -> Result<StatusView, Failure> {
        self.client.get("status").await
    }

    pub(super) fn pid(&self) -> Result<u32> {
        self.child.id().context("the node has ended")
    }

    /// Ends it as `kill -9` does.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("cannot kill a node")
    }

    /// Ends it in order.
    pub(super) async fn end(&mut self) -> Result<()> {
        self.client.tell("shutdown").await?;
        self.child.wait().await.context("cannot wait for a node")?;
        Ok(())
    }
}

fn spawn(program: &Path, data: &Path, flags: &[String]) -> Result<Child> {
    let log = data.with_extension("log");
    let log = File::options().append(true).create(true).open(&log);
    let log = log.with_context(|| format!("cannot write a log beside {}", data.display()))?;
    Command::new(program)
        .arg("--data")
        .arg(data)
        .args(["--api", "127.0.0.1:0", "up", "--exit-with-parent", "--mdns", "off"])
        .args(flags)
        .env_remove("SHAREMESH_DATA")
        .env_remove("SHAREMESH_API")
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

async fn connect(child: &mut Child, data: &Path) -> Result<Client> {
    let pid = child.id();
    let client = until("a node's API", async || {
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(data.with_extension("log")).unwrap_or_default();
            bail!("the node in {} ended ({status})\n{log}", data.display());
        }
        Ok(Client::open(data, None).ok().filter(|client| Some(client.pid()) == pid))
    });
    client.await
}

/// Waits until `look` finds what it looks for.
pub(super) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(begun.elapsed() < PATIENCE, "waited too long for {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A network whose consumer knows the provider.
pub(super) struct Cluster {
    pub(super) issuer: Node,
    pub(super) provider: Node,
    pub(super) consumer: Node,
    pub(super) model: String,
    _folder: TempDir,
}

impl Cluster {
    /// Builds a network whose provider serves `model` with these further flags.
    pub(super) async fn start(program: &Path, model: &str, flags: &[&str]) -> Result<Self> {
        let folder = folder()?;
        let start = async |name: &str, flags: &[&str]| {
            let mut all = vec!["--listen", "127.0.0.1:0", "--name", name];
            all.extend(flags);
            let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
            Node::start(program, &folder.path().join(name), &all).await
        };
        let issuer = start("issuer", &["--dev"]).await?;
        let provider_ticket = ticket(&issuer, 0).await?;
        let consumer_ticket = ticket(&issuer, OPENING_CREDITS).await?;
        let serve = ["--join", &provider_ticket, "--serve", model];
        let provider = start("provider", &[&serve, flags].concat()).await?;
        let consumer = start("consumer", &["--join", &consumer_ticket]).await?;
        for node in [&issuer, &provider, &consumer] {
            node.until_ready().await?;
        }
        let cluster = Self { issuer, provider, consumer, model: model.to_owned(), _folder: folder };
        cluster.until_found().await?;
        Ok(cluster)
    }

    /// Waits until the consumer knows the provider and is connected to it.
    pub(super) async fn until_found(&self) -> Result<()> {
        let provider = self.provider.status().await?.node;
        until("the consumer to find the provider", async || {
            let providers: Vec<ProviderView> =
                self.consumer.client.get_with("providers", &[("model", &self.model)]).await?;
            let known = providers.iter().any(|known| known.node == provider);
            let peers: Vec<node::api::views::PeerView> = self.consumer.client.get("peers").await?;
            Ok((known && peers.iter().any(|peer| peer.node == provider)).then_some(()))
        })
        .await
    }

    /// Says what a job of so many tokens is; always the same.
    pub(super) fn job(&self, prompt: &str, max_tokens: u32) -> JobBody {
        JobBody {
            model: self.model.clone(),
            prompt: Some(prompt.to_owned()),
            max_tokens: Some(max_tokens),
            temperature: Some(0.0),
            seed: Some(1),
            ..JobBody::default()
        }
    }

    /// Ends all, the issuer last.
    pub(super) async fn end(mut self) -> Result<()> {
        self.consumer.end().await?;
        self.provider.end().await?;
        self.issuer.end().await
    }
}

/// Makes a folder for nodes, on the disk that benchmarks of the disk use too.
pub(super) fn folder() -> Result<TempDir> {
    tempfile::Builder::new().prefix("sharemesh-bench-").tempdir().context("cannot create a temporary folder")
}

pub(super) async fn ticket(issuer: &Node, credits: u64) -> Result<String> {
    let body = TicketBody { credits_nano: credits * NANO_PER_CREDIT };
    let ticket: TicketView = issuer.client.post("network/tickets", &body).await?;
    Ok(ticket.ticket)
}

/// One job and when what of it happened, since it was submitted.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// A provider was chosen and sent the job.
    pub(super) chosen: Duration,
    /// The first tokens arrived.
    pub(super) first: Duration,
    /// The last tokens arrived.
    pub(super) last: Duration,
    /// The account came; nothing follows.
    pub(super) done: Duration,
    /// Tokens of the first part.
    pub(super) first_tokens: u32,
    pub(super) tokens: u32,
    pub(super) text: String,
    pub(super) account: JobAccount,
}

impl Run {
    /// Returns the rate after the first part.
    pub(super) fn tokens_per_s(&self) -> f64 {
        f64::from(self.tokens - self.first_tokens) / (self.last - self.first).as_secs_f64()
    }
}

/// Submits a job and follows it to its end, which must be a good one.
pub(super) async fn run_job(client: &Client, body: &JobBody) -> Result<Run> {
    let begun = Instant::now();
    let mut events = client.submit(body).await?;
    let mut run = Run {
        chosen: Duration::ZERO,
        first: Duration::ZERO,
        last: Duration::ZERO,
        done: Duration::ZERO,
        first_tokens: 0,
        tokens: 0,
        text: String::new(),
        account: JobAccount::default(),
    };
    loop {
        let event = events.next().await?;
        let now = begun.elapsed();
        match event {
            JobEvent::Chosen { .. } => run.chosen = now,
            JobEvent::Accepted { .. } | JobEvent::Vectors { .. } => {}
            JobEvent::Text { text, tokens, .. } => {
                if run.tokens == 0 {
                    (run.first, run.first_tokens) = (now, tokens);
                }
                run.last = now;
                run.tokens += tokens;
                run.text += &text;
            }
            JobEvent::Done(account) => return Ok(Run { done: now, account: *account, ..run }),
            JobEvent::Failed { failure, .. } => bail!("a job failed: {failure}"),
        }
    }
}

/// Submits a job and follows it until so many tokens have arrived.
pub(super) async fn run_until(client: &Client, body: &JobBody, tokens_min: u32) -> Result<Events> {
    let mut events = client.submit(body).await?;
    let mut arrived = 0;
    while arrived < tokens_min {
        match events.next().await? {
            JobEvent::Text { tokens, .. } => arrived += tokens,
            JobEvent::Chosen { .. } | JobEvent::Accepted { .. } | JobEvent::Vectors { .. } => {}
            JobEvent::Done(_) => bail!("a job ended after {arrived} tokens"),
            JobEvent::Failed { failure, .. } => bail!("a job failed: {failure}"),
        }
    }
    Ok(events)
}

/// Waits for the end of a job that must fail; returns why, or the failure of the node that was asked.
pub(super) async fn failure_of(events: &mut Events) -> Result<Failure> {
    loop {
        match events.next().await {
            Ok(JobEvent::Failed { failure, .. }) | Err(failure) => return Ok(failure),
            Ok(JobEvent::Done(_)) => bail!("a job ended well that should have failed"),
            Ok(
                JobEvent::Chosen { .. }
                | JobEvent::Accepted { .. }
                | JobEvent::Text { .. }
                | JobEvent::Vectors { .. },
            ) => {}
        }
    }
}
