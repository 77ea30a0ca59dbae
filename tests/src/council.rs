//! A network whose books several issuers keep, each a process of its own.

use std::path::PathBuf;

use node::api::views::{BooksView, SettleView};

use crate::{Ended, Ground, OPENING_NANO, Peer, check_sums, until};

/// A network that was made, with the keys of its issuers.
#[derive(Debug)]
pub struct Founded {
    /// The network's file.
    pub file: PathBuf,
    /// The issuers' key files.
    pub keys: Vec<PathBuf>,
}

impl Founded {
    /// Returns the flags with which an issuer starts.
    #[must_use]
    pub fn flags(&self, issuer: usize) -> Vec<String> {
        let text = |path: &PathBuf| path.display().to_string();
        vec!["--network".to_owned(), text(&self.file), "--issuer-key".to_owned(), text(&self.keys[issuer])]
    }
}

/// Issuers, a provider of the fake model and a consumer without a model.
#[derive(Debug)]
pub struct Council {
    pub founded: Founded,
    pub issuers: Vec<Peer>,
    pub provider: Peer,
    pub consumer: Peer,
}

impl Ground {
    /// Calls `sharemesh network create` for a network of development.
    pub async fn create_network(&self, name: &str, options: &[&str]) -> Ended {
        let file = self.path().join(format!("{name}.toml")).display().to_string();
        let words = [&["network", "create", "--dev", "--out", &file], options].concat();
        self.program().run(&self.data("nowhere"), &words, b"").await
    }

    /// Makes a network of development whose issuers' keys are all made here.
    pub async fn found(&self, name: &str, issuers: usize, options: &[&str]) -> Founded {
        let count = issuers.to_string();
        let options = [&["--issuers", &count], options].concat();
        self.create_network(name, &options).await.must_succeed();
        let key = |number| self.path().join(format!("{name}.issuer-{number}.key"));
        Founded { file: self.path().join(format!("{name}.toml")), keys: (1..=issuers).map(key).collect() }
    }

    /// Starts the first issuers of a network, and waits until they know each other.
    pub async fn start_issuers(&self, founded: &Founded, count: usize) -> Vec<Peer> {
        let mut issuers: Vec<Peer> = Vec::new();
        for number in 0..count {
            let mut flags = founded.flags(number);
            if let Some(first) = issuers.first() {
                flags.extend(bootstrap(first).await);
            }
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            issuers.push(self.start(&format!("issuer-{}", number + 1), &flags).await);
        }
        for issuer in &issuers {
            issuer.until_issuers(count).await;
        }
        issuers
    }

    /// Starts the first issuers of a network of four, a provider of the fake model with `flags`, and a consumer.
    pub async fn council(&self, count: usize, flags: &[&str]) -> Council {
        self.council_with(count, &[], flags).await
    }

    /// The same for a network that is made with `options`.
    pub async fn council_with(&self, count: usize, options: &[&str], flags: &[&str]) -> Council {
        let founded = self.found("ours", 4, options).await;
        let issuers = self.start_issuers(&founded, count).await;
        let ticket = issuers[0].ticket(0).await;
        let serving = [&["--join", &ticket, "--serve", "fake"], flags].concat();
        let provider = self.start("provider", &serving).await;
        let ticket = issuers[1].ticket(OPENING_NANO).await;
        let consumer = self.start("consumer", &["--join", &ticket]).await;
        for member in [&provider, &consumer] {
            member.until_issuers(count).await;
        }
        consumer.until_available(OPENING_NANO).await;
        consumer.until_provided("fake").await;
        Council { founded, issuers, provider, consumer }
    }
}

impl Council {
    /// Returns everybody.
    #[must_use]
    pub fn all(&self) -> Vec<&Peer> {
        self.issuers.iter().chain([&self.provider, &self.consumer]).collect()
    }

    /// Starts an issuer that was killed; its operator knows where the others are.
    pub async fn restart_issuer(&mut self, place: usize) {
        let mut flags = Vec::new();
        for issuer in self.issuers.iter().filter(|issuer| issuer.is_running()) {
            flags.extend(bootstrap(issuer).await);
        }
        let mut issuer = self.issuers.remove(place);
        issuer.set_flags(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        self.issuers.insert(place, issuer.restart().await);
    }

    /// Waits until everything is redeemed and closed everywhere, and checks that receipts, books and balances agree, that
    /// every ledger verifies, and that no credit was made or lost.
    pub async fn check_books(&self) {
        until("both sides hold the same receipts", async || {
            let (paid, received) = (self.consumer.heads().await?, self.provider.heads().await?);
            let same = paid == received && received.iter().all(|(.., cosigned)| *cosigned);
            if same { Ok(()) } else { Err(format!("paid {paid:?}, received {received:?}")) }
        })
        .await;
        until("all issuers' books are settled and equal", async || {
            for peer in [&self.consumer, &self.provider] {
                peer.client().post::<SettleView>("ledger/settle", &()).await.map_err(|f| f.message)?;
            }
            let mut books = Vec::new();
            for issuer in &self.issuers {
                books.push(sums(issuer.balance().await.books.ok_or("an issuer has no books")?));
            }
            let settled = books.iter().all(|(held, ..)| *held == 0);
            let equal = books.windows(2).all(|pair| pair[0] == pair[1]);
            if settled && equal { Ok(()) } else { Err(format!("{books:#?}")) }
        })
        .await;
        for issuer in &self.issuers {
            check_sums(&[issuer, &self.provider, &self.consumer]).await;
        }
    }
}

/// What one issuer's books hold in all, what entered and left, and what every account has.
type Sums = (u64, u64, u64, Vec<(String, u64)>);

fn sums(books: BooksView) -> Sums {
    let mut accounts: Vec<(String, u64)> =
        books.accounts.into_iter().map(|book| (book.account, book.cash.nano + book.earned.nano)).collect();
    accounts.retain(|(_, sum)| *sum > 0);
    accounts.sort();
    (books.held.nano, books.deposited.nano, books.withdrawn.nano, accounts)
}

/// Returns the flags that say where a node is reached.
async fn bootstrap(peer: &Peer) -> Vec<String> {
    let addresses = peer.status().await.addresses;
    let quic = addresses.into_iter().find(|address| address.contains("/quic-v1")).expect("listens on QUIC");
    vec!["--bootstrap".to_owned(), quic]
}

impl Peer {
    /// Waits until so many of the network's issuers can be spoken to.
    pub async fn until_issuers(&self, count: usize) {
        until("the issuers are reached", async || {
            let network = self.status().await.network;
            if network.issuers_reachable() >= count { Ok(()) } else { Err(format!("{network:?}")) }
        })
        .await;
    }

    /// Waits until the account can spend as much.
    pub async fn until_available(&self, nano: u64) {
        until("the credits have arrived", async || {
            let balance = self.balance().await;
            if balance.available.nano >= nano { Ok(()) } else { Err(format!("{balance:?}")) }
        })
        .await;
    }

    /// Stops or continues the process, as a machine that hangs for a while.
    #[cfg(unix)]
    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        assert!(sent.expect("`kill` is there").success());
    }
}
