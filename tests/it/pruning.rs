//! Nodes whose channels are over long ago forget them, and lose nothing that matters.

use std::collections::BTreeMap;

use node::api::views::{PruneView, StatementView};
use serde::de::DeserializeOwned;
use tests::{Ended, Ground, Peer, job, until};

use crate::SHAREMESH;

fn read<T: DeserializeOwned>(ended: &Ended) -> T {
    serde_json::from_str(ended.must_succeed()).unwrap()
}

async fn statement(peer: &Peer) -> StatementView {
    read(&peer.cli(&["ledger", "statement", "--json"]).await)
}

/// What moved in each epoch on each channel, of each kind.
fn sums(view: &StatementView) -> BTreeMap<(u32, Option<&str>, &str), (u64, u64)> {
    let mut sums = BTreeMap::new();
    for line in &view.lines {
        let sum: &mut (u64, u64) =
            sums.entry((line.epoch, line.channel.as_deref(), line.kind.as_str())).or_default();
        *sum = (sum.0 + line.credit.nano, sum.1 + line.debit.nano);
    }
    sums
}

/// Checkpoints that an issuer keeps.
const KEPT: u64 = protocol::node::CHECKPOINTS_KEPT_MAX as u64;

async fn until_epoch(peer: &Peer, epoch: u64) {
    until("epochs pass", async || {
        let seen = peer.status().await.books.checkpoint_epoch;
        if seen.is_some_and(|seen| seen >= epoch) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_pruned_node_starts_again_with_the_same_statement_and_works_on() {
    let ground = Ground::new(SHAREMESH);
    let founded = ground.found("lab", 1, &["--epoch", "2s", "--grace", "1"]).await;
    let issuer = ground.start_issuers(&founded, 1).await.remove(0);
    let serving = ["--join", &issuer.ticket(0).await, "--serve", "fake"];
    let provider = ground.start("provider", &serving).await;
    let consumer = ground.start("consumer", &["--join", &issuer.ticket(tests::OPENING_NANO).await]).await;
    consumer.until_available(tests::OPENING_NANO).await;
    consumer.until_provided("fake").await;
    let (_, done) = consumer.must_ask(&job("a story", 24)).await;
    consumer.must_ask(&job("a second story", 24)).await;
    for peer in [&consumer, &provider] {
        peer.cli(&["ledger", "settle"]).await.must_succeed();
    }
    // The step signed last stays, so there is a later one.
    let account = issuer.status().await.account;
    consumer.cli(&["pay", &account, "0.01"]).await.must_succeed();
    // Seven epochs, one of grace, seven for which the issuers remember it, and what it takes until that is over.
    let last = consumer.status().await.books.checkpoint_epoch.unwrap_or_default() + 18;
    let (mut nodes, mut known) = (Vec::new(), Vec::new());
    for peer in [consumer, provider] {
        until_epoch(&peer, last).await;
        let before = statement(&peer).await;
        assert!(!before.lines.is_empty());
        let kept: PruneView = read(&peer.cli(&["ledger", "prune", "--json"]).await);
        assert_eq!(kept.folded, 0, "a month is kept: {kept:?}");
        let pruned: PruneView = read(&peer.cli(&["ledger", "prune", "--keep-epochs", "0", "--json"]).await);
        assert!(pruned.folded > 0 && pruned.dropped > 3, "{pruned:?}");
        assert!(pruned.bytes_after < pruned.bytes_before, "{pruned:?}");

        // What is gone is gone from the index too, which answers at once.
        assert_eq!(peer.receipts().await, []);
        let peer = peer.kill_and_restart().await;
        let after = statement(&peer).await;
        assert_eq!(sums(&after), sums(&before));
        assert_eq!(after.closing, before.closing);
        let verified = peer.verify().await;
        assert!(verified.ok, "{verified:?}");
        known.push(before.closing.nano);
        nodes.push(peer);
    }
    let [consumer, provider] = &nodes[..] else { panic!("two") };
    consumer.cli(&["ledger", "show", &done.job]).await.must_fail(1, &[&done.job]);

    // The provider listens elsewhere now, and its consumer has yet to hear of it.
    until("a job is done again", async || {
        let answer = consumer.ask(&job("another story", 24)).await;
        answer.failure.map_or(Ok(()), |failure| Err(failure.message))
    })
    .await;
    provider.cli(&["ledger", "settle"]).await.must_succeed();
    until("it has earned more", async || {
        let (now, known) = (statement(provider).await.closing.nano, known[1]);
        if now > known { Ok(()) } else { Err(format!("{now} after {known}")) }
    })
    .await;
}

#[tokio::test]
async fn a_pruned_issuer_starts_again_with_the_same_books_and_works_on() {
    let ground = Ground::new(SHAREMESH);
    let founded = ground.found("lab", 1, &["--epoch", "2s", "--grace", "1"]).await;
    let issuer = ground.start_issuers(&founded, 1).await.remove(0);
    let serving = ["--join", &issuer.ticket(0).await, "--serve", "fake"];
    let provider = ground.start("provider", &serving).await;
    let used = issuer.ticket(tests::OPENING_NANO).await;
    let unused = issuer.ticket(5).await;
    let consumer = ground.start("consumer", &["--join", &used]).await;
    consumer.until_available(tests::OPENING_NANO).await;
    consumer.until_provided("fake").await;
    let account = consumer.status().await.account;
    let booking = ["deposit", &account, "3", "--reference", "invoice 7"];
    issuer.cli(&booking).await.must_succeed();
    consumer.until_available(tests::OPENING_NANO + 3_000_000_000).await;
    for number in 0..4 {
        consumer.must_ask(&job(&format!("story {number}"), 24)).await;
    }
    for peer in [&consumer, &provider] {
        peer.cli(&["ledger", "settle"]).await.must_succeed();
    }
    // Lines go when as many checkpoints are kept as ever are; with so short epochs one is made for about every second.
    let now = issuer.status().await.books.checkpoint_epoch.unwrap_or_default();
    let last = now + 2 * KEPT + 8;
    for epoch in [now + KEPT, last] {
        until_epoch(&issuer, epoch).await;
    }
    let known = [consumer.balance().await.cash, provider.balance().await.earned];
    let before = issuer.balance().await.books.expect("it has books");

    let pruned: PruneView = read(&issuer.cli(&["ledger", "prune", "--keep-epochs", "0", "--json"]).await);
    assert!(pruned.dropped > 3 && pruned.bytes_after < pruned.bytes_before, "{pruned:?}");
    let issuer = issuer.kill_and_restart().await;

    assert_eq!(issuer.balance().await.books.expect("it has books"), before);
    let verified = issuer.verify().await;
    assert!(verified.ok, "{verified:?}");
    issuer.cli(&booking).await.must_succeed();
    let other = ["deposit", &account, "4", "--reference", "invoice 7"];
    issuer.cli(&other).await.must_fail(1, &["booked before", "3 credits"]);
    consumer.cli(&["ledger", "audit"]).await.must_succeed();
    let late = ground.start("late", &["--join", &unused]).await;
    late.until_available(5).await;
    assert_eq!([consumer.balance().await.cash, provider.balance().await.earned], known);
    until("a job is done again", async || {
        let answer = consumer.ask(&job("another story", 24)).await;
        answer.failure.map_or(Ok(()), |failure| Err(failure.message))
    })
    .await;
    until_epoch(&issuer, last + 3).await;
}
