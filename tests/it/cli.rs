//! What can go wrong for a user: a message that says what to do, the documented exit code, nothing lost, no panic.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};

use node::exit::FailureKind;
use node::models::catalogue;
use tests::{Ended, Ground, PACED, Peer, job, until};

use crate::SHAREMESH;

const SMALL: &str = r#"--fake={"load_ms":0,"fail_to_load":null,"tokens_per_s":0,"prefill_tokens_per_s":0,"context_length":64,"crash_at":null,"hang_at":null}"#;

#[tokio::test]
async fn what_a_user_asks_wrongly_is_said_with_its_exit_code_and_costs_nothing() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[SMALL]).await;
    let before = trio.consumer.balance().await;
    let consumer = &trio.consumer;
    let long = "many words ".repeat(100);

    let fails = async |words: &[&str], code, says: &[&str]| consumer.cli(words).await.must_fail(code, says);
    fails(&["run", "nosuch", "hello"], 2, &["nobody has heard of the model `nosuch`", "providers"]).await;
    fails(&["run", "smollm2-135m", "hello"], 6, &["nobody serves `smollm2-135m`", "up --serve"]).await;
    fails(&["run", "fake", &long, "--max-tokens", "8"], 2, &["64", "shorten"]).await;
    fails(&["run", "fake", "hello", "--max-tokens", "0"], 2, &["--max-tokens", "at least 1"]).await;
    fails(&["run", "fake", " "], 2, &["empty"]).await;
    fails(&["run", "fake", "x", "--temperature", "9"], 2, &["temperature"]).await;
    fails(&["run", "fake", "x", "--only", "somebody"], 2, &["somebody"]).await;
    fails(&["run", "fake", "x", "--max-price", "0.000000001", "--max-tokens", "8"], 6, &["price"]).await;
    fails(&["run"], 2, &["Usage"]).await;
    fails(&["frobnicate"], 2, &["frobnicate"]).await;
    fails(&["ledger", "show", "00000000"], 1, &["nothing begins"]).await;
    fails(&["ledger", "show", "zz"], 2, &["hexadecimal"]).await;
    fails(&["network", "ticket"], 1, &["not the network's issuer"]).await;
    fails(&["network", "ticket", "--credits=-1"], 2, &["amount of credits"]).await;
    fails(&["grant", "ab", "1"], 1, &["issuer"]).await;
    consumer.cli_with(&["run", "fake"], b"\xff\xfe no text").await.must_fail(2, &["not UTF-8", "iconv"]);

    assert_eq!(trio.issuer.cli(&["network", "ticket", "--credits", "9999999"]).await.code, Some(5));
    let spoken = consumer.cli(&["run", "fake", "hello", "--max-tokens", "8"]).await;
    assert_eq!(spoken.must_succeed().split_whitespace().count(), 8);
    trio.check_books().await;
    assert!(consumer.balance().await.available.nano < before.available.nano);
}

#[tokio::test]
async fn a_consumer_without_credits_is_told_what_it_lacks() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[]).await;
    let poor = ground.start("poor", &["--join", &trio.issuer.ticket(0).await]).await;
    poor.until_provided("fake").await;

    poor.cli(&["run", "fake", "hello"]).await.must_fail(5, &["not enough credits", "grant"]);
    let answer = poor.ask(&job("hello", 20)).await;
    assert_eq!(answer.kind(), Some(FailureKind::NoCredits), "{answer:?}");

    let account = poor.balance().await.account;
    trio.issuer.cli(&["grant", &account, "1"]).await.must_succeed();
    let answered = poor.cli(&["run", "fake", "hello", "--max-tokens", "8", "--json"]).await;
    let answered: serde_json::Value = serde_json::from_str(answered.must_succeed()).unwrap();
    assert_eq!(answered["tokens_out"], 8);
}

#[tokio::test]
async fn a_full_provider_is_named_busy_with_a_time_to_try_again() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED, "--slots", "1"]).await;
    let mut running = trio.consumer.submit(&job("a long story", 2000)).await.unwrap();
    assert!(running.until_tokens(5).await);

    let answer = trio.consumer.ask(&job("me too", 20)).await;
    let failure = answer.failure.expect("there is one slot");
    assert_eq!(
        (failure.kind, failure.reason.as_deref()),
        (FailureKind::Refused, Some("busy")),
        "{failure:?}"
    );
    assert!(failure.retry_after_ms.is_some(), "{failure:?}");
    trio.consumer.cli(&["run", "fake", "me too"]).await.must_fail(1, &["busy", "try again"]);

    drop(running);
    until("the slot is free", async || {
        trio.consumer.ask(&job("me too", 20)).await.failure.map_or(Ok(()), |failure| Err(failure.to_string()))
    })
    .await;
    trio.check_books().await;
}

#[tokio::test]
async fn a_client_that_goes_away_stops_its_job_and_pays_for_what_it_got() {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;

    let run = trio.consumer.cli_begin(&["run", "fake", "a long story", "--max-tokens", "4000"]);
    trio.provider.until_serving(1).await;
    until("tokens are paid for", async || match trio.provider.receipts().await.len() {
        0 | 1 => Err("not yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    run.kill();
    trio.provider.until_idle().await;
    until("the consumer has ended it too", async || match trio.consumer.status().await.jobs_submitted {
        0 => Ok(()),
        jobs => Err(format!("{jobs} jobs")),
    })
    .await;

    trio.until_converged().await;
    let newest = trio.provider.receipts().await.remove(0);
    assert_eq!(newest.calls, 1, "{newest:?}");
    assert!(newest.tokens_out > 0 && newest.tokens_out < 4000, "{newest:?}");
    trio.check_books().await;
}

#[tokio::test]
async fn a_port_or_a_folder_that_is_taken_is_named() {
    let ground = Ground::new(SHAREMESH);
    let running = ground.start("running", &["--dev"]).await;
    let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let (tcp_port, udp_port) = (port(tcp.local_addr()), port(udp.local_addr()));

    let up = async |data: &Path, words: &[&str]| {
        let words = [&["up", "--mdns", "off"], words].concat();
        ground.program().run(data, &words, b"").await
    };
    let other = ground.data("other");
    let api = format!("127.0.0.1:{tcp_port}");
    let mesh = format!("/ip4/127.0.0.1/tcp/{tcp_port}");
    let quic = format!("/ip4/127.0.0.1/udp/{udp_port}/quic-v1");
    up(&other, &["--api", &api, "--listen", "127.0.0.1:0"]).await.must_fail(1, &[&tcp_port, "--api"]);
    up(&other, &["--api", "127.0.0.1:0", "--listen", &mesh])
        .await
        .must_fail(1, &[&tcp_port, "choose another port"]);
    up(&other, &["--api", "127.0.0.1:0", "--listen", &quic])
        .await
        .must_fail(1, &[&udp_port, "choose another port"]);
    let pid = running.client().pid().to_string();
    up(running.data(), &["--api", "127.0.0.1:0", "--listen", "127.0.0.1:0"])
        .await
        .must_fail(1, &["in use by another node", &pid]);
    assert!(running.status().await.ready);
}

#[tokio::test]
async fn tickets_that_admit_nobody_are_refused_and_a_fresh_one_still_works() {
    let ground = Ground::new(SHAREMESH);
    let issuer = ground.start("issuer", &["--dev"]).await;
    let stranger = ground.start("stranger", &["--dev"]).await;
    let ticket = issuer.ticket(1000).await;
    let member = ground.start("member", &["--join", &ticket]).await;
    let join = async |data: &Path, ticket: &str| {
        let words =
            ["up", "--api", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--mdns", "off", "--join", ticket];
        ground.program().run(data, &words, b"").await
    };

    let late = ground.data("late");
    join(&late, "garbage").await.must_fail(2, &["not a whole join ticket"]);
    join(&late, &ticket[..ticket.len() - 8]).await.must_fail(2, &["ticket", "copy it again"]);
    join(&late, &ticket).await.must_fail(1, &["cannot join", "used"]);
    let foreign = stranger.ticket(0).await;
    let mut stopped = member;
    stopped.kill();
    join(stopped.data(), &foreign).await.must_fail(1, &["another folder with --data", "issuer", "stranger"]);

    let late = ground.start("late", &["--join", &issuer.ticket(7).await]).await;
    until_worth(&late, 7).await;
    let member = stopped.restart().await;
    until_worth(&member, 1000).await;
    assert!(issuer.verify().await.ok);
}

#[tokio::test]
async fn commands_without_a_running_node_say_how_to_start_one() {
    let ground = Ground::new(SHAREMESH);
    let nowhere = ground.data("nowhere");

    for words in [&["status"][..], &["run", "fake", "hello"], &["ledger", "verify"], &["network", "ticket"]] {
        ground.program().run(&nowhere, words, b"").await.must_fail(3, &["sharemesh up"]);
    }
    // A node that was killed leaves its address behind.
    let mut killed = ground.start("killed", &["--dev"]).await;
    killed.kill();
    killed.cli(&["status"]).await.must_fail(3, &["sharemesh up"]);
    assert!(!nowhere.exists());
}

#[tokio::test]
async fn files_that_are_no_sound_model_are_refused_by_the_worker_and_the_node_lives() {
    let ground = Ground::new(SHAREMESH);
    let issuer = ground.start("issuer", &["--dev", "--serve", "fake"]).await;
    let path = |name: &str| ground.path().join(format!("{name}.gguf"));
    for other in [&b""[..], b"this is no model at all"] {
        fs::write(path("other"), other).unwrap();
        let words = ["up", "--mdns", "off", "--serve", path("other").to_str().unwrap()].map(str::to_owned);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let refused = ground.program().run(&ground.data("other"), &words, b"").await;
        refused.must_fail(2, &["not a GGUF file", "choose a model"]);
    }
    let mut crafted = vec![
        ("alignment", gguf(0, 1, &[("general.alignment", 0)])),
        ("pairs", gguf(0, u64::MAX, &[])),
        ("tensors", gguf(u64::MAX, 0, &[])),
        ("offset", [gguf(1, 0, &[]), tensor(u64::MAX - 31)].concat()),
    ];
    if let Some(model) = std::env::var_os("SHAREMESH_TEST_MODEL") {
        let whole = fs::read(model).unwrap();
        crafted.push(("truncated", whole[..whole.len() / 100].to_vec()));
    }

    for (name, bytes) in crafted {
        fs::write(path(name), bytes).unwrap();
        let file = path(name).to_str().unwrap().to_owned();
        let refused = ground.launch(&format!("serves-{name}"), &["--dev", "--serve", &file]).await;
        let detail = until("the model is given up", async || {
            let status = refused.status().await;
            let model = &status.models[0];
            if model.state == "failed" { Ok(model.detail.clone()) } else { Err(model.state.clone()) }
        })
        .await;
        assert!(!detail.contains("panicked") && !detail.is_empty(), "{name}: {detail}");
        eprintln!("{name}: {detail}");
        let status = refused.status().await;
        assert!(status.ready && status.warnings.iter().any(|warning| warning.contains(name)), "{status:#?}");
    }
    assert!(issuer.ask(&job("still there?", 8)).await.failure.is_none());
}

#[tokio::test]
async fn a_damaged_model_of_the_catalogue_is_not_served() {
    let ground = Ground::new(SHAREMESH);
    let entry = catalogue::find("smollm2-135m").unwrap();
    let cache = ground.path().join("damaged");
    let folder = cache.join("models").join(&entry.name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(&entry.file), b"not the model").unwrap();

    let words =
        ["up", "--api", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--mdns", "off", "--serve", &entry.name];
    let ended = ground.program().with_cache(&cache).run(&ground.data("node"), &words, b"").await;
    ended.must_fail(1, &["damaged", "SHA-256", "models rm", "pull"]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let ground = Ground::new(SHAREMESH);
    drop(ground.start("node", &["--dev"]).await);
    let script = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 77
        exec "$0" --data "$1" up --api 127.0.0.1:0 --listen 127.0.0.1:0 --mdns off"#;

    let ended = in_namespace(&ground, script, &ground.data("node")).await;
    let Some(ended) = ended else { return };
    ended.must_fail(1, &["cannot be written", "Choose another"]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_disk_that_is_full_stops_the_node_before_anything_is_lost() {
    let ground = Ground::new(SHAREMESH);
    fs::create_dir(ground.data("node")).unwrap();
    // The second start is after room was made.
    let script = r#"mount -t tmpfs -o size=24m tmpfs "$1" || exit 77
        up() { exec "$0" --data "$1/data" up --api 127.0.0.1:0 --listen 127.0.0.1:0 --mdns off --dev \
            --serve fake --exit-with-parent; }
        exec 3<&0
        (up "$1"); code=$?
        rm "$1/filler"; touch "$1/room"
        up "$1" <&3 & node=$!
        trap 'kill $node; wait $node; exit $code' TERM
        wait $node"#;
    let Some(mut shell) = begin_in_namespace(&ground, script, &ground.data("node")) else { return };
    let inside = |path: &str| {
        let folder = ground.data("node");
        format!("/proc/{}/root{}/{path}", shell.id(), folder.display())
    };
    let data = inside("data");
    let run = async |words: &[&str]| ground.program().run(Path::new(&data), words, b"").await;
    let answers = async || {
        let ended = run(&["run", "fake", "hello", "--max-tokens", "8"]).await;
        if ended.code == Some(0) { Ok(()) } else { Err(ended.stderr) }
    };
    until("the node answers", answers).await;

    let filler = vec![0; 64 << 10];
    let mut file = fs::File::create(inside("filler")).unwrap();
    while std::io::Write::write_all(&mut file, &filler).is_ok() {}
    // An open file keeps its room.
    drop(file);
    while !Path::new(&inside("room")).exists() {
        // Each job is a record; the one that does not fit ends the node.
        run(&["run", "fake", "hello", "--max-tokens", "8"]).await;
    }
    until("the node answers again", answers).await;
    let verified = run(&["ledger", "verify"]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");

    assert!(Command::new("kill").arg(shell.id().to_string()).status().unwrap().success());
    let code = shell.wait().unwrap().code();
    let stderr = fs::read_to_string(ground.data("node.log")).unwrap();
    Ended { code, stdout: String::new(), stderr }.must_fail(1, &["free the disk"]);
}

/// Waits until the issuer has told a node what its account has.
async fn until_worth(peer: &Peer, nano: u64) {
    until("the account has what it should", async || match peer.balance().await.available.nano {
        available if available == nano => Ok(()),
        available => Err(format!("{available} nano-credits, not {nano}")),
    })
    .await;
}

/// Runs a script as root of a namespace of its own; nothing where there are none.
#[cfg(target_os = "linux")]
async fn in_namespace(ground: &Ground, script: &str, folder: &Path) -> Option<Ended> {
    let ended = ground.program().finish(namespace(ground, script, folder), b"").await;
    if ended.code == Some(77) || ended.stderr.contains("unshare failed") {
        println!("skipped: no mount namespaces here");
        return None;
    }
    Some(ended)
}

#[cfg(target_os = "linux")]
fn begin_in_namespace(ground: &Ground, script: &str, folder: &Path) -> Option<std::process::Child> {
    let possible =
        Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "tmpfs"]).arg(folder).status();
    if !possible.is_ok_and(|status| status.success()) {
        println!("skipped: no mount namespaces here");
        return None;
    }
    let mut command = namespace(ground, script, folder);
    // Its nodes end with its standard input, which ends with this process at the latest.
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.with_extension("log")).unwrap());
    Some(command.spawn().unwrap())
}

#[cfg(target_os = "linux")]
fn namespace(ground: &Ground, script: &str, folder: &Path) -> Command {
    let mut command = ground.program().command_of("unshare");
    command.args(["-rm", "sh", "-c", script]).arg(ground.program().path()).arg(folder);
    command
}

/// Returns a GGUF header with so many tensors and pairs announced, and these pairs of 32-bit numbers.
fn gguf(tensors: u64, pairs: u64, given: &[(&str, u32)]) -> Vec<u8> {
    const UINT32: u32 = 4;
    let mut bytes = [b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(pairs.to_le_bytes());
    for (key, value) in given {
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(UINT32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// Returns the announcement of a tensor of 32 numbers at an offset.
fn tensor(offset: u64) -> Vec<u8> {
    const F32: u32 = 0;
    let name = "token_embd.weight";
    let mut bytes = (name.len() as u64).to_le_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(32_u64.to_le_bytes());
    bytes.extend(F32.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

fn port(address: std::io::Result<std::net::SocketAddr>) -> String {
    address.unwrap().port().to_string()
}
