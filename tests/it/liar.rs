//! An issuer that speaks the protocol well and lies about everything, over real connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::identity::{Keypair, ed25519};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, SwarmBuilder, identify, noise, ping, tcp, yamux};
use libp2p_stream::Control;
use node::clock::Clock;
use node::issuer_key::IssuerKey;
use node::network_file::NetworkFile;
use protocol::advert::{Incentive, ProviderClass};
use protocol::ids::{AccountId, DomainId, NodeId, RecordId};
use protocol::keys::{Scheme, Signer};
use protocol::ledger::quorum::{Certificate, Fact};
use protocol::ledger::records::{AccountOp, OpBody, Vote};
use protocol::message::{Checked, Message, Wire};
use protocol::node::{Config, Effect, Input, Node};
use protocol::signed::{Role, Verified, sign};
use protocol::time::Time;
use simulations::liar::{RICH, answer};
use tests::{Council, Peer};
use tokio::sync::mpsc;

/// How often its timers are looked at.
const TICK: Duration = Duration::from_millis(100);

type Told = Arc<Mutex<BTreeSet<&'static str>>>;

/// Seed of the key of its own account.
const OWNER: [u8; 32] = [66; 32];

/// What it is told to do.
enum Order {
    Meet(Multiaddr),
    SpendTwice { issuers: [NodeId; 3], to: [AccountId; 2], nano: u64 },
}

/// The last issuer of a network; it ends with this.
pub(crate) struct Liar {
    told: Told,
    orders: mpsc::Sender<Order>,
    task: tokio::task::JoinHandle<()>,
}

impl Liar {
    /// Starts the last issuer of a network and connects it to everybody.
    pub(crate) async fn start(council: &Council) -> Self {
        let keys = IssuerKey::read(council.founded.keys.last().unwrap()).unwrap();
        let manifest = NetworkFile::read(&council.founded.file).unwrap().manifest;
        let (told, (orders, ordered)) = (Told::default(), mpsc::channel(8));
        let config = config(&keys, protocol::manifest::Manifest::clone(&manifest));
        let mut body = Body::new(&keys, config, manifest.domain(), told.clone());
        let task = tokio::spawn(async move { body.run(ordered).await });
        let liar = Self { told, orders, task };
        for peer in council.all() {
            liar.meet(peer).await;
        }
        liar
    }

    /// Connects to a node.
    pub(crate) async fn meet(&self, peer: &Peer) {
        let addresses = peer.status().await.addresses;
        let address = addresses.iter().find(|address| address.contains("/quic-v1")).unwrap();
        self.orders.send(Order::Meet(address.parse().unwrap())).await.unwrap();
    }

    /// Returns its own account.
    pub(crate) fn account() -> AccountId {
        Signer::from_seed(OWNER).public().into()
    }

    /// Pays from its own account to two others in one slot: asks two of the honest issuers to vote for the first payment
    /// and one for the second, votes for both itself, and shows the second to everybody once the first has a quorum.
    pub(crate) async fn spend_twice(&self, issuers: [NodeId; 3], to: [AccountId; 2], nano: u64) {
        self.orders.send(Order::SpendTwice { issuers, to, nano }).await.unwrap();
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
        owner: Signer::from_seed(OWNER).into(),
        issuer: Some(Signer::from_seed(keys.issuer)),
        name: "liar".to_owned(),
        incentive: Incentive::Exchange,
        class: ProviderClass::Community,
        region: String::new(),
        version: "0".to_owned(),
        builders: BTreeMap::new(),
    }
}

#[derive(NetworkBehaviour)]
struct Raw {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
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
    double: Option<Double>,
}

/// Two payments for one slot, and the votes for them.
struct Double {
    issuers: [NodeId; 3],
    steps: [Verified<AccountOp>; 2],
    votes: Vec<Verified<Vote>>,
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
                ping: ping::Behaviour::default(),
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
        Self { node, signer, domain, swarm, control, protocol, told, double: None }
    }

    async fn run(&mut self, mut orders: mpsc::Receiver<Order>) {
        let mut incoming = self.control.accept(self.protocol.clone()).unwrap();
        let (messages, mut received) = mpsc::channel(1024);
        let mut tick = tokio::time::interval(TICK);
        // Streams that nobody takes at once are dropped, so they are taken by a task that does nothing else.
        tokio::spawn(async move {
            while let Some((peer, stream)) = incoming.next().await {
                let messages = messages.clone();
                tokio::spawn(async move {
                    if let Some(message) = read(stream).await {
                        let _ = messages.send((node_of(peer), message)).await;
                    }
                });
            }
        });
        loop {
            tokio::select! {
                Some(order) = orders.recv() => match order {
                    Order::Meet(address) => self.swarm.dial(address).unwrap(),
                    Order::SpendTwice { issuers, to, nano } => self.spend_twice(issuers, to, nano),
                },
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
        if let Message::Voted { vote, .. } = &message {
            self.count(vote);
        }
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

    fn spend_twice(&mut self, issuers: [NodeId; 3], to: [AccountId; 2], amount: u64) {
        let (owner, account) = (Signer::from_seed(OWNER), Liar::account());
        let epoch = self.node.manifest().epoch(now());
        let steps = to.map(|to| {
            let body = OpBody::Pay { to, amount };
            let op = AccountOp { account, sequence: 0, previous: RecordId::NONE, epoch, body };
            sign(op, self.domain, Role::Owner, &owner)
        });
        let votes = steps.each_ref().map(|op| {
            let vote = Vote { op: op.id(), account, sequence: 0, epoch, settled: None };
            sign(vote, self.domain, Role::Issuer, &self.signer)
        });
        for (issuer, step) in issuers.into_iter().zip([0, 0, 1]) {
            self.step(issuer, &steps[step]);
        }
        self.double = Some(Double { issuers, steps, votes: votes.to_vec() });
    }

    fn step(&self, issuer: NodeId, op: &Verified<AccountOp>) {
        self.send(issuer, &Message::<Checked>::Step { op: op.clone(), terms: None }.to_wire());
    }

    /// Brings the first payment's certificate to one issuer, and the second payment to all, with the votes it has.
    fn count(&mut self, vote: &Verified<Vote>) {
        let Some(double) = &mut self.double else { return };
        double.votes.push(vote.clone());
        if double.votes.len() < 5 {
            return;
        }
        let Double { issuers, steps, votes } = self.double.take().expect("just seen");
        let certificate = |op: &Verified<AccountOp>| {
            let votes = votes.iter().filter(|vote| vote.op == op.id()).cloned().collect();
            Message::<Checked>::Fact(Fact::Step(Certificate { op: op.clone(), terms: None, votes })).to_wire()
        };
        self.send(issuers[0], &certificate(&steps[0]));
        for issuer in issuers {
            self.step(issuer, &steps[1]);
            self.send(issuer, &certificate(&steps[1]));
        }
        self.told.lock().unwrap().insert("spent_twice");
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
