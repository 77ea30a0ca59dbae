//! Networks with four issuers as four processes, of which one is killed, hangs or lies, and two are killed.

use node::api::views::{AuditView, StatusView};
use node::exit::FailureKind;
use protocol::ids::AccountId;
use tests::{Council, Ground, PACED, Peer, job, until};

use crate::SHAREMESH;
use crate::liar::Liar;

#[tokio::test]
async fn one_of_four_issuers_is_killed_and_nobody_waits_for_it() {
    let ground = Ground::new(SHAREMESH);
    let mut council = ground.council(4, &[PACED]).await;
    let running = council.consumer.submit(&job("a long story", 100)).await.unwrap();

    council.issuers[2].kill();
    let answer = running.end().await;
    assert!(answer.failure.is_none(), "{answer:?}");
    close_channels(&council).await;
    // A new channel, which three of four open.
    council.consumer.must_ask(&job("another story", 24)).await;

    council.restart_issuer(2).await;
    council.check_books().await;
}

#[tokio::test]
async fn one_of_four_issuers_hangs_for_a_while_and_catches_up() {
    let ground = Ground::new(SHAREMESH);
    let council = ground.council(4, &[]).await;

    council.issuers[1].signal("STOP");
    council.consumer.must_ask(&job("a story", 24)).await;
    close_channels(&council).await;
    council.consumer.must_ask(&job("another story", 24)).await;

    council.issuers[1].signal("CONT");
    council.check_books().await;
}

#[tokio::test]
async fn two_of_four_issuers_are_killed_and_nothing_commits_until_one_is_back() {
    let ground = Ground::new(SHAREMESH);
    let mut council = ground.council(4, &[]).await;
    council.issuers[1].kill();
    council.issuers[3].kill();

    let answer = council.consumer.ask(&job("a story", 24)).await;
    assert_eq!(answer.kind(), Some(FailureKind::Unavailable), "{answer:?}");
    let message = answer.failure.unwrap().message;
    assert!(message.contains("4 issuers") && message.contains("3 must agree"), "{message}");
    for issuer in [&council.issuers[0], &council.issuers[2]] {
        assert_eq!(issuer.balance().await.books.unwrap().held.nano, 0, "an issuer holds an escrow");
    }

    council.restart_issuer(3).await;
    until("a job is done again", async || {
        let answer = council.consumer.ask(&job("a story", 24)).await;
        answer.failure.map_or(Ok(()), |failure| Err(failure.message))
    })
    .await;
    council.restart_issuer(1).await;
    council.check_books().await;
}

#[tokio::test]
async fn one_of_four_issuers_lies_about_everything_and_honest_nodes_lose_nothing() {
    let ground = Ground::new(SHAREMESH);
    let council = ground.council(3, &[]).await;
    let liar = Liar::start(&council).await;
    for peer in council.all() {
        peer.until_issuers(4).await;
    }

    let poor = ground.start("poor", &["--join", &council.issuers[0].ticket(0).await]).await;
    liar.meet(&poor).await;
    poor.until_issuers(4).await;
    poor.until_provided("fake").await;
    // Each request without credits asks all issuers, and a question on a new connection may be lost.
    until("the liar is asked for a balance", async || {
        let answer = poor.ask(&job("a story", 24)).await;
        assert_eq!(answer.kind(), Some(FailureKind::NoCredits), "{answer:?}");
        if liar.told().contains("account_state") { Ok(()) } else { Err("it was not asked".to_owned()) }
    })
    .await;

    council.consumer.must_ask(&job("a story", 24)).await;
    council.provider.cli(&["ledger", "settle"]).await.must_succeed();
    let redeemed = council.provider.balance().await;
    close_channels(&council).await;
    council.consumer.must_ask(&job("another story", 24)).await;
    council.check_books().await;
    assert_eq!(redeemed.pending.nano, 0, "three of four acknowledged it: {redeemed:?}");
    let told = liar.told();
    for lie in ["voted", "recorded", "redeemed", "account_state"] {
        assert!(told.contains(lie), "it never came to `{lie}`: {told:?}");
    }
}

#[tokio::test]
async fn a_lying_issuer_votes_for_two_of_its_own_payments_in_one_slot_and_one_is_made() {
    let ground = Ground::new(SHAREMESH);
    let council = ground.council(3, &[]).await;
    let liar = Liar::start(&council).await;
    for peer in council.all() {
        peer.until_issuers(4).await;
    }
    let account = Liar::account().to_string();
    council.issuers[0].cli(&["grant", &account, "5"]).await.must_succeed();
    let (nano, to) = (4_000_000_000, [AccountId([1; 32]), AccountId([2; 32])]);
    let mut nodes = Vec::new();
    for issuer in &council.issuers {
        until("the liar has credits", async || {
            let held = held_by(issuer, &account).await;
            if held > nano { Ok(()) } else { Err(format!("it has {held}")) }
        })
        .await;
        nodes.push(issuer.status().await.node.parse().unwrap());
    }

    liar.spend_twice(nodes.try_into().unwrap(), to, nano).await;

    for issuer in &council.issuers {
        until("the payment is in the books", async || {
            let paid = held_by(issuer, &to[0].to_string()).await;
            if paid == nano { Ok(()) } else { Err(format!("{paid}: {:?}", liar.told())) }
        })
        .await;
    }
    council.consumer.must_ask(&job("a story", 24)).await;
    council.check_books().await;
    for issuer in &council.issuers {
        assert_eq!(held_by(issuer, &to[1].to_string()).await, 0, "the second payment was made too");
    }
}

/// Returns what an account can spend by an issuer's books.
async fn held_by(issuer: &Peer, account: &str) -> u64 {
    let books = issuer.balance().await.books.expect("an issuer's");
    let book = books.accounts.iter().find(|book| book.account == account);
    book.map_or(0, |book| book.cash.nano + book.earned.nano)
}

/// Closes and redeems everything, so that the next job needs a new channel.
async fn close_channels(council: &Council) {
    until("the channel is closed", async || {
        council.consumer.cli(&["ledger", "settle"]).await.must_succeed();
        let balance = council.consumer.balance().await;
        if balance.channels_out == 0 { Ok(()) } else { Err(format!("{balance:?}")) }
    })
    .await;
}

#[tokio::test]
async fn who_is_no_issuer_of_the_network_is_told_why() {
    let ground = Ground::new(SHAREMESH);
    let (ours, theirs) = (ground.found("ours", 4, &[]).await, ground.found("theirs", 1, &[]).await);
    let program = ground.program();
    let file = |founded: &tests::Founded| founded.file.display().to_string();
    let (our_file, their_file) = (file(&ours), file(&theirs));
    let key = theirs.keys[0].display().to_string();
    let up = async |data: &str, flags: &[&str]| {
        let words =
            [&["--api", "127.0.0.1:0", "up", "--mdns", "off", "--listen", "127.0.0.1:0"], flags].concat();
        program.run(&ground.data(data), &words, b"").await
    };

    up("a", &["--network", &our_file, "--issuer-key", &key])
        .await
        .must_fail(1, &["none of the 4 issuers of network `ours`"]);
    up("a", &["--network", &our_file]).await.must_fail(1, &["admits holders of a ticket"]);
    up("a", &["--issuer-key", &key]).await.must_fail(2, &["need a network", "--network"]);
    up("a", &["--network", &key]).await.must_fail(2, &["theirs.issuer-1.key is wrong"]);
    up("a", &["--network", &their_file, "--issuer-key", &their_file])
        .await
        .must_fail(2, &["theirs.toml is not an issuer's key file"]);
    assert!(!ground.data("a").join("keys").exists(), "a node that cannot start leaves no keys");

    let mut issuer = ground.start("b", &["--network", &their_file, "--issuer-key", &key]).await;
    issuer.kill();
    up("b", &["--network", &our_file]).await.must_fail(1, &["the file is for network `ours`", "--data"]);
    let other = ours.keys[0].display().to_string();
    up("b", &["--issuer-key", &other]).await.must_fail(1, &["has the keys of another node"]);
    ground.create_network("ours", &["--issuers", "4"]).await.must_fail(1, &["is there already"]);
}

#[tokio::test]
async fn operators_who_make_their_own_keys_found_a_network_together() {
    let ground = Ground::new(SHAREMESH);
    let mut options = Vec::new();
    for number in 1..=4 {
        let data = ground.data(&format!("issuer-{number}"));
        let made = ground.program().run(&data, &["network", "issuer-key"], b"").await;
        options.extend(["--issuer".to_owned(), made.must_succeed().trim().to_owned()]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    ground.create_network("ours", &options).await.must_succeed();
    let file = ground.path().join("ours.toml").display().to_string();

    let first = ground.start("issuer-1", &["--network", &file]).await;
    let at = first.status().await.addresses.into_iter().find(|address| address.contains("/quic-v1")).unwrap();
    let second = ground.start("issuer-2", &["--network", &file, "--bootstrap", &at]).await;

    second.until_issuers(2).await;
    let StatusView { network, warnings, .. } = second.status().await;
    assert!(network.issuer && network.issuers.len() == 4 && network.quorum == 3, "{network:?}");
    assert!(
        warnings.iter().any(|warning| warning.starts_with("2 of the network's 4 issuers")),
        "{warnings:?}"
    );
}

#[tokio::test]
async fn an_open_network_needs_no_ticket() {
    let ground = Ground::new(SHAREMESH);
    let founded = ground.found("open", 1, &["--admission", "open"]).await;
    let issuer = ground.start_issuers(&founded, 1).await.remove(0);
    let at =
        issuer.status().await.addresses.into_iter().find(|address| address.contains("/quic-v1")).unwrap();
    let file = founded.file.display().to_string();

    let member = ground.start("member", &["--network", &file, "--bootstrap", &at]).await;
    member.until_issuers(1).await;
    let account = member.status().await.account;
    issuer.cli(&["grant", &account, "5"]).await.must_succeed();

    member.until_available(5_000_000_000).await;
    assert!(!member.status().await.network.issuer);
}

#[tokio::test]
async fn short_epochs_pass_and_another_node_computes_a_checkpoint_again() {
    let ground = Ground::new(SHAREMESH);
    let founded = ground.found("lab", 1, &["--epoch", "2s"]).await;
    let issuer = ground.start_issuers(&founded, 1).await.remove(0);
    let serving = ["--join", &issuer.ticket(0).await, "--serve", "fake"];
    let provider = ground.start("provider", &serving).await;
    let ticket = issuer.ticket(tests::OPENING_NANO).await;
    let consumer = ground.start("consumer", &["--join", &ticket]).await;
    consumer.until_available(tests::OPENING_NANO).await;
    consumer.until_provided("fake").await;
    consumer.must_ask(&job("a story", 24)).await;

    let epoch = until_checkpoint(&consumer, 2).await;
    until("the audit has all it needs", async || {
        let audited = consumer.cli(&["ledger", "audit", "--json"]).await;
        let view: AuditView = serde_json::from_str(&audited.stdout).map_err(|_| audited.stderr)?;
        assert!(view.ok && view.epoch >= epoch && view.own.is_some(), "{view:#?}");
        Ok(())
    })
    .await;
    drop(provider);
}

#[tokio::test]
async fn four_issuers_agree_on_checkpoints_with_one_killed_and_any_node_computes_them_again() {
    let ground = Ground::new(SHAREMESH);
    let mut council = ground.council_with(4, &["--epoch", "4s"], &[]).await;
    council.consumer.must_ask(&job("a story", 24)).await;
    let agreed = until_checkpoint(&council.consumer, 1).await;

    council.issuers[2].kill();
    until_checkpoint(&council.consumer, agreed + 2).await;
    council.consumer.must_ask(&job("another story", 24)).await;
    for peer in [&council.consumer, &council.provider, &council.issuers[0]] {
        until("its audit has all it needs", async || {
            let audited = peer.cli(&["ledger", "audit", "--json"]).await;
            let view: AuditView = serde_json::from_str(&audited.stdout).map_err(|_| audited.stderr)?;
            assert!(view.ok && view.epoch > agreed && view.signatures >= 3, "{view:#?}");
            Ok(())
        })
        .await;
    }
    let said = council.consumer.cli(&["status"]).await;
    assert!(said.must_succeed().contains("checkpoint of epoch"));

    council.restart_issuer(2).await;
    until_one_chain(&council).await;
    let books = council.consumer.status().await.books;
    assert!(books.findings.is_empty() && books.equivocations.is_empty(), "{books:?}");
}

/// Waits until everybody has the same newest checkpoint.
async fn until_one_chain(council: &Council) {
    until("everybody knows one newest checkpoint", async || {
        let mut known = Vec::new();
        for peer in council.all() {
            let books = peer.status().await.books;
            known.push((books.checkpoint_epoch, books.checkpoint));
        }
        if known.windows(2).all(|pair| pair[0] == pair[1]) { Ok(()) } else { Err(format!("{known:?}")) }
    })
    .await;
}

/// Waits until a node has this many checkpoints behind it; returns the newest epoch.
async fn until_checkpoint(peer: &Peer, epochs: u64) -> u64 {
    until("epochs pass", async || {
        let seen = peer.status().await.books.checkpoint_epoch;
        seen.filter(|epoch| *epoch >= epochs).ok_or_else(|| format!("{seen:?}"))
    })
    .await
}
