//! Peers that speak libp2p well and the protocols above it badly, against nodes that have a job to finish meanwhile.

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, SwarmBuilder, identify, noise, tcp, yamux};
use libp2p_stream::{Control, OpenStreamError};
use node::api::views::PeerView;
use protocol::ids::DomainId;
use protocol::message::MESSAGE_BYTES_MAX;
use protocol::ticket::Ticket;
use tests::{Ground, PACED, PATIENCE, Peer, Trio, job, until};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::SHAREMESH;

/// How often a peer may offend before it is shut out.
const OFFENCES_MAX: usize = 5;

/// Job streams that one peer may have open.
const JOB_STREAMS_MAX: usize = protocol::node::OWN_JOBS_MAX;

/// More than gossip may carry at once.
const MEGABYTE: usize = 1 << 20;

const MESSAGES: &str = "message/1";
const JOBS: &str = "job/1";

#[tokio::test]
async fn a_message_longer_than_any_is_refused_by_its_length_and_its_sender_shut_out() {
    check("oversized_frame", OFFENCES_MAX, async |attacker| {
        attacker.say(MESSAGES, &length(usize::MAX)).await
    })
    .await;
}

#[tokio::test]
async fn a_frame_of_a_job_longer_than_any_is_refused_by_its_length_and_its_sender_shut_out() {
    check("oversized_frame", OFFENCES_MAX, async |attacker| attacker.say(JOBS, &length(usize::MAX)).await)
        .await;
}

#[tokio::test]
async fn a_job_stream_that_says_nonsense_is_counted_and_its_sender_shut_out() {
    let nonsense = [&length(3)[..], &[0xff; 3]].concat();
    check("malformed_frame", OFFENCES_MAX, async |attacker| attacker.say(JOBS, &nonsense).await).await;
}

#[tokio::test]
async fn a_message_that_is_none_is_counted_and_its_sender_shut_out() {
    let nonsense = [&length(MESSAGE_BYTES_MAX)[..], &vec![7; MESSAGE_BYTES_MAX]].concat();
    check("undecodable_message", OFFENCES_MAX, async |attacker| attacker.say(MESSAGES, &nonsense).await)
        .await;
}

#[tokio::test]
async fn half_a_message_and_then_silence_is_cut_off_and_its_sender_shut_out() {
    check_silent(MESSAGES).await;
}

#[tokio::test]
async fn half_a_frame_of_a_job_and_then_silence_is_cut_off_and_its_sender_shut_out() {
    check_silent(JOBS).await;
}

#[tokio::test]
async fn a_flood_of_job_streams_is_refused_above_the_limit_and_its_sender_shut_out() {
    check("too_many_streams", 1, async |attacker| {
        let mut open = Vec::new();
        while open.len() < JOB_STREAMS_MAX + OFFENCES_MAX {
            let Ok(mut stream) = attacker.open(JOBS).await else { return };
            // Flushed, the other end sees it.
            if stream.flush().await.is_err() {
                return;
            }
            open.push(stream);
        }
        attacker.until_shut_out().await;
    })
    .await;
}

#[tokio::test]
async fn a_megabyte_of_gossip_is_not_read_and_changes_nothing() {
    let (_ground, trio) = mesh().await;
    let running = trio.consumer.submit(&job("a long story", 200)).await.unwrap();
    let mut attacker = Attacker::connected(&trio).await;

    // Longer than it may be, and truly so long; then as long as is said, and nothing.
    let varint = [0x80, 0x80, 0x40];
    for _ in 0..OFFENCES_MAX {
        attacker.say("gossip/1.1.0", &[&varint[..], &vec![0x1a; MEGABYTE]].concat()).await;
    }

    let answer = running.end().await;
    assert!(answer.failure.is_none(), "{answer:?}");
    trio.consumer.must_ask(&job("and after it", 24)).await;
    trio.check_books().await;
}

/// Has half a frame sent on several streams at once, which then stay open and silent.
async fn check_silent(protocol: &str) {
    check("slow_frame", OFFENCES_MAX, async |attacker| {
        let mut open = Vec::new();
        for _ in 0..OFFENCES_MAX {
            let mut stream = attacker.open(protocol).await.unwrap();
            stream.write_all(&[&length(40)[..], &[1; 10]].concat()).await.unwrap();
            stream.flush().await.unwrap();
            open.push(stream);
        }
        attacker.until_shut_out().await;
    })
    .await;
}

/// Attacks the provider of a running job until it shuts the attacker out, and checks that it counted at least so many
/// offences by this name, and that the job did not suffer.
async fn check(offence: &str, counted_min: usize, attack: impl AsyncFn(&mut Attacker)) {
    let (_ground, trio) = mesh().await;
    let mut running = trio.consumer.submit(&job("a long story", 200)).await.unwrap();
    assert!(running.until_tokens(1).await);
    let mut attacker = Attacker::connected(&trio).await;

    while !attacker.is_shut_out() {
        attack(&mut attacker).await;
    }

    let answer = running.end().await;
    assert!(answer.failure.is_none(), "{answer:?}");
    let offences = trio.provider.status().await.offences;
    let counted = offences.iter().find(|(name, _)| name == offence).map_or(0, |(_, count)| *count);
    assert!(counted >= counted_min as u64, "{offences:?}");
    let node = attacker.node.clone();
    until("the attacker is no peer any more", async || {
        let peers = trio.provider.client().get::<Vec<PeerView>>("peers").await.map_err(|f| f.message)?;
        if peers.iter().all(|peer| peer.node != node) { Ok(()) } else { Err(format!("{peers:?}")) }
    })
    .await;
    trio.consumer.must_ask(&job("and after it", 24)).await;
    trio.check_books().await;
}

async fn mesh() -> (Ground, Trio) {
    let ground = Ground::new(SHAREMESH);
    let trio = ground.trio(&[PACED]).await;
    (ground, trio)
}

/// A length before a frame, as large as four bytes can say at most.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

#[derive(NetworkBehaviour)]
struct Raw {
    identify: identify::Behaviour,
    streams: libp2p_stream::Behaviour,
}

/// A peer that opens streams of any protocol and sends any bytes on them.
struct Attacker {
    control: Control,
    victim: PeerId,
    prefix: String,
    node: String,
    connected: watch::Receiver<bool>,
}

impl Attacker {
    /// Connects to the provider as a peer that says it is of the network.
    async fn connected(trio: &Trio) -> Self {
        let domain = Ticket::from_text(&trio.issuer.ticket(0).await).unwrap().1.domain();
        let address = quic_address(&trio.provider).await;
        let mut swarm = SwarmBuilder::with_new_identity()
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
            .build();
        let me = *swarm.local_peer_id();
        let control = swarm.behaviour().streams.new_control();
        swarm.dial(address).unwrap();
        let victim = established(&mut swarm).await;
        let (connection, connected) = watch::channel(true);
        tokio::spawn(async move {
            while connection.send(swarm.is_connected(&victim)).is_ok() {
                swarm.select_next_some().await;
            }
        });
        Self { control, victim, prefix: prefix(domain), node: node_of(me), connected }
    }

    async fn open(&mut self, protocol: &str) -> Result<libp2p::Stream, OpenStreamError> {
        let protocol = StreamProtocol::try_from_owned(format!("{}/{protocol}", self.prefix)).unwrap();
        timeout(PATIENCE, self.control.open_stream(self.victim, protocol))
            .await
            .expect("a stream opens or fails")
    }

    /// Sends bytes on a stream of their own and waits until the other end has done with them.
    async fn say(&mut self, protocol: &str, bytes: &[u8]) {
        let Ok(mut stream) = self.open(protocol).await else { return };
        let said = async {
            stream.write_all(bytes).await?;
            stream.close().await?;
            stream.read_to_end(&mut Vec::new()).await
        };
        // It may be cut off at any point.
        let _ = timeout(PATIENCE, said).await.expect("the other end closes the stream");
    }

    fn is_shut_out(&self) -> bool {
        !*self.connected.borrow()
    }

    async fn until_shut_out(&mut self) {
        let shut_out = self.connected.wait_for(|connected| !connected);
        timeout(PATIENCE, shut_out).await.expect("the attacker is shut out").unwrap();
    }
}

async fn established(swarm: &mut libp2p::Swarm<Raw>) -> PeerId {
    let connected = async {
        loop {
            if let SwarmEvent::ConnectionEstablished { peer_id, .. } = swarm.select_next_some().await {
                return peer_id;
            }
        }
    };
    timeout(PATIENCE, connected).await.expect("the attacker connects")
}

async fn quic_address(peer: &Peer) -> Multiaddr {
    let addresses = peer.status().await.addresses;
    addresses.iter().find(|address| address.contains("/quic-v1")).unwrap().parse().unwrap()
}

/// Returns how the names of a network's protocols begin.
fn prefix(domain: DomainId) -> String {
    format!("/sharemesh/{}", &domain.to_string()[..32])
}

/// Returns the node id of a peer, as the API shows it.
fn node_of(peer: PeerId) -> String {
    let key = peer.to_bytes();
    key[key.len() - 32..].iter().map(|byte| format!("{byte:02x}")).collect()
}
