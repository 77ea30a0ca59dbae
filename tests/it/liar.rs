//! An issuer that speaks the protocol well and lies about everything, over real connections.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::identity::{Keypair, ed25519};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, SwarmBuilder, identify, noise, tcp, yamux};
use libp2p_stream::Control;
use node::clock::Clock;
use node::issuer_key::IssuerKey;
use node::network_file::NetworkFile;
use protocol::advert::{Incentive, ProviderClass};
use protocol::ids::{AccountId, DomainId, NodeId};
use protocol::keys::{Scheme, Signer};
use protocol::message::{Message, Wire};
use protocol::node::{Config, Effect, Input, Node};
use protocol::time::Time;
use simulations::liar::{RICH, answer};
use tests::{Council, Peer};
use tokio::sync::mpsc;

/// How often its timers are looked at.
const TICK: Duration = Duration::from_millis(100);

type Told = Arc<Mutex<BTreeSet<&'static str>>>;

/// The last issuer of a network; it ends with this.
pub(crate) struct Liar {
    told: Told,
    dials: mpsc::Sender<Multiaddr>,
    task: tokio::task::JoinHandle<()>,
}

impl Liar {
    /// Starts the last issuer of a network and connects it to everybody.
    pub(crate) async fn start(council: &Council) -> Self {
        let keys = IssuerKey::read(council.founded.keys.last().unwrap()).unwrap();
        let manifest = NetworkFile::read(&council.founded.file).unwrap().manifest;
        let (told, (dials, dialled)) = (Told::default(), mpsc::channel(8));
        let config = config(&keys, protocol::manifest::Manifest::clone(&manifest));
        let mut body = Body::new(&keys, config, manifest.domain(), told.clone());
        let task = tokio::spawn(async move { body.run(dialled).await });
        let liar = Self { told, dials, task };
        for peer in council.all() {
            liar.meet(peer).await;
        }
        liar
    }

    /// Connects to a node.
    pub(crate) async fn meet(&self, peer: &Peer) {
        let addresses = peer.status().await.addresses;
        let address = addresses.iter().find(|address| address.contains("/quic-v1")).unwrap();
        self.dials.send(address.parse().unwrap()).await.unwrap();
    }

    /// Returns the names of the lies it has told.
    pub(crate) fn told(&self) -> BTreeSet<&'static str> {
        self.told.lock().unwrap().clone()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn config(keys: &IssuerKey, manifest: protocol::manifest::Manifest) -> Config {
    Config {
        manifest,
        node: Signer::from_seed(keys.node),
        owner: Signer::from_seed([66; 32]).into(),
        issuer: Some(Signer::from_seed(keys.issuer)),
        name: "liar".to_owned(),
        incentive: Incentive::Exchange,
        class: ProviderClass::Community,
        region: String::new(),
        version: "0".to_owned(),
    }
}

#[derive(NetworkBehaviour)]
struct Raw {
    identify: identify::Behaviour,
    streams: libp2p_stream::Behaviour,
}

/// What it runs on: an honest core for what it does not lie about, and connections.
struct Body {
    node: Node,
    signer: Signer,
    domain: DomainId,
    swarm: libp2p::Swarm<Raw>,
    control: Control,
    protocol: StreamProtocol,
    told: Told,
}

impl Body {
    fn new(keys: &IssuerKey, config: Config, domain: DomainId, told: Told) -> Self {
        let swarm = SwarmBuilder::with_existing_identity(Keypair::ed25519_from_bytes(keys.node).unwrap())
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_quic()
            .with_behaviour(|key| Raw {
                identify: identify::Behaviour::new(identify::Config::new(
                    format!("sharemesh/{domain}"),
                    key.public(),
                )),
                streams: libp2p_stream::Behaviour::new(),
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(tests::PATIENCE))
            .build();
        let control = swarm.behaviour().streams.new_control();
        let name = format!("/sharemesh/{}/message/1", &domain.to_string()[..32]);
        let protocol = StreamProtocol::try_from_owned(name).unwrap();
        let signer = Signer::from_seed(keys.issuer);
        let node = Node::new(config, 66, &[], now()).unwrap();
        Self { node, signer, domain, swarm, control, protocol, told }
    }

    async fn run(&mut self, mut dials: mpsc::Receiver<Multiaddr>) {
        let mut incoming = self.control.accept(self.protocol.clone()).unwrap();
        let (messages, mut received) = mpsc::channel(1024);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                Some(address) = dials.recv() => self.swarm.dial(address).unwrap(),
                Some((peer, stream)) = incoming.next() => {
                    let messages = messages.clone();
                    tokio::spawn(async move {
                        if let Some(message) = read(stream).await {
                            let _ = messages.send((node_of(peer), message)).await;
                        }
                    });
                }
                Some((from, message)) = received.recv() => self.hear(from, &message),
                _ = tick.tick() => self.wake(),
                event = self.swarm.select_next_some() => self.on_event(event),
            }
        }
    }

    fn on_event(&mut self, event: SwarmEvent<RawEvent>) {
        if let SwarmEvent::Behaviour(RawEvent::Identify(identify::Event::Received { peer_id, .. })) = event {
            if !self.node.peers().any(|peer| peer.node == node_of(peer_id)) {
                self.handle(Input::PeerUp(node_of(peer_id)));
            }
        } else if let SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } = event {
            self.handle(Input::PeerDown(node_of(peer_id)));
        }
    }

    /// Lies where it can, and else does as its program says.
    fn hear(&mut self, from: NodeId, message: &[u8]) {
        let message = Message::check(message, self.domain, Scheme::Strict).expect("honest nodes speak well");
        let account = self.node.peers().find(|peer| peer.node == from).and_then(|peer| peer.account);
        // Whose account it is matters for one lie only.
        let account = account.unwrap_or(AccountId([0; 32]));
        match answer(&self.signer, self.domain, account, &message) {
            Some(lie) => {
                self.told.lock().unwrap().insert(lie.name());
                self.send(from, &lie.to_wire());
            }
            None => self.handle(Input::Received(from, message)),
        }
    }

    fn wake(&mut self) {
        if self.node.next_wake().is_some_and(|(at, _)| at <= now()) {
            self.handle(Input::Wake);
        }
    }

    fn handle(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.node.handle(now(), input, &mut effects);
        for effect in effects {
            if let Effect::Send(to, message) = effect {
                self.send(to, &self.richer(message));
            }
        }
    }

    /// Names a balance at will.
    fn richer(&self, message: Message<Wire>) -> Message<Wire> {
        if let Message::AccountState { account, next, head, .. } = message {
            self.told.lock().unwrap().insert("account_state");
            return Message::AccountState { account, next, head, balance: RICH };
        }
        message
    }

    fn send(&self, to: NodeId, message: &Message<Wire>) {
        let (mut control, protocol) = (self.control.clone(), self.protocol.clone());
        let (peer, bytes) = (peer_of(to), message.to_bytes());
        tokio::spawn(async move {
            // Whoever is gone hears nothing.
            let Ok(mut stream) = control.open_stream(peer, protocol).await else { return };
            let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
            if stream.write_all(&[&length[..], &bytes].concat()).await.is_ok() && stream.close().await.is_ok()
            {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
    }
}

/// Reads one message and says that it has arrived.
async fn read(mut stream: libp2p::Stream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.ok()?;
    let mut message = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut message).await.ok()?;
    stream.read_to_end(&mut Vec::new()).await.ok()?;
    stream.write_all(&[1]).await.ok()?;
    stream.close().await.ok()?;
    Some(message)
}

fn now() -> Time {
    Time(Clock::start(0).now_ms())
}

fn node_of(peer: PeerId) -> NodeId {
    let bytes = peer.to_bytes();
    NodeId(bytes[bytes.len() - 32..].try_into().unwrap())
}

fn peer_of(node: NodeId) -> PeerId {
    let key = ed25519::PublicKey::try_from_bytes(&node.0).unwrap();
    libp2p::identity::PublicKey::from(key).to_peer_id()
}
