//! Gossip, the directory, relays, bans and the LAN: what takes more than two nodes, or keeps some out.
#![expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one event of many")]

use super::*;

async fn subscribe_all(nets: &mut [Net], topic: &str, links: &[(usize, usize)]) {
    for net in nets.iter_mut() {
        net.subscribe(topic);
    }
    for (from, to) in links {
        connect(nets, *from, *to).await;
    }
    let hash = gossipsub::IdentTopic::new(nets[0].names.topic(topic)).hash();
    let search = async {
        let is_meshed = |nets: &[Net], a: usize, b: usize| {
            let b = nets[b].me().peer_id();
            nets[a].swarm.behaviour().gossip.mesh_peers(&hash).any(|peer| *peer == b)
        };
        while !links.iter().all(|(a, b)| is_meshed(nets, *a, *b) && is_meshed(nets, *b, *a)) {
            let next = select_all(nets.iter_mut().map(|net| Box::pin(net.next())));
            let _ = tokio::time::timeout(Duration::from_millis(20), next).await;
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("the mesh forms");
}

#[tokio::test]
async fn gossip_is_passed_on_only_once_it_is_accepted() {
    let mut nets: [Net; 3] = start_many(HOME, QUIC).await;
    subscribe_all(&mut nets, "checkpoints", &[(0, 1), (1, 2)]).await;
    let a = nets[0].me();

    nets[0].publish("checkpoints", b"bad".to_vec());
    let (middle, id, from, data) = wait(&mut nets, gossip).await;
    assert_eq!((middle, from, &data[..]), (1, a, &b"bad"[..]));
    nets[1].judge(&id, Verdict::Reject);

    nets[0].publish("checkpoints", b"good".to_vec());
    let (middle, id, _, data) = wait(&mut nets, gossip).await;
    assert_eq!((middle, &data[..]), (1, &b"good"[..]));
    nets[1].judge(&id, Verdict::Accept);

    // Had the rejected one been passed on, it would come first.
    let (last, _, from, data) = wait(&mut nets, gossip).await;
    assert_eq!((last, from, &data[..]), (2, nets[1].me(), &b"good"[..]));
}

fn gossip(index: usize, event: NetEvent) -> Option<(usize, GossipId, PeerKey, Vec<u8>)> {
    let NetEvent::Gossip { id, from, topic, data } = event else {
        return None;
    };
    assert_eq!(topic, "checkpoints");
    Some((index, id, from, data))
}

#[tokio::test]
async fn a_provider_is_found_through_a_third_node_and_connected() {
    let mut nets: [Net; 3] = start_many(HOME, QUIC).await;
    connect(&mut nets, 0, 1).await;
    connect(&mut nets, 2, 1).await;
    let (model, c) = ([42; 32], nets[2].me());
    nets[2].provide(model);

    nets[0].lookup(model);
    let mut found = Vec::new();
    let mut up = false;
    wait(&mut nets, |index, event| match event {
        NetEvent::Found { key, peers, last } if index == 0 => {
            assert_eq!(key, model);
            found.extend(peers);
            assert!(!last || !found.is_empty(), "the provider is found");
            (up && found == [c]).then_some(())
        }
        NetEvent::PeerUp(peer) if index == 0 && peer == c => {
            up = true;
            (found == [c]).then_some(())
        }
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn a_lookup_of_what_nobody_provides_ends() {
    let mut nets: [Net; 2] = start_many(HOME, QUIC).await;
    connect(&mut nets, 0, 1).await;

    nets[0].lookup([7; 32]);

    wait(&mut nets, |_, event| match event {
        NetEvent::Found { key, peers, last } => {
            assert_eq!((key, peers), ([7; 32], Vec::new()));
            last.then_some(())
        }
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn a_peer_without_an_address_is_dialed_through_the_directory() {
    let mut nets: [Net; 3] = start_many(HOME, QUIC).await;
    connect(&mut nets, 0, 1).await;
    connect(&mut nets, 2, 1).await;
    let c = nets[2].me();

    nets[0].dial(c, Vec::new());

    wait(&mut nets, |index, event| match event {
        NetEvent::PeerUp(peer) if index == 0 && peer == c => Some(()),
        NetEvent::DialFailed { reason, .. } => panic!("{reason}"),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn a_dial_to_nobody_fails_and_says_so() {
    let mut nets = [start(config(HOME, QUIC)).await];
    let nobody = PeerKey([9; 32]);

    nets[0].dial(nobody, vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()]);

    let is_failure = |event| matches!(event, NetEvent::DialFailed { peer, .. } if peer == nobody);
    wait(&mut nets, |_, event| is_failure(event).then_some(())).await;
}

#[tokio::test]
async fn peers_that_dial_each_other_at_once_are_up_once() {
    let mut nets: [Net; 2] = start_many(HOME, QUIC).await;
    let keys = [nets[0].me(), nets[1].me()];
    let addresses = [nets[0].listening(), nets[1].listening()];
    nets[0].dial(keys[1], addresses[1].clone());
    nets[1].dial(keys[0], addresses[0].clone());

    let mut ups = [0, 0];
    let mut received = [0, 0];
    wait(&mut nets, |index, event| {
        ups[index] += usize::from(matches!(event, NetEvent::PeerUp(_)));
        (ups == [1, 1]).then_some(())
    })
    .await;
    // Both connections are used in turn, so these come after whatever the second one had to tell.
    for tag in 0..10 {
        nets[0].send(keys[1], tag, vec![1], Bytes::new(), Repeat::Yes);
        nets[1].send(keys[0], tag, vec![1], Bytes::new(), Repeat::Yes);
    }
    wait(&mut nets, |index, event| {
        assert!(!matches!(event, NetEvent::PeerUp(_) | NetEvent::PeerDown(_)), "{event:?}");
        received[index] += usize::from(matches!(event, NetEvent::Received { .. }));
        (received == [10, 10]).then_some(())
    })
    .await;

    assert!(nets.iter().all(|net| net.peers().len() == 1));
}

#[tokio::test]
async fn a_banned_peer_is_disconnected_and_stays_out() {
    let mut nets: [Net; 2] = start_many(HOME, QUIC).await;
    connect(&mut nets, 0, 1).await;
    let (a, b, addresses) = (nets[0].me(), nets[1].me(), nets[1].listening());

    nets[1].ban(a, Duration::from_secs(3600));
    wait(&mut nets, |index, event| matches!(event, NetEvent::PeerDown(_) if index == 0).then_some(())).await;
    nets[0].dial(b, addresses);
    nets[0].send(b, 1, b"let me in".to_vec(), Bytes::new(), Repeat::Yes);

    wait(&mut nets, |index, event| {
        assert!(index == 0 || !matches!(event, NetEvent::Received { .. } | NetEvent::PeerUp(_)), "{event:?}");
        matches!(event, NetEvent::SendFailed { .. }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_network_on_the_lan_is_proposed_and_not_joined() {
    let mut near = config(HOME, QUIC);
    near.listen = vec![QUIC.parse().unwrap()];
    let mut nets = [start(near).await, start(config(ELSEWHERE, QUIC)).await];
    let (b, addresses) = (nets[1].me(), nets[1].listening());
    let shown = addresses.iter().map(|address| (b.peer_id(), address.clone())).collect();

    nets[0].on_lan_nodes(shown);

    wait(&mut nets, |index, event| match event {
        NetEvent::LanNetwork { peer, domain, addresses: told, .. } => {
            assert_eq!((index, peer, domain, told), (0, b, ELSEWHERE, addresses.clone()));
            Some(())
        }
        NetEvent::PeerUp(peer) => panic!("{peer} is of another network"),
        _ => None,
    })
    .await;
    assert!(nets[0].peers().is_empty());
}

#[tokio::test]
#[ignore = "needs a network interface with multicast"]
async fn nodes_on_a_lan_see_each_others_networks() {
    let announced = |domain, name: &str| {
        let mut config = config(domain, "/ip4/0.0.0.0/udp/0/quic-v1");
        config.mdns = Mdns::Announce { name: name.into() };
        config
    };
    let mut nets = [start(announced(HOME, "home")).await, start(announced(ELSEWHERE, "lab of Ada")).await];

    let (name, domain) = wait(&mut nets, |index, event| match event {
        NetEvent::LanNetwork { name, domain, .. } if index == 0 => Some((name, domain)),
        _ => None,
    })
    .await;

    assert_eq!((&name[..], domain), ("lab of Ada", ELSEWHERE));
}

#[tokio::test]
async fn a_node_that_cannot_be_dialed_is_reached_through_a_relay() {
    let mut relay = config(HOME, TCP);
    relay.relay_server = true;
    let mut nets = [start(relay).await, start(config(HOME, TCP)).await, start(config(HOME, TCP)).await];
    connect(&mut nets, 1, 0).await;

    nets[1].relays.set_wanted(true);
    let circuit = wait(&mut nets, |index, event| match event {
        NetEvent::Listening(address) if index == 1 => Some(address),
        _ => None,
    })
    .await;
    let hidden = nets[1].me();
    nets[2].dial(hidden, vec![circuit]);
    wait(&mut nets, |index, event| {
        matches!(event, NetEvent::PeerUp(peer) if index == 2 && peer == hidden).then_some(())
    })
    .await;

    let [_relay, mut hidden, seeker] = nets.map(Running::new);
    let mut stream = seeker.opener.open(hidden.key).await.unwrap();
    let mut other = hidden.stream().await;
    // More than the 128 KiB at which libp2p's default cuts a relayed stream.
    for _ in 0..8 {
        stream.send(vec![1; FRAME_MAX].into()).await.unwrap();
        assert_eq!(other.recv().await.unwrap().unwrap().len(), FRAME_MAX);
    }
}

#[tokio::test]
async fn a_taken_port_is_explained() {
    for listen in [QUIC, TCP] {
        let net = start(config(HOME, listen)).await;
        let mut second = config(HOME, listen);
        let taken = net.swarm.listeners().next().unwrap().clone();
        second.listen = vec![taken];

        let error = Net::new(second).err().expect("the port is taken");

        assert!(error.to_string().contains("the port is taken"), "{error:#}");
    }
}

#[tokio::test]
async fn a_ticket_address_names_the_node() {
    let net = start(config(HOME, QUIC)).await;

    let [address] = &net.listening()[..] else { panic!("one address") };

    assert!(address.to_string().ends_with(&format!("/quic-v1/p2p/{}", net.me().peer_id())));
    assert!(net.bootstrap_at > Instant::now() + BOOTSTRAP_INTERVAL / 2);
}
