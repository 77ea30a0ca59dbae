//! Nodes that are killed: what they acknowledged is there again, what was lost is found again, nothing is doubled.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use node::api::views::ReceiptView;
use node::exit::FailureKind;
use protocol::ledger::paying::WINDOW_MIN;
use protocol::prng::Prng;
use tests::{Ground, PACED, Peer, Trio, job, until};

use crate::SHAREMESH;

#[tokio::test]
async fn a_provider_killed_in_mid_stream_is_named_and_paid_for_little_more_than_it_delivered() {
    let ground = Ground::new(SHAREMESH);
    let mut trio = ground.trio(&[PACED]).await;
    let lost = trio.provider.status().await.node;
    let price = trio.provider.status().await.models[0].price.clone();

    let mut running = trio.consumer.submit(&job("a long story", 1000)).await.unwrap();
    assert!(running.until_tokens(40).await);
    trio.provider.kill();
    let answer = running.end().await;

    assert_eq!(answer.kind(), Some(FailureKind::ProviderLost), "{answer:?}");
    assert!(answer.failure.as_ref().unwrap().message.contains(&lost), "{answer:?}");
    let account = answer.account.expect("something was delivered");
    assert_eq!(account.tokens_out, answer.tokens);
    let ahead = u64::from(answer.tokens + answer.tokens.max(WINDOW_MIN));
    let most = u64::from(account.tokens_in) * price.input_per_million.nano / 1_000_000
        + ahead * price.output_per_million.nano / 1_000_000;
    let signed = trio.consumer.receipts().await.iter().map(|receipt| receipt.cumulative.nano).max();
    assert!(signed.unwrap() <= most, "{signed:?} nano-credits were signed, at most {most} were due");

    trio.provider = trio.provider.restart().await;
    trio.check_books().await;
    let (text, _) = until_asked(&trio.consumer).await;
    assert!(!text.is_empty());
}

#[tokio::test]
async fn a_consumer_killed_in_mid_stream_stops_its_provider_and_leaves_it_its_receipt() {
    let ground = Ground::new(SHAREMESH);
    let mut trio = ground.trio(&[PACED]).await;

    let mut running = trio.consumer.submit(&job("a long story", 4000)).await.unwrap();
    assert!(running.until_tokens(100).await);
    trio.provider.until_serving(1).await;
    let before = acknowledged(&trio.provider).await;
    trio.consumer.kill();
    assert_eq!(running.end().await.kind(), Some(FailureKind::NotRunning));
    trio.provider.until_idle().await;

    let after = acknowledged(&trio.provider).await;
    assert!(!before.is_empty() && before.is_subset(&after), "{before:?} {after:?}");
    trio.consumer = trio.consumer.restart().await;
    trio.check_books().await;
    until_asked(&trio.consumer).await;
}

#[tokio::test]
async fn nodes_killed_at_random_points_under_load_lose_nothing_acknowledged_and_double_nothing() {
    let seed = std::env::var("SHAREMESH_SEED").map_or(11, |seed| seed.parse().unwrap());
    let kills = std::env::var("SHAREMESH_KILLS").map_or(12, |kills| kills.parse().unwrap());
    let ground = Ground::new(SHAREMESH);
    let mut trio = ground.trio(&[PACED]).await;
    let mut random = Prng::new(seed);

    for kill in 0..kills {
        let client = trio.consumer.client().clone();
        let load: Vec<_> = (0..3)
            .map(|number| {
                let (client, tokens) = (client.clone(), 20 + 60 * number);
                tokio::spawn(async move {
                    // Jobs that die with the victim are the point.
                    let Ok(mut events) = client.submit(&job("load", tokens)).await else { return };
                    while events.next().await.is_ok_and(|event| !event.is_last()) {}
                })
            })
            .collect();
        // Not to wait for something, but to hit anything.
        tokio::time::sleep(std::time::Duration::from_millis(random.below(1200))).await;
        let victim = random.below(3);
        eprintln!("kill {kill} of seed {seed} hits {}", trio.all()[usize::try_from(victim).unwrap()].name);
        trio = match victim {
            0 => Trio { issuer: killed(trio.issuer).await, ..trio },
            1 => Trio { provider: killed(trio.provider).await, ..trio },
            _ => Trio { consumer: killed(trio.consumer).await, ..trio },
        };
        for job in load {
            job.await.unwrap();
        }
    }

    trio.check_books().await;
    until_asked(&trio.consumer).await;
    trio.check_books().await;
}

#[tokio::test]
async fn an_index_that_is_gone_or_damaged_is_rebuilt_with_the_same_receipts_and_balances() {
    let ground = Ground::new(SHAREMESH);
    let mut trio = ground.trio(&[]).await;
    for number in 0..3 {
        trio.consumer.must_ask(&job(&format!("job {number}"), 30)).await;
    }
    trio.check_books().await;

    for damage in [deleted, emptied, scrambled] {
        trio.issuer = rebuilt(trio.issuer, damage).await;
        trio.provider = rebuilt(trio.provider, damage).await;
        trio.consumer = rebuilt(trio.consumer, damage).await;
    }
    trio.check_books().await;
}

#[tokio::test]
async fn a_worker_that_crashes_fails_its_jobs_by_name_and_is_started_again() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let answer = trio.consumer.ask(&job("please [[crash=30]]", 200)).await;
    assert_eq!(answer.kind(), Some(FailureKind::WorkerLost), "{answer:?}");
    assert!(answer.tokens <= 30, "{answer:?}");
    let (_, account) = until_asked(&trio.consumer).await;
    assert_eq!(account, trio.provider.status().await.node);
    assert_eq!(trio.provider.status().await.models[0].restarts, 1);
    trio.check_books().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_worker_that_is_killed_takes_only_its_jobs_with_it() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let mut running = trio.consumer.submit(&job("a long story", 1000)).await.unwrap();
    assert!(running.until_tokens(20).await);
    let pid = trio.provider.status().await.models[0].worker_pid.unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());

    let answer = running.end().await;
    assert_eq!(answer.kind(), Some(FailureKind::WorkerLost), "{answer:?}");
    assert_eq!(answer.account.unwrap().tokens_out, answer.tokens);
    until_asked(&trio.consumer).await;
    trio.check_books().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_worker_that_hangs_is_replaced_and_takes_only_its_jobs_with_it() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let mut running = trio.consumer.submit(&job("a long story", 1000)).await.unwrap();
    assert!(running.until_tokens(20).await);
    let hung = halt_worker(&trio.provider).await;

    let answer = running.end().await;
    assert_eq!(answer.kind(), Some(FailureKind::WorkerLost), "{answer:?}");
    assert_eq!(answer.account.unwrap().tokens_out, answer.tokens);
    until_asked(&trio.consumer).await;
    let model = trio.provider.status().await.models.remove(0);
    assert_eq!((model.state.as_str(), model.restarts), ("ready", 1), "{model:?}");
    assert_ne!(model.worker_pid, Some(hung));
    trio.check_books().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_job_whose_worker_hangs_before_its_first_token_is_done_by_another_provider() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;
    let ticket = trio.issuer.ticket(0).await;
    let other = ground.start("other", &["--join", &ticket, "--serve", "fake", PACED]).await;
    trio.consumer.until_provided_by("fake", 2).await;
    // Whoever has a channel is asked again.
    let (_, account) = trio.consumer.must_ask(&job("before", 24)).await;
    let (first, second) = match trio.provider.status().await.node == account.provider {
        true => (&trio.provider, &other),
        false => (&other, &trio.provider),
    };
    halt_worker(first).await;

    let (_, account) = trio.consumer.must_ask(&job("and now?", 24)).await;

    assert_eq!(account.provider, second.status().await.node);
    until("the first one serves again", async || match first.status().await.models.remove(0) {
        model if (model.state.as_str(), model.restarts) == ("ready", 1) => Ok(()),
        model => Err(format!("{model:?}")),
    })
    .await;
    for peer in trio.all().into_iter().chain([&other]) {
        let verified = peer.verify().await;
        assert!(verified.ok, "{}: {verified:#?}", peer.name);
    }
}

/// Stops the worker of a node as a hang does: it is there, and neither computes nor answers. Returns its process id.
#[cfg(target_os = "linux")]
async fn halt_worker(provider: &Peer) -> u32 {
    let pid = provider.status().await.models[0].worker_pid.unwrap();
    assert!(std::process::Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
    // The signal is only on its way: a thread that computes may go on for a moment.
    until("every thread of the worker is stopped", async || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| error.to_string())?;
        let states = threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("stat")));
        let states: Vec<String> = states.flatten().collect();
        match states.iter().all(|state| state.contains(") T ")) {
            true => Ok(()),
            false => Err(format!("{states:?}")),
        }
    })
    .await;
    pid
}

/// Kills a node, starts it again, and checks that it holds what it had acknowledged, once.
async fn killed(mut peer: Peer) -> Peer {
    let before = acknowledged(&peer).await;
    peer.kill();
    let peer = peer.restart().await;
    check_kept(&peer, &before).await;
    peer
}

/// Checks that a node holds the receipts that it had acknowledged, no receipt twice and no number twice.
pub(crate) async fn check_kept(peer: &Peer, before: &BTreeSet<String>) {
    let after = peer.receipts().await;
    let ids: BTreeSet<&str> = after.iter().map(|receipt| receipt.id.as_str()).collect();
    assert_eq!(ids.len(), after.len(), "{} has a receipt twice", peer.name);
    let missing: Vec<_> = before.iter().filter(|id| !ids.contains(id.as_str())).collect();
    assert!(missing.is_empty(), "{} lost {missing:?}", peer.name);
    let numbers: BTreeSet<(&str, u64)> =
        after.iter().filter(|r| r.cosigned).map(|r| (r.channel.as_str(), r.seq)).collect();
    let cosigned = after.iter().filter(|receipt| receipt.cosigned).count();
    assert_eq!(numbers.len(), cosigned, "{} signed two receipts of one number: {after:#?}", peer.name);
    let verified = peer.verify().await;
    assert!(verified.ok, "{}: {verified:#?}", peer.name);
}

/// Damages the index of a node that does not run, and checks that it comes back as it was.
async fn rebuilt(mut peer: Peer, damage: fn(&Path)) -> Peer {
    let before = (peer.receipts().await, peer.balance().await);
    peer.kill();
    damage(&peer.data().join("index"));
    let peer = peer.restart().await;
    let after = until("balances are known again", async || {
        let after = (peer.receipts().await, peer.balance().await);
        if after == before { Ok(after) } else { Err(format!("before {before:#?}, after {after:#?}")) }
    })
    .await;
    assert_eq!(before, after);
    peer
}

fn deleted(index: &Path) {
    fs::remove_dir_all(index).unwrap();
}

fn emptied(index: &Path) {
    files(index, |_| Vec::new());
}

fn scrambled(index: &Path) {
    let mut random = Prng::new(5);
    files(index, |old| old.iter().map(|byte| byte ^ random.next_u64().to_le_bytes()[0]).collect());
}

fn files(folder: &Path, mut change: impl FnMut(Vec<u8>) -> Vec<u8>) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let changed = change(fs::read(&path).unwrap());
                fs::write(&path, changed).unwrap();
            }
        }
    }
}

/// Returns the ids of all receipts that both have signed.
async fn acknowledged(peer: &Peer) -> BTreeSet<String> {
    let receipts = peer.receipts().await;
    receipts.into_iter().filter(|r: &ReceiptView| r.cosigned).map(|r| r.id).collect()
}

/// Asks until somebody answers; returns the text and who it was.
async fn until_asked(consumer: &Peer) -> (String, String) {
    until("a job succeeds", async || {
        let answer = consumer.ask(&job("and now?", 12)).await;
        answer.failure.map_or(Ok((answer.text, answer.provider)), |failure| Err(failure.to_string()))
    })
    .await
}
