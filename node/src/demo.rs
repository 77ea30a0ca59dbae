//! `sharemesh demo`: an issuer, a provider and a consumer as processes of their own on this machine, and one real
//! job between them. Nothing but the network's tickets tells them of each other.

mod processes;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use crate::api::views::{
    BalanceView, JobAccount, JobBody, JobView, Money, NANO_PER_CREDIT, ProviderView, SettleView, StatusView,
    TicketBody, TicketView,
};
use crate::cli::run::Answer;
use crate::cli::signal;
use crate::cli::terminal::{Terminal, named};
use crate::exit::{Failure, FailureKind};
use crate::models::{FAKE, Models};
use processes::{Folder, Peer};
use report::{Balances, Report};

/// What the consumer's ticket carries.
const OPENING_CREDITS: u64 = 1;

/// How long a model may take to load; the first load of one requantises it.
const LOAD_MAX: Duration = Duration::from_secs(300);

/// How long nodes of one machine may take to find each other.
const FIND_MAX: Duration = Duration::from_secs(60);

/// How long closing the channels may take; what is conserved is so without it.
const SETTLE_MAX: Duration = Duration::from_secs(15);

/// How long both ledgers may take to hold the same receipt.
const RECEIPT_MAX: Duration = Duration::from_secs(10);

/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Runs a whole network on this machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sharemesh demo \"Why is the sky blue?\"
  sharemesh demo --json \"Why is the sky blue?\"
  sharemesh demo --keep                        leave the network running and say how to use it")]
pub struct DemoArgs {
    /// What to ask
    #[arg(default_value = "Why is the sky blue?")]
    prompt: String,
    /// Which model to serve
    #[arg(long, value_name = "NAME", default_value = "smollm2-135m")]
    model: String,
    /// The most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 96)]
    max_tokens: u32,
    /// The same seed makes the same answer
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// From 0, always the likeliest token, to 2
    #[arg(long, value_name = "T", default_value_t = 0.2)]
    temperature: f32,
    /// Leave the nodes running, and say how to talk to them
    #[arg(long)]
    keep: bool,
}

/// Runs the demo; Ctrl-C at any time ends all of it and leaves nothing behind.
pub async fn run(arguments: DemoArgs, terminal: &Terminal) -> anyhow::Result<()> {
    if arguments.max_tokens == 0 {
        return Err(Failure::usage("--max-tokens is 0: ask for at least 1 token").into());
    }
    if arguments.model != FAKE {
        fetch(&arguments.model, terminal).await?;
    }
    let folder = Folder::create()?;
    let mut network = Network { folder, peers: Vec::new(), keep: arguments.keep };
    let result = tokio::select! {
        result = network.play(&arguments, terminal) => result,
        () = signal::interrupted() => {
            Err(Failure::new(FailureKind::Cancelled, "interrupted: everything was stopped and removed").into())
        }
    };
    if arguments.keep && result.is_ok() {
        network.leave_running(&arguments.model, terminal);
    } else {
        tokio::select! {
            () = network.end() => {}
            // Who asks again does not want to wait: dropping the nodes ends them by force.
            () = signal::interrupted() => {}
        }
    }
    result
}

async fn fetch(model: &str, terminal: &Terminal) -> Result<(), Failure> {
    let models = Models::open()?;
    crate::cli::pull(&models, model, terminal).await.map(drop)
}

/// The three nodes and the folder of all they write.
struct Network {
    folder: Folder,
    peers: Vec<Peer>,
    keep: bool,
}

/// Their places in [`Network::peers`].
const ISSUER: usize = 0;
const PROVIDER: usize = 1;
const CONSUMER: usize = 2;

impl Network {
    async fn play(&mut self, arguments: &DemoArgs, terminal: &Terminal) -> anyhow::Result<()> {
        self.build(arguments, terminal).await?;
        let providers = self.until_found(&arguments.model).await?;
        tell(terminal, &format!("the consumer found {} by the mesh; asking it", names(&providers)));

        let before = self.balances().await?;
        let answer = self.ask(arguments, terminal).await?;
        let account =
            answer.account.clone().ok_or_else(|| Failure::internal("the job ended without an account"))?;
        self.settle().await?;
        let after = self.balances().await?;
        let report = self.report(&answer, account, before, after).await?;

        if terminal.is_json() {
            terminal.object(&report)?;
        } else {
            terminal.message(&format!("\n{}", report.describe()));
        }
        report.check().map_err(Into::into)
    }

    async fn build(&mut self, arguments: &DemoArgs, terminal: &Terminal) -> anyhow::Result<()> {
        let dev = arguments.model == FAKE;
        tell(
            terminal,
            "building a network: three processes on this machine, each with its own keys and ledger",
        );
        let issuer = self.start("issuer", if dev { &["--dev"] } else { &[] }).await?;
        let ticket = |credits: u64| {
            let body = TicketBody { credits_nano: credits * NANO_PER_CREDIT };
            let client = issuer.clone();
            async move { client.post::<TicketView>("network/tickets", &body).await }
        };
        let (for_provider, for_consumer) = (ticket(0).await?, ticket(OPENING_CREDITS).await?);
        self.start("provider", &["--join", &for_provider.ticket, "--serve", &arguments.model]).await?;
        self.start("consumer", &["--join", &for_consumer.ticket]).await?;
        self.until_ready(terminal).await
    }

    async fn start(
        &mut self,
        name: &'static str,
        flags: &[&str],
    ) -> Result<crate::cli::client::Client, Failure> {
        let peer = Peer::start(name, self.folder.path(), flags, self.keep)?;
        self.peers.push(peer);
        let peer = self.peers.last_mut().expect("just pushed");
        peer.connect().await
    }

    async fn until_ready(&mut self, terminal: &Terminal) -> anyhow::Result<()> {
        let deadline = Instant::now() + LOAD_MAX;
        let mut said = String::new();
        loop {
            let mut waiting = Vec::new();
            for peer in &mut self.peers {
                let status: StatusView = peer.get("status").await?;
                if let Some(model) = status.models.iter().find(|model| model.state == "failed") {
                    let failed = format!("{} cannot be served: {}", model.name, model.detail);
                    return Err(Failure::new(FailureKind::WorkerLost, failed).into());
                }
                if !status.ready {
                    waiting.push(format!("{} ({})", peer.name(), status.waiting_for.join(", ")));
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            let line = format!("waiting for {}", waiting.join(", "));
            // A line for each step, not for each percent.
            let step: String = line.chars().filter(|letter| !letter.is_ascii_digit()).collect();
            if step != said {
                tell(terminal, &line);
                said = step;
            }
            self.wait(deadline, "the nodes to be ready").await?;
        }
    }

    async fn until_found(&mut self, model: &str) -> Result<Vec<ProviderView>, Failure> {
        let deadline = Instant::now() + FIND_MAX;
        loop {
            let providers: Vec<ProviderView> =
                self.peers[CONSUMER].get_with("providers", &[("model", model)]).await?;
            if !providers.is_empty() {
                return Ok(providers);
            }
            self.wait(deadline, "the consumer to find the provider").await?;
        }
    }

    async fn ask(&self, arguments: &DemoArgs, terminal: &Terminal) -> anyhow::Result<Answer> {
        let body = JobBody {
            model: arguments.model.clone(),
            prompt: Some(arguments.prompt.clone()),
            max_tokens: Some(arguments.max_tokens),
            seed: Some(arguments.seed),
            temperature: Some(arguments.temperature),
            ..JobBody::default()
        };
        let mut events = self.peers[CONSUMER].client()?.submit(&body).await?;
        let mut answer = Answer::default();
        if !terminal.is_json() {
            terminal.message("");
        }
        answer.follow(&mut events, terminal, !terminal.is_json()).await?;
        Ok(answer)
    }

    /// Closes the channel and redeems, so that nothing is on its way when balances are read.
    async fn settle(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            let mut open = 0;
            for place in [CONSUMER, PROVIDER] {
                let settled: SettleView = self.peers[place].client()?.post("ledger/settle", &()).await?;
                open += settled.open;
            }
            // What stays open is still counted: as held and as pending.
            if open == 0 || Instant::now() >= deadline {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn balances(&mut self) -> Result<Balances, Failure> {
        Ok(Balances {
            issuer: self.balance(ISSUER).await?,
            provider: self.balance(PROVIDER).await?,
            consumer: self.balance(CONSUMER).await?,
        })
    }

    async fn balance(&mut self, place: usize) -> Result<BalanceView, Failure> {
        self.peers[place].get("ledger/balance").await
    }

    /// Reads the job back from both ledgers, which may still exchange their last signatures.
    async fn report(
        &mut self,
        answer: &Answer,
        account: JobAccount,
        before: Balances,
        after: Balances,
    ) -> Result<Report, Failure> {
        let path = format!("jobs/{}", account.job);
        let deadline = Instant::now() + RECEIPT_MAX;
        loop {
            let at_consumer: JobView = self.peers[CONSUMER].get(&path).await?;
            let at_provider: JobView = self.peers[PROVIDER].get(&path).await?;
            let agreed = at_consumer.receipt.is_some() && at_consumer.receipt == at_provider.receipt;
            if agreed || Instant::now() >= deadline {
                return Ok(Report::new(answer, account, at_consumer, at_provider, before, after));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits a moment, unless time is up or a node has ended.
    async fn wait(&mut self, deadline: Instant, what: &str) -> Result<(), Failure> {
        for peer in &mut self.peers {
            peer.check_alive()?;
        }
        if Instant::now() >= deadline {
            let logs: Vec<_> = self.peers.iter().map(Peer::last_words).collect();
            return Err(Failure::internal(format!("waited too long for {what}\n{}", logs.join("\n"))));
        }
        tokio::time::sleep(POLL).await;
        Ok(())
    }

    fn leave_running(self, model: &str, terminal: &Terminal) {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("sharemesh"));
        let mut text =
            format!("\nThe network is still running in {}. Talk to it:\n", self.folder.path().display());
        let data = |name: &str| self.folder.path().join(name).display().to_string();
        let run = format!("run {model} \"Hello\"");
        for (name, command) in [
            ("consumer", run.as_str()),
            ("consumer", "providers"),
            ("consumer", "ledger receipts"),
            ("provider", "ledger balance"),
            ("issuer", "network ticket --credits 1"),
        ] {
            text += &format!("  {} --data {} {command}\n", program.display(), data(name));
        }
        text += "End it:\n";
        for peer in self.peers.iter().rev() {
            text += &format!("  {} --data {} down\n", program.display(), data(peer.name()));
        }
        terminal.message(&text);
        self.folder.keep();
        self.peers.into_iter().for_each(Peer::leave);
    }

    async fn end(self) {
        // The issuer last: the others may still want to tell it something.
        for peer in self.peers.into_iter().rev() {
            peer.end().await;
        }
    }
}

fn tell(terminal: &Terminal, text: &str) {
    terminal.message(text);
}

fn names(providers: &[ProviderView]) -> String {
    let each = providers.iter().map(|provider| {
        let Money { credits, .. } = &provider.price.output_per_million;
        format!("{} ({credits} credits per million tokens)", named(&provider.name, &provider.node))
    });
    each.collect::<Vec<_>>().join(", ")
}
