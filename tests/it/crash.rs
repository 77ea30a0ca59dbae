//! Nodes that end in the middle of writing their journal, at each step of it: nothing acknowledged is lost, nothing is
//! doubled, and the sums hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use node::api::views::{ReceiptsView, SettleView, TicketBody, TicketView};
use node::cli::client::Client;
use protocol::prng::Prng;
use tests::{Ground, Peer, Trio, job, until};

use crate::SHAREMESH;
use crate::restart::check_kept;

/// Where a node may end: in the middle of a write, before its sync, and after it, when nobody knows of it yet.
const STEPS: [&str; 3] = ["torn", "before", "after"];

/// Writes that the node may make before it ends; a job makes a few.
const WRITES_MAX: u64 = 6;

#[tokio::test]
async fn nodes_that_end_at_any_step_of_writing_lose_nothing_acknowledged_and_double_nothing() {
    let seed = std::env::var("SHAREMESH_SEED").map_or(23, |seed| seed.parse().unwrap());
    let crashes = std::env::var("SHAREMESH_CRASHES").map_or(9, |crashes| crashes.parse().unwrap());
    let ground = crashing();
    let mut trio = ground.trio(&[]).await;
    let mut random = Prng::new(seed);

    for number in 0..crashes {
        let order = format!("{} {}", STEPS[number / 3 % 3], 1 + random.below(WRITES_MAX));
        let victim = number % 3;
        eprintln!("crash {number} of seed {seed}: {} at `{order}`", trio.all()[victim].name);
        let load = tokio::spawn(load(trio.all().map(|peer| peer.client().clone())));
        trio = match victim {
            0 => Trio { issuer: crashed(trio.issuer, &order).await, ..trio },
            1 => Trio { provider: crashed(trio.provider, &order).await, ..trio },
            _ => Trio { consumer: crashed(trio.consumer, &order).await, ..trio },
        };
        load.abort();
    }

    trio.check_books().await;
    until("a job succeeds", async || {
        let answer = trio.consumer.ask(&job("and now?", 12)).await;
        answer.failure.map_or(Ok(()), |failure| Err(failure.to_string()))
    })
    .await;
    trio.check_books().await;
}

#[tokio::test]
async fn an_opening_that_a_crash_interrupted_is_shown_and_settled_with_the_rest() {
    let ground = crashing();
    let mut trio = ground.trio(&[]).await;
    trio.check_books().await;

    // The first that a job writes is the step that opens its channel.
    fs::write(trio.consumer.data().join("crash"), "after 1").unwrap();
    let answer = trio.consumer.ask(&job("hello", 4)).await;
    assert_eq!(answer.tokens, 0, "{answer:?}");
    until("the node ends", async || if trio.consumer.has_ended() { Ok(()) } else { Err("it runs".into()) })
        .await;
    fs::remove_file(trio.consumer.data().join("crash")).unwrap();
    trio.issuer.kill();
    trio.consumer = trio.consumer.restart().await;

    let view = trio.consumer.balance().await;
    assert_eq!(
        view.under_way.map(|step| step.kind).as_deref(),
        Some("channel"),
        "signed, and known to nobody"
    );
    let cli = trio.consumer.cli(&["ledger", "balance"]).await;
    assert!(cli.stdout.contains("not confirmed by the issuers yet"), "{cli:?}");
    let settled: SettleView = trio.consumer.client().post("ledger/settle", &()).await.unwrap();
    assert_eq!(settled.open, 1, "what may still open counts: {settled:?}");

    trio.issuer = trio.issuer.restart().await;
    until("the channel is opened and closed", async || {
        let settled: SettleView = trio.consumer.client().post("ledger/settle", &()).await.unwrap();
        if settled.open == 0 { Ok(()) } else { Err(format!("{settled:?}")) }
    })
    .await;
    trio.check_books().await;
}

/// Returns where nodes end at a step of their writing that a file in their folder names.
fn crashing() -> Ground {
    let ground = Ground::new(SHAREMESH);
    let library = preloaded(ground.path());
    ground.with_env("LD_PRELOAD", &library)
}

/// Makes every node write without end: jobs, each on a channel that is then closed, and a ticket after each.
async fn load([issuer, provider, consumer]: [Client; 3]) {
    loop {
        // What dies with the victim is the point.
        if let Ok(mut events) = consumer.submit(&job("load", 24)).await {
            while events.next().await.is_ok_and(|event| !event.is_last()) {}
        }
        for client in [&consumer, &provider] {
            let _ = client.post::<SettleView>("ledger/settle", &()).await;
        }
        let _ = issuer.post::<TicketView>("network/tickets", &TicketBody { credits_nano: 0 }).await;
        tokio::task::yield_now().await;
    }
}

/// Has a node end at a step of its writing, starts it again, and checks that it holds what it had acknowledged, once.
async fn crashed(mut peer: Peer, order: &str) -> Peer {
    let place = peer.data().join("crash");
    fs::write(&place, order).unwrap();
    let mut before = BTreeSet::new();
    until("the node ends", async || {
        if peer.has_ended() {
            return Ok(());
        }
        before = acknowledged(peer.client()).await.unwrap_or(std::mem::take(&mut before));
        Err("it runs".to_owned())
    })
    .await;
    fs::remove_file(&place).unwrap();
    let peer = peer.restart().await;
    check_kept(&peer, &before).await;
    peer
}

/// Returns the ids of the newest receipts that both have signed, if the node answers.
async fn acknowledged(client: &Client) -> Option<BTreeSet<String>> {
    let page = client.get::<ReceiptsView>("ledger/receipts?limit=500").await.ok()?;
    Some(page.receipts.into_iter().filter(|receipt| receipt.cosigned).map(|receipt| receipt.id).collect())
}

/// Compiles what ends a node at a step of its writing.
fn preloaded(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("journal.c"), folder.join("journal.so"));
    fs::write(&source, include_str!("crash/journal.c")).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    assert!(compiler.arg("-ldl").status().expect("a C compiler is there, as for the build").success());
    library
}
