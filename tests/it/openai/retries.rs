//! Clients that ask again by their own logic: nobody pays twice for what came once.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;
use tests::{Ground, PACED, Peer, Trio, until};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::{Said, billed, clients, node_of, python_of, script};
use crate::SHAREMESH;

#[tokio::test]
async fn what_the_python_client_asks_for_again_is_paid_once() {
    let Some(clients) = clients() else { return };
    ask_again(|| python_of(&clients), "retries.py").await;
}

#[tokio::test]
async fn what_the_node_client_asks_for_again_is_paid_once() {
    let Some(clients) = clients() else { return };
    ask_again(|| node_of(&clients), "node/retries.mjs").await;
}

/// Runs a program whose connections are cut, and again while there is no provider.
async fn ask_again(interpreter: impl Fn() -> Command, name: &str) {
    let ground = Ground::new(SHAREMESH);
    let mut trio = ground.trio(&[PACED]).await;

    let said = through_doors(&ground, &trio, interpreter(), name).await;
    assert_eq!(said.end.done.len(), 6, "{:?}", said.end);
    check_billed(&trio, &said).await;

    trio.provider.kill();
    let provider = trio.provider;
    let consumer = &trio.consumer;
    let before = refusals(consumer).await;
    let (said, provider) = tokio::join!(script(&ground, interpreter(), consumer, name, &["fake"]), async {
        until("somebody was told that nobody is there", async || {
            let now = refusals(consumer).await;
            if now == before { Err(format!("{now:?}")) } else { Ok(()) }
        })
        .await;
        provider.restart().await
    });
    trio.provider = provider;
    assert_eq!(said.end.done.len(), 1, "{:?}", said.end);
    check_billed(&trio, &said).await;
    trio.check_books().await;
}

/// Checks that nothing was billed after the program had looked.
async fn check_billed(trio: &Trio, said: &Said) {
    trio.provider.until_idle().await;
    assert_eq!(said.lines[0]["billed"], json!(billed(trio).await));
}

/// Returns what a node counted of its answers that nobody can do a job.
async fn refusals(node: &Peer) -> Vec<String> {
    let http = reqwest::Client::builder().no_proxy().build().expect("plain");
    let answer = http.get(format!("http://{}/metrics", node.client().address())).send().await;
    let metrics = answer.expect("answered").text().await.expect("text");
    let counts = |line: &&str| line.contains("_count{") && line.contains("status_code=\"503\"");
    metrics.lines().filter(counts).map(str::to_owned).collect()
}

/// Runs a program with three doors to the consumer, at each of which the first connection is cut: at one while the provider
/// works for it, at the others when the answer is there and none of it was passed on.
async fn through_doors(ground: &Ground, trio: &Trio, interpreter: Command, name: &str) -> Said {
    let node = trio.consumer.client().address();
    let doors = [open_door().await, open_door().await, open_door().await];
    let base = |door: &TcpListener| format!("http://{}/v1", door.local_addr().expect("it listens"));
    let bases = doors.each_ref().map(base);
    let words: Vec<&str> = ["fake"].into_iter().chain(bases.iter().map(String::as_str)).collect();
    let works = async |_: &TcpStream| trio.provider.until_serving(1).await;
    let answers = async |node: &TcpStream| node.readable().await.expect("an answer");
    tokio::select! {
        said = script(ground, interpreter, &trio.consumer, name, &words) => said,
        () = keep_door(&doors[0], node, works) => unreachable!("it is kept for ever"),
        () = keep_door(&doors[1], node, answers) => unreachable!("it is kept for ever"),
        () = keep_door(&doors[2], node, answers) => unreachable!("it is kept for ever"),
    }
}

async fn open_door() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a port is free")
}

/// Passes connections on for ever; the first it cuts, when it is time to.
async fn keep_door(door: &TcpListener, node: SocketAddr, is_time: impl AsyncFn(&TcpStream)) {
    let (mut client, mut served) = accept(door, node).await;
    {
        let (mut asking, _) = client.split();
        let (answering, mut asked) = served.split();
        tokio::select! {
            _ = tokio::io::copy(&mut asking, &mut asked) => {}
            () = is_time(answering.as_ref()) => {}
        }
    }
    drop((client, served));
    loop {
        let (mut client, mut served) = accept(door, node).await;
        tokio::spawn(async move { copy_bidirectional(&mut client, &mut served).await });
    }
}

/// Returns the next connection, and one to the node for it.
async fn accept(door: &TcpListener, node: SocketAddr) -> (TcpStream, TcpStream) {
    let (client, _) = door.accept().await.expect("a connection");
    (client, TcpStream::connect(node).await.expect("the node listens"))
}
