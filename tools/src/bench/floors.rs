//! What this machine can do at best: its disk, and round trips over QUIC without and with the mesh around it.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use libp2p::identity::Keypair;
use libp2p::tls;
use node::net::{JobStream, Limits, Mdns, Net, NetConfig, NetEvent, PeerKey, StreamOpener};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use serde::Serialize;
use tokio::sync::mpsc;

use super::cluster::folder;
use super::samples::{Samples, Spread};

/// About the size of a token's frame.
const FRAME: [u8; 64] = [7; 64];

/// About the size of a record of the ledger.
const RECORD: [u8; 512] = [7; 512];

/// Floors in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Floors {
    /// An append and `fdatasync`, where the nodes keep their ledgers.
    pub(super) fdatasync: Spread,
    /// Raw quinn: there and back on a stream that is open.
    pub(super) quinn: Spread,
    /// Raw quinn: a new stream, there and back.
    pub(super) quinn_new: Spread,
    /// Our job streams: there and back on one that is open.
    pub(super) stream: Spread,
    /// Our job streams: a new one, there and back.
    pub(super) stream_new: Spread,
}

pub(super) async fn measure(runs: usize) -> Result<Floors> {
    let fdatasync = fdatasync(runs.min(300))?;
    let (quinn, quinn_new) = quinn_round_trips(runs).await?;
    let (stream, stream_new) = stream_round_trips(runs).await?;
    Ok(Floors { fdatasync, quinn, quinn_new, stream, stream_new })
}

fn fdatasync(runs: usize) -> Result<Spread> {
    let folder = folder()?;
    let mut file = std::fs::File::create(folder.path().join("journal"))?;
    let mut samples = Samples::default();
    for _ in 0..runs {
        let begun = Instant::now();
        file.write_all(&RECORD)?;
        file.sync_data()?;
        samples.push_time(begun.elapsed());
    }
    Ok(samples.spread())
}

// -------------------------------------------------------------------------------------------------- raw quinn

async fn quinn_round_trips(runs: usize) -> Result<(Spread, Spread)> {
    let (server_key, client_key) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // The mesh's own certificates, so that both floors encrypt alike.
    let crypto = QuicServerConfig::try_from(tls::make_server_config(&server_key)?)?;
    let server = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), address)?;
    let peer = server_key.public().to_peer_id();
    let crypto = QuicClientConfig::try_from(tls::make_client_config(&client_key, Some(peer))?)?;
    let client = quinn::Endpoint::client(address)?;
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = client.connect_with(config, server.local_addr()?, "l")?;
    let answering = tokio::spawn(answer_quinn(server));
    let connection = connecting.await?;

    let mut open = Samples::default();
    let (mut send, mut receive) = connection.open_bi().await?;
    for _ in 0..runs {
        let begun = Instant::now();
        round_trip(&mut send, &mut receive).await?;
        open.push_time(begun.elapsed());
    }
    let mut new = Samples::default();
    for _ in 0..runs {
        let begun = Instant::now();
        let (mut send, mut receive) = connection.open_bi().await?;
        round_trip(&mut send, &mut receive).await?;
        new.push_time(begun.elapsed());
    }
    connection.close(0u32.into(), b"");
    answering.abort();
    Ok((open.spread(), new.spread()))
}

async fn round_trip(send: &mut quinn::SendStream, receive: &mut quinn::RecvStream) -> Result<()> {
    let mut answer = FRAME;
    send.write_all(&FRAME).await?;
    receive.read_exact(&mut answer).await?;
    Ok(())
}

/// Sends back whatever comes, on any stream.
async fn answer_quinn(server: quinn::Endpoint) -> Result<()> {
    let connection = server.accept().await.context("no connection came")?.await?;
    loop {
        let (mut send, mut receive) = connection.accept_bi().await?;
        tokio::spawn(async move {
            let mut frame = FRAME;
            while receive.read_exact(&mut frame).await.is_ok() && send.write_all(&frame).await.is_ok() {}
        });
    }
}

// ------------------------------------------------------------------------------------------- our job streams

async fn stream_round_trips(runs: usize) -> Result<(Spread, Spread)> {
    let (mut answering, mut asking) = (Running::start(1).await?, Running::start(2).await?);
    asking.connect(&mut answering).await?;
    let peer = answering.key;
    let answerer = tokio::spawn(answer_streams(answering.events));
    let events = tokio::spawn(async move { while asking.events.recv().await.is_some() {} });

    let mut open = Samples::default();
    let mut stream = asking.opener.open(peer).await?;
    for _ in 0..runs {
        let begun = Instant::now();
        stream_round_trip(&mut stream).await?;
        open.push_time(begun.elapsed());
    }
    let mut new = Samples::default();
    for _ in 0..runs {
        let begun = Instant::now();
        let mut stream = asking.opener.open(peer).await?;
        stream_round_trip(&mut stream).await?;
        new.push_time(begun.elapsed());
    }
    answerer.abort();
    events.abort();
    Ok((open.spread(), new.spread()))
}

async fn stream_round_trip(stream: &mut JobStream) -> Result<()> {
    stream.send(Bytes::from_static(&FRAME)).await?;
    ensure!(stream.recv().await?.is_some(), "a stream ended");
    Ok(())
}

/// Sends back whatever comes, on any stream.
async fn answer_streams(mut events: mpsc::Receiver<NetEvent>) {
    while let Some(event) = events.recv().await {
        if let NetEvent::Stream { mut stream, .. } = event {
            tokio::spawn(async move {
                while let Ok(Some(frame)) = stream.recv().await {
                    if stream.send(frame).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
}

/// A mesh of its own that runs in a task.
struct Running {
    key: PeerKey,
    net: Option<Net>,
    opener: StreamOpener,
    events: mpsc::Receiver<NetEvent>,
    events_in: mpsc::Sender<NetEvent>,
}

impl Running {
    async fn start(seed: u8) -> Result<Self> {
        let mut net = Net::new(NetConfig {
            secret: [seed; 32],
            domain: [9; 32],
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse()?],
            announce: Vec::new(),
            mdns: Mdns::Off,
            relay_server: false,
            upnp: false,
            agent: "sharemesh/bench".to_owned(),
            limits: Limits::STANDARD,
        })?;
        while !matches!(net.next().await, NetEvent::Listening(_)) {}
        let (events_in, events) = mpsc::channel(64);
        Ok(Self { key: net.me(), opener: net.opener(), net: Some(net), events, events_in })
    }

    /// Connects to another one and lets both run.
    async fn connect(&mut self, other: &mut Self) -> Result<()> {
        let (mut net, other_net) = (self.net.take().context("runs")?, other.net.take().context("runs")?);
        net.dial(other.key, other_net.listening());
        for (mut net, events) in [(net, self.events_in.clone()), (other_net, other.events_in.clone())] {
            tokio::spawn(async move { while events.send(net.next().await).await.is_ok() {} });
        }
        let up = async |events: &mut mpsc::Receiver<NetEvent>| {
            while !matches!(events.recv().await, Some(NetEvent::PeerUp(_)) | None) {}
        };
        up(&mut self.events).await;
        up(&mut other.events).await;
        Ok(())
    }
}
