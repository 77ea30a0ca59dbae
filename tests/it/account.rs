//! An account apart from its nodes: a recovery phrase, a rotation, a second node that is authorised and revoked.

use std::fs;
use std::path::PathBuf;

use node::api::views::{AccountView, DelegationView, SettleView};
use node::exit::FailureKind;
use serde_json::Value;
use tests::{Ended, Ground, OPENING_NANO, Peer, Trio, check_sums, job, until};

use crate::SHAREMESH;

/// An account that was made for a node which has not started yet.
struct Made {
    account: String,
    phrase: PathBuf,
    passphrase: PathBuf,
}

impl Made {
    fn flags<'a>(&'a self, ticket: &'a str) -> Vec<&'a str> {
        vec!["--join", ticket, "--passphrase-file", self.passphrase.to_str().expect("text")]
    }
}

async fn call(ground: &Ground, name: &str, words: &[&str]) -> Ended {
    ground.program().run(&ground.data(name), words, b"").await
}

fn object(ended: &Ended) -> Value {
    serde_json::from_str(ended.must_succeed()).expect("one object")
}

async fn makes(ground: &Ground, name: &str) -> Made {
    let passphrase = ground.path().join(format!("{name}.passphrase"));
    fs::write(&passphrase, "correct horse battery\n").expect("writable");
    let words = ["account", "new", "--json", "--passphrase-file", passphrase.to_str().expect("text")];
    let made = object(&call(ground, name, &words).await);
    let phrase = ground.path().join(format!("{name}.phrase"));
    fs::write(&phrase, made["phrase"].as_str().expect("words")).expect("writable");
    Made { account: made["account"].as_str().expect("an id").to_owned(), phrase, passphrase }
}

async fn starts(ground: &Ground, trio: &Trio, name: &str, made: &Made) -> Peer {
    let ticket = trio.issuer.ticket(OPENING_NANO).await;
    let wallet = ground.start(name, &made.flags(&ticket)).await;
    wallet.until_provided("fake").await;
    wallet
}

async fn account(peer: &Peer) -> AccountView {
    peer.client().get("account").await.expect("the node runs")
}

/// Settles what `payers` have open with the provider, and checks every ledger and every sum.
async fn check_books(trio: &Trio, payers: &[&Peer]) {
    until("all channels are closed", async || {
        for peer in payers.iter().chain(&[&trio.provider]) {
            peer.client().post::<SettleView>("ledger/settle", &()).await.map_err(|f| f.message)?;
        }
        let held = trio.issuer.balance().await.books.ok_or("the issuer has no books")?.held;
        if held.nano == 0 { Ok(()) } else { Err(format!("{held} are held")) }
    })
    .await;
    check_sums(&[&[&trio.issuer, &trio.provider], payers].concat()).await;
}

#[tokio::test]
async fn a_rotated_account_goes_on_with_its_next_key_and_after_a_restart() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    let made = makes(&ground, "wallet").await;
    let wallet = starts(&ground, &trio, "wallet", &made).await;
    assert_eq!(wallet.status().await.account, made.account);
    wallet.must_ask(&job("before", 8)).await;
    let first = account(&wallet).await;
    assert!(first.held && first.rotatable && first.encrypted && first.rotations == 0, "{first:?}");

    let phrase = made.phrase.to_str().expect("text");
    let rotated = object(&wallet.cli(&["account", "rotate", "--json", "--phrase-file", phrase]).await);
    assert_eq!((&rotated["rotations"], &rotated["rotation"]), (&1.into(), &"none".into()));
    assert_ne!(rotated["key"], first.key);
    assert_eq!(rotated["account"], made.account);
    wallet.must_ask(&job("after", 8)).await;

    let wallet = wallet.kill_and_restart().await;
    wallet.until_provided("fake").await;
    wallet.must_ask(&job("again", 8)).await;
    let after = account(&wallet).await;
    assert!(after.held && after.rotations == 1, "{after:?}");
    check_books(&trio, &[&wallet]).await;
}

#[tokio::test]
async fn a_second_node_of_the_account_spends_from_it_until_it_is_revoked() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    let made = makes(&ground, "wallet").await;
    let wallet = starts(&ground, &trio, "wallet", &made).await;
    let ticket = trio.issuer.ticket(0).await;
    let mut phone = ground.start("phone", &["--join", &ticket]).await;
    let node = phone.status().await.node;

    let authorise = ["account", "authorise", &node, "--until", "30d", "--spend", "--budget", "1", "--json"];
    let given: DelegationView =
        serde_json::from_str(wallet.cli(&authorise).await.must_succeed()).expect("a delegation");
    phone.kill();
    phone.set_flags(&["--device", given.delegation.as_deref().expect("authorised")]);
    let phone = phone.restart().await;
    assert_eq!(phone.status().await.account, made.account);
    phone.until_provided("fake").await;
    until("the phone is paid for by its account", async || {
        phone.ask(&job("hello", 8)).await.failure.map_or(Ok(()), |failure| Err(failure.to_string()))
    })
    .await;
    phone
        .cli(&["account", "rotate", "--phrase-file", made.phrase.to_str().expect("text")])
        .await
        .must_fail(1, &["wallet node"]);

    wallet.cli(&["account", "revoke", &node]).await.must_succeed();
    until("the phone may spend no more", async || match phone.ask(&job("hello", 8)).await.failure {
        Some(failure) if failure.kind == FailureKind::Forbidden => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    wallet.must_ask(&job("the owner goes on", 8)).await;
    check_books(&trio, &[&wallet, &phone]).await;
}

#[tokio::test]
async fn an_account_is_opened_and_brought_back_by_its_secrets_only() {
    let ground = Ground::new(SHAREMESH);
    let made = makes(&ground, "wallet").await;
    let (phrase, passphrase) = (made.phrase.to_str().expect("text"), made.passphrase.to_str().expect("text"));

    let up = ["--api", "127.0.0.1:0", "up", "--listen", "127.0.0.1:0", "--mdns", "off"];
    call(&ground, "wallet", &up).await.must_fail(2, &["--passphrase-file"]);
    let other = ground.path().join("other");
    fs::write(&other, "battery staple horse").expect("writable");
    let wrong = [&up[..], &["--passphrase-file", other.to_str().expect("text")]].concat();
    call(&ground, "wallet", &wrong).await.must_fail(1, &["passphrase"]);
    let again = ["account", "new", "--passphrase-file", passphrase];
    call(&ground, "wallet", &again).await.must_fail(1, &["has an account already"]);
    let file = fs::read_to_string(ground.data("wallet").join("account.json")).expect("there");
    assert!(file.contains("argon2id") && file.contains(&made.account));

    let recover = ["account", "recover", "--json", "--phrase-file", phrase, "--passphrase-file", passphrase];
    let recovered = object(&call(&ground, "elsewhere", &recover).await);
    assert_eq!(recovered["account"], made.account);
    assert_eq!(recovered.get("phrase"), None, "it was shown once");
    let nonsense = ["account", "recover", "--phrase-file", passphrase, "--passphrase-file", passphrase];
    call(&ground, "nowhere", &nonsense).await.must_fail(2, &["recovery phrase"]);
}
