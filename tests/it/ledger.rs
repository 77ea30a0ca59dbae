//! Money beside channels, and the ledger as its owner reads and moves it, by the commands of whole nodes.

use std::fs;
use std::path::Path;

use node::api::views::{
    BalanceView, DepositView, EntryView, LedgerChannelView, ReceiptDetailView, StatementView, WithdrawalView,
};
use serde::de::DeserializeOwned;
use tests::{Council, Ended, Ground, OPENING_NANO, Peer, check_sums, job, until};

use crate::SHAREMESH;

const CREDIT: u64 = 1_000_000_000;

fn read<T: DeserializeOwned>(ended: &Ended) -> T {
    serde_json::from_str(ended.must_succeed()).expect("one object")
}

async fn statement(peer: &Peer) -> StatementView {
    read(&peer.cli(&["ledger", "statement", "--json"]).await)
}

fn all(balance: &BalanceView) -> u64 {
    balance.cash.nano + balance.earned.nano
}

/// Waits until the statement adds up to what the account has, every channel being closed.
async fn until_explained(peer: &Peer) -> StatementView {
    until("the statement explains the balance", async || {
        let (view, balance) = (statement(peer).await, peer.balance().await);
        let holds = view.closing.nano == all(&balance);
        if holds { Ok(view) } else { Err(format!("{view:#?} for {balance:?}")) }
    })
    .await
}

#[tokio::test]
async fn a_deposit_counts_once_and_a_payment_arrives() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    let (consumer, provider) = (trio.consumer.status().await.account, trio.provider.status().await.account);

    let deposit = ["deposit", &consumer, "3", "--reference", "transfer 17", "--json"];
    let first: DepositView = read(&trio.issuer.cli(&deposit).await);
    let again: DepositView = read(&trio.issuer.cli(&deposit).await);
    assert_eq!((first.booked, again.booked), (true, false));
    assert_eq!(again.available.nano, OPENING_NANO + 3 * CREDIT);
    let other = ["deposit", &consumer, "4", "--reference", "transfer 17"];
    trio.issuer.cli(&other).await.must_fail(1, &["transfer 17", "booked before", "3 credits"]);
    trio.consumer.cli(&deposit).await.must_fail(1, &["issuer"]);
    trio.issuer.cli(&["deposit", "ab", "4", "--reference", "x"]).await.must_fail(2, &["id"]);
    until("the consumer knows of its deposit", async || {
        let view = statement(&trio.consumer).await;
        if view.closing.nano == OPENING_NANO + 3 * CREDIT { Ok(()) } else { Err(format!("{view:?}")) }
    })
    .await;

    trio.consumer.cli(&["pay", &provider, "1.5"]).await.must_succeed();
    trio.consumer.cli(&["pay", &provider, "100"]).await.must_fail(5, &["not enough cash"]);
    trio.consumer.cli(&["pay", &consumer, "1"]).await.must_fail(2, &["somebody else"]);
    let view = until_explained(&trio.provider).await;
    let received = view.lines.iter().find(|line| line.kind == "received").expect("it was paid");
    assert_eq!((received.credit.nano, received.partner.as_ref()), (CREDIT * 3 / 2, Some(&consumer)));
    let shown: EntryView = read(
        &trio.provider.cli(&["ledger", "show", received.record.as_ref().expect("a step"), "--json"]).await,
    );
    assert_eq!(shown.kind, "step");
    check_sums(&trio.all()).await;
}

#[tokio::test]
async fn a_withdrawal_is_confirmed_requested_and_marked_as_paid_once() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    let before = trio.consumer.balance().await.cash.nano;

    let withdraw = ["withdraw", "1", "--to", "a bank"];
    trio.consumer.cli(&withdraw).await.must_fail(2, &["0.001 credits", "--yes", "nothing was withdrawn"]);
    assert_eq!(trio.consumer.balance().await.cash.nano, before);
    let asked: WithdrawalView =
        read(&trio.consumer.cli(&[&withdraw[..], &["--yes", "--json"]].concat()).await);
    assert_eq!(trio.consumer.balance().await.cash.nano, before - CREDIT - CREDIT / 1_000);

    let listed = until("the operator knows where to pay", async || {
        let listed: Vec<WithdrawalView> = read(&trio.issuer.cli(&["withdraw", "ls", "--json"]).await);
        let known = listed.iter().all(|one| one.to.as_deref() == Some("a bank"));
        if known { Ok(listed) } else { Err(format!("{listed:?}")) }
    })
    .await;
    assert_eq!(
        (listed.len(), listed[0].id.as_str(), listed[0].state.as_str()),
        (1, asked.id.as_str(), "requested")
    );

    let paid = ["withdraw", "paid", &asked.id[..8], "--reference", "transfer 88"];
    trio.consumer.cli(&paid).await.must_fail(1, &["issuer"]);
    for _ in 0..2 {
        let marked: WithdrawalView = read(&trio.issuer.cli(&[&paid[..], &["--json"]].concat()).await);
        assert_eq!((marked.state.as_str(), marked.reference.as_deref()), ("paid", Some("transfer 88")));
    }
    let other = ["withdraw", "paid", &asked.id, "--reference", "transfer 89"];
    trio.issuer.cli(&other).await.must_fail(1, &["transfer 88"]);
    until("the owner is told that it was paid", async || {
        let own: Vec<WithdrawalView> = read(&trio.consumer.cli(&["withdraw", "ls", "--json"]).await);
        let told = own.iter().any(|one| one.reference.as_deref() == Some("transfer 88"));
        if told { Ok(()) } else { Err(format!("{own:?}")) }
    })
    .await;
    let books = trio.issuer.balance().await.books.expect("the issuer has books");
    assert_eq!((books.withdrawn.nano, books.conserved), (CREDIT, true));
    check_sums(&trio.all()).await;
}

#[tokio::test]
async fn every_line_of_a_statement_leads_to_its_receipt_and_its_jobs() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    let (_, account) = trio.consumer.must_ask(&job("what moved", 24)).await;
    let open: Vec<LedgerChannelView> = read(&trio.consumer.cli(&["ledger", "channels", "--json"]).await);
    assert_eq!((open.len(), open[0].side.as_str()), (1, "paying"));
    assert!(open[0].room.nano > 0 && open[0].room.nano < open[0].cap.nano, "{open:?}");
    trio.check_books().await;

    for (peer, kind) in [(&trio.consumer, "bought"), (&trio.provider, "sold")] {
        let view = until_explained(peer).await;
        let line = view.lines.iter().find(|line| line.kind == kind).expect("work was done");
        let receipt: ReceiptDetailView =
            read(&peer.cli(&["ledger", "show", line.record.as_ref().expect("a receipt"), "--json"]).await);
        assert!(receipt.jobs.iter().any(|done| done.job == account.job), "{receipt:?}");
        let done: EntryView = read(&peer.cli(&["ledger", "show", &account.job, "--json"]).await);
        assert_eq!(done.kind, "job");
        let channel = line.channel.as_ref().expect("on a channel");
        let channel: EntryView = read(&peer.cli(&["ledger", "show", channel, "--json"]).await);
        assert!(channel.follow.iter().any(|fact| fact.value == account.job), "{channel:?}");
        let ended: Vec<LedgerChannelView> = read(&peer.cli(&["ledger", "channels", "--json"]).await);
        assert!(ended.iter().all(|channel| channel.state == "ended"), "{ended:?}");
    }
    let csv = trio.consumer.cli(&["ledger", "statement", "--csv"]).await;
    assert!(csv.must_succeed().starts_with("epoch,kind,credit,debit,partner,record,channel\n0,deposit,2,0,"));
    trio.consumer.cli(&["ledger", "statement", "--from", "5", "--to", "4"]).await.must_fail(2, &["period"]);
    trio.consumer.cli(&["ledger", "show", &"0".repeat(64)]).await.must_fail(1, &["nothing begins"]);
}

/// Copies a node's keys, and nothing else.
fn copy_keys(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().contains("key") {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_ledger_moves_to_an_empty_folder_whole_or_not_at_all() {
    let ground = Ground::new(SHAREMESH);
    let mut trio = ground.trio(&[]).await;
    trio.consumer.must_ask(&job("what is moved", 24)).await;
    trio.check_books().await;
    let (file, moved) = (ground.path().join("consumer.ledger"), ground.data("moved"));
    let file_name = file.to_str().unwrap();
    let (export, import) = (["ledger", "export", file_name], ["ledger", "import", file_name]);
    let program = ground.program().clone();

    trio.consumer.cli(&export).await.must_fail(1, &["sharemesh down", "forks"]);
    let before = trio.consumer.balance().await;
    let old = trio.consumer.data().to_owned();
    trio.consumer.kill();
    let first = program.run(&old, &[&export[..], &["--json"]].concat(), b"").await;
    let again = program.run(&old, &[&export[..], &["--json"]].concat(), b"").await;
    let object = |ended: &Ended| read::<serde_json::Value>(ended);
    assert_eq!(object(&first)["head"], object(&again)["head"]);
    assert_eq!(object(&again)["new"], 0);

    program.run(&moved, &import, b"").await.must_fail(1, &["keys"]);
    copy_keys(&old, &moved);
    let whole = fs::read(&file).unwrap();
    for position in [5, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[position] ^= 1;
        fs::write(&file, &damaged).unwrap();
        program.run(&moved, &import, b"").await.must_fail(1, &["Nothing was changed"]);
    }
    fs::write(&file, &whole[..whole.len() - 7]).unwrap();
    program.run(&moved, &import, b"").await.must_fail(1, &["breaks off"]);
    assert!(!moved.join("journal").exists());
    fs::write(&file, &whole).unwrap();
    program.run(&old, &import, b"").await.must_fail(1, &["not empty"]);
    let rebuilt = program.run(&moved, &[&import[..], &["--json"]].concat(), b"").await;
    assert_eq!(object(&rebuilt)["head"], object(&first)["head"]);
    program.run(&moved, &import, b"").await.must_fail(1, &["not empty"]);

    trio.consumer = ground.start("moved", &[]).await;
    check_sums(&trio.all()).await;
    assert_eq!(all(&trio.consumer.balance().await), all(&before));
    until_explained(&trio.consumer).await;
}

#[tokio::test]
async fn three_of_four_operators_book_a_deposit_one_pays_a_withdrawal_and_statements_show_both() {
    let ground = Ground::new(SHAREMESH);
    let council = ground.council_with(4, &["--epoch", "10s"], &[]).await;
    let [first, second, third, _] = council.issuers.as_slice() else { unreachable!("four issuers") };
    let (consumer, provider) =
        (council.consumer.status().await.account, council.provider.status().await.account);
    let deposit = ["deposit", &consumer, "3", "--reference", "transfer 17", "--json"];
    let signed: DepositView = read(&first.cli(&deposit).await);
    assert_eq!((signed.booked, signed.signed, signed.needed), (false, 1, 3));
    let slip = ["deposit", &consumer, "4", "--reference", "transfer 17"];
    first.cli(&slip).await.must_fail(1, &["transfer 17", "was signed here before", "3 credits"]);
    second.cli(&deposit).await.must_succeed();
    until("the first operator sees that another one has signed", async || {
        let view: DepositView = read(&first.cli(&deposit).await);
        if view.signed == 2 { Ok(()) } else { Err(format!("{view:?}")) }
    })
    .await;
    assert_eq!(council.consumer.balance().await.cash.nano, OPENING_NANO);

    third.cli(&deposit).await.must_succeed();
    council.consumer.until_available(OPENING_NANO + 3 * CREDIT).await;
    council.consumer.cli(&["pay", &provider, "1.5"]).await.must_succeed();
    let view = until_explained(&council.provider).await;
    let received = view.lines.iter().find(|line| line.kind == "received").expect("it was paid");
    assert_eq!((received.credit.nano, received.partner.as_ref()), (CREDIT * 3 / 2, Some(&consumer)));
    let view = until_explained(&council.consumer).await;
    let deposits = view.lines.iter().filter(|line| line.kind == "deposit").map(|line| line.credit.nano);
    assert_eq!(deposits.collect::<Vec<_>>(), [OPENING_NANO, 3 * CREDIT]);

    council.consumer.cli(&["withdraw", "1", "--to", "a bank", "--yes"]).await.must_succeed();
    is_paid_by_one(&council).await;
    council.check_books().await;
}

/// The operator whose turn it is pays the only withdrawal; the others cannot mark it, and all come to know.
async fn is_paid_by_one(council: &Council) {
    let mut payers = Vec::new();
    for issuer in &council.issuers {
        let is_to_be_paid = |one: &WithdrawalView| one.to.is_some() && one.state == "requested";
        let listed = until_withdrawal(issuer, is_to_be_paid).await;
        assert_eq!(listed.to.as_deref(), Some("a bank"));
        payers.push((issuer, issuer.status().await.node, listed));
    }
    payers.sort_by_key(|(_, node, listed)| listed.payer.as_ref() == Some(node));
    for (place, (issuer, _, listed)) in payers.iter().enumerate() {
        let ended = issuer.cli(&["withdraw", "paid", &listed.id, "--reference", "t 1"]).await;
        if place == 3 {
            ended.must_succeed();
        } else {
            ended.must_fail(1, &["paid twice"]);
        }
    }
    let payer = payers[3].1.clone();
    for peer in council.issuers.iter().chain([&council.consumer]) {
        let told = until_withdrawal(peer, |one| one.reference.as_deref() == Some("t 1")).await;
        assert_eq!((told.state.as_str(), told.payer.as_ref()), ("paid", Some(&payer)));
    }
}

async fn until_withdrawal(peer: &Peer, so: impl Fn(&WithdrawalView) -> bool) -> WithdrawalView {
    until("a withdrawal is listed as it should be", async || {
        let listed: Vec<WithdrawalView> = read(&peer.cli(&["withdraw", "ls", "--json"]).await);
        listed.iter().find(|one| so(one)).cloned().ok_or_else(|| format!("{listed:?}"))
    })
    .await
}
