//! Messages: that they arrive, and what is told when they do not.

use libp2p::swarm::ConnectionId;

use super::{attacker::Attacker, *};

async fn check_exchange(listen: &str, transport: Transport) {
    let mut nets: [Net; 2] = start_many(HOME, listen).await;
    connect(&mut nets, 0, 1).await;
    let (a, b) = (nets[0].me(), nets[1].me());

    nets[0].send(b, 7, &b"ask"[..], Bytes::from(vec![3; 100_000]), Repeat::Yes);
    let (from, message, body) = wait(&mut nets, received).await;
    nets[1].send(a, 8, &b"answer"[..], Bytes::new(), Repeat::Yes);
    let (_, answer, _) = wait(&mut nets, received).await;

    assert_eq!((from, &message[..], body.len()), (a, &b"ask"[..], 100_000));
    assert_eq!(answer, "answer");
    until(&mut nets, |nets| nets.iter().all(|net| net.counters().messages_acknowledged == 1)).await;
    let [peer] = &nets[0].peers()[..] else { panic!("one peer") };
    assert_eq!((peer.peer, peer.transport, peer.direction), (b, transport, Direction::Dialed));
    assert_eq!(peer.agent, "sharemesh/test");
}

fn received(_: usize, event: NetEvent) -> Option<(PeerKey, Bytes, Bytes)> {
    let NetEvent::Received { from, message, body } = event else {
        return None;
    };
    Some((from, message, body))
}

fn failed(_: usize, event: NetEvent) -> Option<(u64, SendFailure)> {
    let NetEvent::SendFailed { tag, reason, .. } = event else {
        return None;
    };
    Some((tag, reason))
}

fn offence(_: usize, event: NetEvent) -> Option<(PeerKey, OffenceKind)> {
    let NetEvent::Offence { peer, kind } = event else {
        return None;
    };
    Some((peer, kind))
}

/// Drives all nodes until something is true of them.
async fn until(nets: &mut [Net], mut done: impl FnMut(&[Net]) -> bool) {
    let search = async {
        while !done(nets) {
            let next = select_all(nets.iter_mut().map(|net| Box::pin(net.next())));
            // Counters change without an event: look again soon.
            let _ = tokio::time::timeout(Duration::from_millis(5), next).await;
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("it becomes true");
}

#[tokio::test]
async fn messages_are_exchanged_over_quic() {
    check_exchange(QUIC, Transport::Quic).await;
}

#[tokio::test]
async fn messages_are_exchanged_over_tcp_where_there_is_nothing_else() {
    check_exchange(TCP, Transport::Tcp).await;
}

#[tokio::test]
async fn a_message_to_a_stranger_dials_it_first() {
    let mut nets: [Net; 2] = start_many(HOME, QUIC).await;
    let (b, addresses) = (nets[1].me(), nets[1].listening());

    nets[0].dial(b, addresses);
    nets[0].send(b, 1, &b"at once"[..], Bytes::new(), Repeat::Yes);

    assert_eq!(wait(&mut nets, received).await.1, "at once");
}

#[tokio::test]
async fn a_message_to_a_peer_that_is_gone_fails() {
    let mut nets: [Net; 2] = start_many(HOME, QUIC).await;
    connect(&mut nets, 0, 1).await;
    let [a, b] = nets;
    let (gone, mut nets) = (b.me(), [a]);
    drop(b);

    nets[0].send(gone, 9, &b"anyone?"[..], Bytes::new(), Repeat::Yes);
    let mut down = false;
    let (tag, reason) = wait(&mut nets, |index, event| {
        down |= matches!(event, NetEvent::PeerDown(_));
        failed(index, event)
    })
    .await;
    if !down {
        wait(&mut nets, |_, event| matches!(event, NetEvent::PeerDown(peer) if peer == gone).then_some(()))
            .await;
    }

    assert_eq!(tag, 9);
    assert!(
        matches!(reason, SendFailure::Closed | SendFailure::Broken | SendFailure::Unreachable),
        "{reason:?}"
    );
    nets[0].send(gone, 10, &b"anyone?"[..], Bytes::new(), Repeat::Yes);
    assert_eq!(wait(&mut nets, failed).await, (10, SendFailure::Unreachable));
}

#[tokio::test]
async fn a_peer_that_was_started_anew_gets_all_that_is_sent_to_it() {
    let again = config(HOME, QUIC);
    let first = NetConfig { secret: again.secret, ..config(HOME, QUIC) };
    let mut nets = [start(config(HOME, QUIC)).await, start(first).await];
    connect(&mut nets, 0, 1).await;
    // The first run is never driven again: its connection stays, and nobody answers there.
    let [a, _silent] = nets;
    let (a_key, a_addresses) = (a.me(), a.listening());

    let mut nets = [a, start(again).await];
    let b = nets[1].me();
    nets[1].dial(a_key, a_addresses);
    wait(&mut nets, |index, event| {
        matches!(event, NetEvent::PeerUp(peer) if index == 1 && peer == a_key).then_some(())
    })
    .await;
    for tag in 0..4 {
        nets[0].send(b, tag, Vec::from([u8::try_from(tag).unwrap()]), Bytes::new(), Repeat::Yes);
    }
    let mut missing: BTreeSet<u8> = (0..4).collect();
    wait(&mut nets, |index, event| {
        if let NetEvent::Received { message, .. } = &event {
            missing.remove(&message[0]);
        }
        assert_eq!(failed(index, event), None, "a message is lost");
        missing.is_empty().then_some(())
    })
    .await;

    let [peer] = &nets[0].peers()[..] else { panic!("one peer") };
    assert_eq!(peer.addresses.len(), 1, "the earlier connection is closed");
}

/// Connects the first node to the second once more.
fn connect_again(nets: &mut [Net], address: Multiaddr) -> ConnectionId {
    let opts = DialOpts::peer_id(nets[1].me().peer_id()).condition(PeerCondition::Always);
    let opts = opts.addresses(vec![address]).build();
    let connection = opts.connection_id();
    nets[0].swarm.dial(opts).unwrap();
    connection
}

/// Sends four messages in turn over two connections, of which one closes before anything goes over it. Returns what
/// arrived and what failed once all is told.
async fn sent_while_a_connection_closes(repeat: Repeat) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let mut both = config(HOME, QUIC);
    both.listen.push(TCP.parse().unwrap());
    let mut nets = [start(config(HOME, QUIC)).await, start(both).await];
    until(&mut nets, |nets| nets[1].listening().len() == 2).await;
    let [one, other] = nets[1].listening().try_into().unwrap();
    let b = nets[1].me();
    let closing = connect_again(&mut nets, one);
    connect_again(&mut nets, other);
    until(&mut nets, |nets| nets[0].peers().first().is_some_and(|peer| peer.addresses.len() == 2)).await;

    for tag in 0..4 {
        nets[0].send(b, tag, Vec::from([u8::try_from(tag).unwrap()]), Bytes::new(), repeat);
    }
    assert!(nets[0].swarm.close_connection(closing));
    let (mut arrived, mut lost) = (BTreeSet::new(), BTreeSet::new());
    wait(&mut nets, |_, event| {
        if let NetEvent::Received { message, .. } = &event {
            arrived.insert(u64::from(message[0]));
        }
        if let NetEvent::SendFailed { tag, reason: SendFailure::Closed, .. } = event {
            lost.insert(tag);
        }
        (arrived.len() + lost.len() == 4).then_some(())
    })
    .await;
    (arrived, lost)
}

#[tokio::test]
async fn what_went_down_with_a_connection_goes_again_over_another_that_was_there() {
    let (arrived, lost) = sent_while_a_connection_closes(Repeat::Yes).await;

    assert_eq!((arrived.len(), lost.len()), (4, 0));
}

#[tokio::test]
async fn what_must_not_arrive_twice_is_told_lost_and_does_not_go_again() {
    let (arrived, lost) = sent_while_a_connection_closes(Repeat::No).await;

    assert_eq!((arrived.len(), lost.len()), (2, 2));
    assert!(arrived.is_disjoint(&lost));
}

#[tokio::test]
async fn nodes_of_different_domains_cannot_exchange() {
    let mut nets = [start(config(HOME, QUIC)).await, start(config(ELSEWHERE, QUIC)).await];
    let (b, addresses) = (nets[1].me(), nets[1].listening());

    nets[0].dial(b, addresses);
    nets[0].send(b, 1, &b"hello?"[..], Bytes::new(), Repeat::Yes);
    wait(&mut nets, |index, event| {
        assert!(!matches!(event, NetEvent::Received { .. } | NetEvent::PeerUp(_)), "{event:?}");
        failed(index, event)
    })
    .await;
    until(&mut nets, |nets| nets.iter().any(|net| net.counters().strangers_disconnected > 0)).await;

    assert!(nets.iter().all(|net| net.peers().is_empty()));
}

#[tokio::test]
async fn a_dial_into_another_network_fails_and_says_so() {
    let mut nets = [start(config(HOME, QUIC)).await, start(config(ELSEWHERE, QUIC)).await];
    let (b, addresses) = (nets[1].me(), nets[1].listening());

    nets[0].dial(b, addresses);

    let is_told = |event| matches!(event, NetEvent::DialFailed { peer, .. } if peer == b);
    wait(&mut nets, |_, event| is_told(event).then_some(())).await;
}

#[tokio::test]
async fn a_node_that_closes_tells_its_peers() {
    let mut nets: [Net; 2] = start_many(HOME, QUIC).await;
    connect(&mut nets, 0, 1).await;
    let [a, b] = nets;
    let key = b.me();

    b.close().await;

    wait(&mut [a], |_, event| matches!(event, NetEvent::PeerDown(peer) if peer == key).then_some(())).await;
}

#[tokio::test]
async fn unreadable_messages_are_offences_and_the_node_keeps_serving() {
    let mut nets: [Net; 2] = start_many(HOME, QUIC).await;
    connect(&mut nets, 0, 1).await;
    let (a, addresses) = (nets[0].me(), nets[0].listening());
    let attacks = [
        (vec![], OffenceKind::Malformed),
        (vec![9, 0, 0, 0, 1], OffenceKind::Malformed),
        (vec![255, 255, 255, 255, 1], OffenceKind::Oversized),
        ([&[0; 4][..], &vec![0; BODY_MAX + 1]].concat(), OffenceKind::Oversized),
    ];
    for (bytes, expected) in attacks {
        let attacker = Attacker::start(HOME);
        let key = attacker.key();
        let attack = tokio::spawn(attacker.send_raw(a, addresses.clone(), bytes));

        assert_eq!(wait(&mut nets, offence).await, (key, expected));
        attack.abort();
    }

    nets[1].send(a, 1, &b"still there?"[..], Bytes::new(), Repeat::Yes);

    assert_eq!(wait(&mut nets, received).await.1, "still there?");
}

#[tokio::test]
async fn our_own_oversized_messages_never_leave() {
    let mut nets = [start(config(HOME, QUIC)).await];
    let peer = PeerKey([9; 32]);

    nets[0].send(peer, 1, vec![0; MESSAGE_MAX + 1], Bytes::new(), Repeat::Yes);
    nets[0].send(peer, 2, Vec::new(), vec![0; BODY_MAX + 1].into(), Repeat::Yes);

    assert_eq!(wait(&mut nets, failed).await, (1, SendFailure::TooLarge));
    assert_eq!(wait(&mut nets, failed).await, (2, SendFailure::TooLarge));
    assert_eq!(nets[0].counters().messages_sent, 0);
}

#[tokio::test]
async fn a_full_queue_refuses_more_until_it_drains() {
    let mut nets: [Net; 2] = start_many(HOME, QUIC).await;
    connect(&mut nets, 0, 1).await;
    let b = nets[1].me();
    let most = (limits::QUEUE_MAX + limits::WAITING_MAX) as u64;
    for tag in 0..=most {
        nets[0].send(b, tag, vec![1], Bytes::new(), Repeat::Yes);
    }

    let refused = wait(&mut nets, failed).await;
    until(&mut nets, |nets| nets[0].counters().messages_acknowledged == most).await;
    nets[0].send(b, most + 1, &b"again"[..], Bytes::new(), Repeat::Yes);
    until(&mut nets, |nets| nets[0].counters().messages_acknowledged > most).await;

    assert_eq!(refused, (most, SendFailure::QueueFull));
}

#[tokio::test]
async fn what_waits_for_a_peer_that_goes_away_fails_with_what_was_under_way() {
    let [mut near, far]: [Net; 2] = start_many(HOME, QUIC).await;
    let b = far.me();
    // Nobody answers at this address any more.
    drop(far);
    let count = limits::QUEUE_MAX as u64 + 10;
    for tag in 0..count {
        near.send(b, tag, vec![1], Bytes::new(), Repeat::Yes);
    }

    let mut lost = BTreeSet::new();
    let mut nets = [near];
    while lost.len() < count as usize {
        lost.insert(wait(&mut nets, failed).await.0);
    }

    assert_eq!(lost, (0..count).collect());
}

#[tokio::test]
async fn a_flood_is_cut_to_the_rate_and_reported() {
    let mut strict = config(HOME, QUIC);
    strict.limits.messages = Rate { per_second: 0, burst: 5 };
    let mut nets = [start(config(HOME, QUIC)).await, start(strict).await];
    connect(&mut nets, 0, 1).await;
    let (a, b) = (nets[0].me(), nets[1].me());

    for tag in 0..20 {
        nets[0].send(b, tag, vec![1], Bytes::new(), Repeat::Yes);
    }
    let (mut arrived, mut offences, mut refused) = (0, 0, 0);
    wait(&mut nets, |_, event| {
        arrived += usize::from(matches!(event, NetEvent::Received { .. }));
        let limited =
            matches!(event, NetEvent::Offence { peer, kind: OffenceKind::RateLimited } if peer == a);
        offences += usize::from(limited);
        refused += usize::from(matches!(event, NetEvent::SendFailed { reason: SendFailure::Refused, .. }));
        (arrived + offences == 20 && refused == 15).then_some(())
    })
    .await;

    assert_eq!((arrived, offences), (5, 15));
}

/// Prints round trips; run with `--ignored --nocapture`, in release for numbers that mean something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_the_round_trip_of_a_message() {
    for listen in [QUIC, TCP] {
        let mut unlimited = [config(HOME, listen), config(HOME, listen)];
        for config in &mut unlimited {
            config.limits.messages = Rate { per_second: 1_000_000, burst: 1_000_000 };
        }
        let [near, far] = unlimited;
        let mut nets = [start(near).await, start(far).await];
        connect(&mut nets, 0, 1).await;
        let (a, b) = (nets[0].me(), nets[1].me());
        let [mut near, mut far] = nets;
        let echo = tokio::spawn(async move {
            loop {
                if let NetEvent::Received { message, body, .. } = far.next().await {
                    far.send(a, 0, message, body, Repeat::Yes);
                }
            }
        });
        let mut samples = Vec::new();
        for _ in 0..1100 {
            let sent_at = std::time::Instant::now();
            near.send(b, 0, vec![1; 200], Bytes::new(), Repeat::Yes);
            while !matches!(near.next().await, NetEvent::Received { .. }) {}
            samples.push(sent_at.elapsed());
        }
        echo.abort();
        streams::print_percentiles(&format!("message and answer over {listen}"), samples.split_off(100));
    }
}
