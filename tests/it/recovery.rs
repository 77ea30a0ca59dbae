//! A node that lost all but its keys gets its channels and its earnings back from the others.

use std::fs;

use tests::{Ground, PACED, job, until};

use crate::SHAREMESH;

#[tokio::test]
async fn a_provider_that_lost_its_journal_gets_its_earnings_back() {
    let ground = Ground::new(SHAREMESH);
    let mut trio = ground.trio(&[PACED]).await;
    trio.consumer.must_ask(&job("a story", 60)).await;
    trio.until_converged().await;
    // What was earned is not on the issuer's books yet when the disk is lost.
    trio.issuer.kill();
    trio.consumer.must_ask(&job("another story", 60)).await;
    trio.until_converged().await;
    let heads = |receipts: Vec<node::api::views::ReceiptView>| {
        receipts.into_iter().filter(|receipt| receipt.cosigned).map(|receipt| receipt.cumulative.nano).max()
    };
    let earned = heads(trio.provider.receipts().await).expect("two jobs were paid");

    trio.provider.kill();
    for lost in ["journal", "index"] {
        fs::remove_dir_all(trio.provider.data().join(lost)).unwrap();
    }
    trio.issuer = trio.issuer.restart().await;
    trio.provider.set_flags(&["--serve", "fake", PACED, "--recover"]);
    trio.provider = trio.provider.restart().await;

    until("the receipts are back", async || {
        let back = heads(trio.provider.receipts().await);
        if back == Some(earned) { Ok(()) } else { Err(format!("{back:?} of {earned}")) }
    })
    .await;
    let log = trio.provider.log();
    assert!(log.contains("Got a channel back") && log.contains("Recovered"), "{log}");
    let verified = trio.provider.verify().await;
    assert!(verified.ok, "{verified:#?}");
    trio.check_books().await;
    assert!(trio.provider.balance().await.earned.nano > 0);
}

#[tokio::test]
async fn what_cannot_be_recovered_is_said() {
    let ground = Ground::new(SHAREMESH);
    let nothing = ground.program().run(&ground.data("new"), &["up", "--recover"], b"").await;
    nothing.must_fail(2, &["keys", "--join"]);
    assert!(!ground.data("new").join("keys").exists(), "no new identity");

    let mut issuer = ground.start("issuer", &["--dev"]).await;
    issuer.kill();
    let books = issuer.cli(&["up", "--recover"]).await;
    assert_ne!(books.code, Some(0));
    assert!(books.stderr.contains("issuer") && books.stderr.contains("backup"), "{books:?}");
}
