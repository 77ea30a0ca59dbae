//! Whole meshes on loopback. Nothing sleeps: each step waits for the event that ends it.

use std::sync::atomic::{AtomicU8, Ordering};

use futures::future::select_all;
use tokio::sync::mpsc;

use super::{events::BOOTSTRAP_INTERVAL, *};

mod attacker;
mod mesh;
mod messages;
mod streams;

const HOME: [u8; 32] = [1; 32];
const ELSEWHERE: [u8; 32] = [2; 32];
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const TCP: &str = "/ip4/127.0.0.1/tcp/0";
/// Far more than any step takes, so that a busy machine fails no test.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(domain: [u8; 32], listen: &str) -> NetConfig {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    NetConfig {
        secret: [NEXT.fetch_add(1, Ordering::Relaxed); 32],
        domain,
        listen: vec![listen.parse().unwrap()],
        announce: Vec::new(),
        mdns: Mdns::Off,
        relay_server: false,
        upnp: false,
        agent: "sharemesh/test".into(),
        limits: Limits::STANDARD,
    }
}

/// Starts a node and waits until it listens.
async fn start(config: NetConfig) -> Net {
    let mut nets = [Net::new(config).unwrap()];
    wait(&mut nets, |_, event| matches!(event, NetEvent::Listening(_)).then_some(())).await;
    let [net] = nets;
    net
}

async fn start_many<const N: usize>(domain: [u8; 32], listen: &str) -> [Net; N] {
    let nets = futures::future::join_all((0..N).map(|_| start(config(domain, listen)))).await;
    nets.try_into().unwrap_or_else(|_| unreachable!("N were started"))
}

/// Drives all nodes until one of their events is the wanted one; events before it are dropped.
async fn wait<T>(nets: &mut [Net], mut wanted: impl FnMut(usize, NetEvent) -> Option<T>) -> T {
    let search = async {
        loop {
            let (event, index, _) = select_all(nets.iter_mut().map(|net| Box::pin(net.next()))).await;
            if let Some(found) = wanted(index, event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("the wanted event comes")
}

/// Connects two of the nodes and waits until both say so.
async fn connect(nets: &mut [Net], from: usize, to: usize) {
    let (from_key, to_key) = (nets[from].me(), nets[to].me());
    let addresses = nets[to].listening();
    nets[from].dial(to_key, addresses);
    let mut up = (false, false);
    wait(nets, |index, event| {
        if let NetEvent::PeerUp(peer) = event {
            up.0 |= index == from && peer == to_key;
            up.1 |= index == to && peer == from_key;
        }
        (up == (true, true)).then_some(())
    })
    .await;
}

/// A node that runs by itself.
struct Running {
    key: PeerKey,
    opener: StreamOpener,
    events: mpsc::Receiver<NetEvent>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn new(mut net: Net) -> Self {
        let (events_in, events) = mpsc::channel(64);
        let (key, opener) = (net.me(), net.opener());
        let task = tokio::spawn(async move { while events_in.send(net.next().await).await.is_ok() {} });
        Self { key, opener, events, task }
    }

    async fn wait<T>(&mut self, mut wanted: impl FnMut(NetEvent) -> Option<T>) -> T {
        let search = async {
            loop {
                if let Some(found) = wanted(self.events.recv().await.expect("the node runs")) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the wanted event comes")
    }

    async fn stream(&mut self) -> JobStream {
        self.wait(|event| if let NetEvent::Stream { stream, .. } = event { Some(stream) } else { None }).await
    }
}

async fn running_pair(listen: &str) -> (Running, Running) {
    let mut nets: [Net; 2] = start_many(HOME, listen).await;
    connect(&mut nets, 0, 1).await;
    let [a, b] = nets.map(Running::new);
    (a, b)
}
