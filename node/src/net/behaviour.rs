//! Everything of libp2p that a node runs, put together and configured; each default that matters is set on purpose.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use libp2p::{
    Multiaddr, PeerId, Swarm, Transport as _, allow_block_list,
    allow_block_list::BlockedPeers,
    autonat,
    connection_limits::{self, ConnectionLimits},
    core::{
        multiaddr::Protocol,
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::Version,
    },
    dcutr, dns, gossipsub, identify,
    identity::Keypair,
    kad::{self, store::MemoryStore},
    mdns, noise, ping, quic, relay,
    request_response::{self, ProtocolSupport},
    swarm::{self, NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, upnp, yamux,
};
use libp2p_memory_connection_limits as memory_limits;
use tokio::sync::mpsc;

use super::{
    Mdns, NetConfig, codec::Codec, gate, gate::ip_of, jobs, limits::*, names::Agent, names::Names,
    traffic::Counted, traffic::Traffic,
};

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub(super) struct Behaviour {
    // First, because what they deny costs the others nothing.
    pub(super) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(super) gate: gate::Behaviour,
    pub(super) connection_limits: connection_limits::Behaviour,
    pub(super) memory_limits: memory_limits::Behaviour,

    pub(super) messages: request_response::Behaviour<Codec>,
    pub(super) jobs: jobs::Behaviour,
    pub(super) gossip: Gossip,
    pub(super) directory: kad::Behaviour<MemoryStore>,

    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) autonat: autonat::Behaviour,
    pub(super) relay_client: relay::client::Behaviour,
    pub(super) relay_server: Toggle<relay::Behaviour>,
    pub(super) dcutr: dcutr::Behaviour,
    pub(super) upnp: Toggle<upnp::tokio::Behaviour>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
}

pub(super) type Gossip = gossipsub::Behaviour<
    gossipsub::IdentityTransform,
    gossipsub::MaxCountSubscriptionFilter<gossipsub::AllowAllSubscriptionFilter>,
>;

/// Puts the swarm together; it does not listen yet. Needs a tokio runtime.
pub(super) fn swarm(
    config: &NetConfig,
    names: &Names,
    job_requests: mpsc::Receiver<jobs::Open>,
    traffic: &Arc<Traffic>,
) -> Result<Swarm<Behaviour>> {
    let keypair = Keypair::ed25519_from_bytes(config.secret).context("read the node's key")?;
    let me = keypair.public().to_peer_id();
    let (relay_transport, relay_client) = relay::client::new(me);
    let transport = transport(&keypair, relay_transport, traffic.clone())?;
    let behaviour = behaviour(config, names, &keypair, relay_client, job_requests)?;

    let swarm_config = swarm::Config::with_tokio_executor()
        // The protocol's name travels with the first bytes: a message costs one way, not a round trip and one way.
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_smart_dial()
        .with_max_negotiating_inbound_streams(NEGOTIATING_STREAMS_MAX)
        .with_idle_connection_timeout(IDLE_TIMEOUT);
    Ok(Swarm::new(transport, behaviour, me, swarm_config))
}

fn transport(
    keypair: &Keypair,
    relay: relay::client::Transport,
    traffic: Arc<Traffic>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let noise = noise::Config::new(keypair).context("prepare the noise handshake")?;
    let direct = || {
        let quic = quic::tokio::Transport::new(quic_config(keypair))
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .upgrade(Version::V1Lazy)
            .authenticate(noise.clone())
            .multiplex(yamux::Config::default())
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
        quic.or_transport(tcp).map(|either, _| either.into_inner())
    };
    let named = match dns::tokio::Transport::system(direct()) {
        Ok(named) => named.boxed(),
        Err(error) => {
            tracing::warn!(%error, "No DNS settings on this machine: only numeric addresses can be dialed");
            direct().boxed()
        }
    };
    let relayed = relay
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    let all = relayed.or_transport(named).map(|either, _| either.into_inner());
    let counted = all.map(move |(peer, connection), _| {
        (peer, StreamMuxerBox::new(Counted::new(connection, traffic.clone())))
    });
    Ok(TransportTimeout::new(counted, CONNECT_TIMEOUT).boxed())
}

fn quic_config(keypair: &Keypair) -> quic::Config {
    let mut config = quic::Config::new(keypair);
    config.handshake_timeout = Duration::from_secs(5);
    // Longer than the 1.5 s of silence that end a job: a job notices first.
    config.max_idle_timeout = 10_000;
    config.keep_alive_interval = Duration::from_secs(3);
    config.max_concurrent_stream_limit = CONNECTION_STREAMS_MAX;
    // What one peer may make us buffer: enough to fill 1 Gbit/s at 32 ms from here, and no more.
    config.max_stream_data = 4 << 20;
    config.max_connection_data = 8 << 20;
    config
}

fn behaviour(
    config: &NetConfig,
    names: &Names,
    keypair: &Keypair,
    relay_client: relay::client::Behaviour,
    job_requests: mpsc::Receiver<jobs::Open>,
) -> Result<Behaviour> {
    let me = keypair.public().to_peer_id();
    Ok(Behaviour {
        blocked: allow_block_list::Behaviour::default(),
        gate: gate::Behaviour::default(),
        connection_limits: connection_limits::Behaviour::new(connection_limits(config)),
        memory_limits: memory_limits::Behaviour::with_max_percentage(config.limits.memory_share),
        messages: messages(names),
        jobs: jobs::Behaviour::new(names.job_protocol(), config.limits.job_streams_per_peer, job_requests),
        gossip: gossip(names, keypair)?,
        directory: directory(names, me),
        identify: identify::Behaviour::new(identify(config, names, keypair)?),
        ping: ping::Behaviour::new(
            ping::Config::new().with_interval(Duration::from_secs(10)).with_timeout(Duration::from_secs(10)),
        ),
        autonat: autonat::Behaviour::new(me, autonat()),
        relay_client,
        relay_server: config.relay_server.then(|| relay_server(me)).into(),
        dcutr: dcutr::Behaviour::new(me),
        upnp: config.upnp.then(upnp::tokio::Behaviour::default).into(),
        mdns: mdns(config, me)?.into(),
    })
}

fn connection_limits(config: &NetConfig) -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_established(Some(config.limits.connections))
        // A quarter stays for our own dials, so that strangers cannot cut us off by filling every place.
        .with_max_established_incoming(Some(config.limits.connections * 3 / 4))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
        .with_max_pending_incoming(Some(PENDING_INCOMING_MAX))
        .with_max_pending_outgoing(Some(PENDING_OUTGOING_MAX))
}

fn messages(names: &Names) -> request_response::Behaviour<Codec> {
    let config = request_response::Config::default()
        .with_request_timeout(REQUEST_TIMEOUT)
        .with_max_concurrent_streams(REQUEST_STREAMS_MAX);
    request_response::Behaviour::with_codec(
        Codec::new(UNREAD_MAX),
        [(names.message_protocol(), ProtocolSupport::Full)],
        config,
    )
}

fn gossip(names: &Names, keypair: &Keypair) -> Result<Gossip> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(names.gossip_prefix())
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(GOSSIP_MAX)
        // The same signed thing is passed on once, whoever publishes it.
        .message_id_fn(|message| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(message.topic.as_str().as_bytes()).update(&[0]).update(&message.data);
            gossipsub::MessageId::new(&hasher.finalize().as_bytes()[..20])
        })
        // With fewer nodes than this everyone is in everyone's mesh, which is what two or three nodes want.
        .mesh_n(6)
        .mesh_n_low(4)
        .mesh_n_high(12)
        .mesh_outbound_min(2)
        .heartbeat_initial_delay(Duration::from_millis(200))
        .heartbeat_interval(Duration::from_secs(1))
        // What we say ourselves goes to all neighbours: no mesh of theirs can hold it back, and it is rare.
        .flood_publish(true)
        // A peer behind a slow line gets the newest, not five thousand old ones.
        .connection_handler_queue_len(512)
        .max_publish_messages(512)
        .max_control_messages_sent(512)
        .duplicate_cache_time(Duration::from_secs(120))
        .build()
        .map_err(|error| anyhow!("gossip settings: {error}"))?;
    let filter = gossipsub::MaxCountSubscriptionFilter {
        filter: gossipsub::AllowAllSubscriptionFilter {},
        max_subscribed_topics: TOPICS_PER_PEER_MAX,
        max_subscriptions_per_request: TOPICS_PER_PEER_MAX,
    };
    let author = gossipsub::MessageAuthenticity::Signed(keypair.clone());
    let mut gossip = Gossip::new_with_subscription_filter(author, config, filter)
        .map_err(|error| anyhow!("gossip settings: {error}"))?;
    gossip
        .with_peer_score(score(), gossipsub::PeerScoreThresholds::default())
        .map_err(|error| anyhow!("gossip scores: {error}"))?;
    Ok(gossip)
}

fn score() -> gossipsub::PeerScoreParams {
    gossipsub::PeerScoreParams {
        // A household or a lab shares one address; several nodes of one machine are a developer's.
        ip_colocation_factor_threshold: 32.0,
        ip_colocation_factor_whitelist: [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into(),
        ..Default::default()
    }
}

/// How a peer's conduct on one topic counts: for what it brings first, against what is rejected.
pub(super) fn topic_score() -> gossipsub::TopicScoreParams {
    gossipsub::TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 3600.0,
        first_message_deliveries_weight: 1.0,
        first_message_deliveries_decay: 0.99,
        first_message_deliveries_cap: 50.0,
        // Off: our topics are quiet for hours, and silence is no offence.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // The square of the count: three rejected messages end gossip with a peer that brought nothing else.
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: 0.99,
        ..Default::default()
    }
}

fn directory(names: &Names, me: PeerId) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(names.directory_protocol());
    config
        // Only peers that identify says are of this network, so that the table is not filled by who connects.
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_periodic_bootstrap_interval(None)
        .set_query_timeout(Duration::from_secs(20))
        .disjoint_query_paths(true)
        // Records are looked at before they are kept: providers of a 32-byte key, and nothing else.
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_caching(kad::Caching::Disabled)
        .set_replication_interval(None)
        .set_publication_interval(None)
        // A hint lives as long as a node that vanished should be asked in vain.
        .set_provider_record_ttl(Some(Duration::from_secs(2 * 3600)))
        .set_provider_publication_interval(Some(Duration::from_secs(30 * 60)))
        .set_max_packet_size(64 * 1024);
    let store = kad::store::MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_providers_per_key: 20,
        max_provided_keys: PROVIDED_KEYS_MAX,
    };
    let mut directory = kad::Behaviour::with_config(me, MemoryStore::with_config(me, store), config);
    // On a LAN nobody ever learns that it is reachable, so everyone serves until it is known not to be.
    directory.set_mode(Some(kad::Mode::Server));
    directory
}

fn identify(config: &NetConfig, names: &Names, keypair: &Keypair) -> Result<identify::Config> {
    let network = match &config.mdns {
        Mdns::Off => None,
        Mdns::Announce { name } => Some(name.as_str()),
    };
    let run = getrandom::u64().context("draw a number for this run")?;
    let identify = identify::Config::new(names.identity(), keypair.public())
        .with_agent_version(Agent::text(&config.agent, run, network))
        .with_interval(Duration::from_secs(300))
        .with_push_listen_addr_updates(true)
        .with_cache_size(4 * config.limits.connections as usize);
    Ok(identify)
}

fn autonat() -> autonat::Config {
    autonat::Config {
        // Short: a node behind a NAT wants its relay before its first job.
        boot_delay: Duration::from_secs(5),
        retry_interval: Duration::from_secs(30),
        refresh_interval: Duration::from_secs(15 * 60),
        throttle_server_period: Duration::from_secs(30),
        confidence_max: 2,
        throttle_clients_global_max: 30,
        throttle_clients_peer_max: 3,
        throttle_clients_period: Duration::from_secs(60),
        // Private addresses say nothing about the internet, and nobody may make us dial into our own LAN.
        only_global_ips: true,
        ..Default::default()
    }
}

fn relay_server(me: PeerId) -> relay::Behaviour {
    let limit = |n: u32| NonZeroU32::new(n).expect("not zero");
    // libp2p's 128 KiB and 2 minutes cut a token stream; an hour and 64 MiB carry any.
    let config = relay::Config {
        max_reservations: 256,
        max_reservations_per_peer: 2,
        reservation_duration: Duration::from_secs(3600),
        reservation_rate_limiters: Vec::new(),
        max_circuits: 256,
        max_circuits_per_peer: 16,
        max_circuit_duration: Duration::from_secs(3600),
        max_circuit_bytes: 64 << 20,
        circuit_src_rate_limiters: Vec::new(),
    }
    .reservation_rate_per_peer(limit(30), Duration::from_secs(120))
    .reservation_rate_per_ip(limit(60), Duration::from_secs(60))
    .circuit_src_per_peer(limit(60), Duration::from_secs(60))
    .circuit_src_per_ip(limit(240), Duration::from_secs(60));
    let mut server = relay::Behaviour::new(me, config);
    // The owner asked for it, so it does not wait for proof of being reachable.
    server.set_status(Some(relay::Status::Enable));
    server
}

fn mdns(config: &NetConfig, me: PeerId) -> Result<Option<mdns::tokio::Behaviour>> {
    match config.mdns {
        Mdns::Off => Ok(None),
        Mdns::Announce { .. } => {
            let behaviour = mdns::tokio::Behaviour::new(mdns::Config::default(), me);
            behaviour.map(Some).context("open the mDNS socket; switch mDNS off where multicast is forbidden")
        }
    }
}

/// Listens on an address; the errors say what to do.
#[expect(clippy::wildcard_enum_match_arm, reason = "the rest of the system's errors have one advice")]
pub(super) fn listen(swarm: &mut Swarm<Behaviour>, address: &Multiaddr) -> Result<()> {
    // libp2p shares TCP ports between processes: a second node would silently take half of the first one's peers.
    if let Err(error) = bind(address) {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "the port is taken, perhaps by another sharemesh node: stop it or choose another port (0 picks a free one)"
            }
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            io::ErrorKind::PermissionDenied => "ports below 1024 need privileges: choose a higher one",
            _ => "choose another address",
        };
        bail!("cannot listen on {address}: {advice} ({error})");
    }
    let form = "use /ip4/<address>/udp/<port>/quic-v1 or /ip4/<address>/tcp/<port>";
    swarm.listen_on(address.clone()).with_context(|| format!("cannot listen on {address}: {form}"))?;
    Ok(())
}

/// Opens and closes a port, where the address is one.
#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is libp2p's, of all protocols there are")]
fn bind(address: &Multiaddr) -> io::Result<()> {
    let Some(ip) = ip_of(address) else {
        return Ok(());
    };
    let bound = address.iter().find_map(|part| match part {
        Protocol::Udp(port) => Some(UdpSocket::bind((ip, port)).map(drop)),
        Protocol::Tcp(port) => Some(TcpListener::bind((ip, port)).map(drop)),
        _ => None,
    });
    bound.unwrap_or(Ok(()))
}
