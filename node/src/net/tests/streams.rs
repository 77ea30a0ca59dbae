//! Job streams: frames in both directions, ends that are noticed, and bounds on how many.

use super::*;

async fn check_echo(listen: &str) {
    let (near, mut far) = running_pair(listen).await;
    let mut stream = near.opener.open(far.key).await.unwrap();
    let mut other = far.stream().await;
    let echo = tokio::spawn(async move {
        while let Some(frame) = other.recv().await.unwrap() {
            other.send(frame).await.unwrap();
        }
    });

    for frame in [Bytes::from_static(b"token"), Bytes::new(), vec![7; FRAME_MAX].into()] {
        stream.send(frame.clone()).await.unwrap();
        assert_eq!(stream.recv().await.unwrap(), Some(frame));
    }
    let (mut receiver, mut sender) = stream.split();
    sender.finish().await.unwrap();

    assert_eq!(receiver.recv().await.unwrap(), None);
    echo.await.unwrap();
}

#[tokio::test]
async fn frames_come_back_over_quic() {
    check_echo(QUIC).await;
}

#[tokio::test]
async fn frames_come_back_over_tcp() {
    check_echo(TCP).await;
}

#[tokio::test]
async fn the_other_end_sees_a_stream_before_its_first_frame() {
    let (near, mut far) = running_pair(QUIC).await;

    let mut stream = near.opener.open(far.key).await.unwrap();
    let mut other = far.stream().await;
    other.send(Bytes::from_static(b"first")).await.unwrap();

    assert_eq!(stream.recv().await.unwrap().unwrap(), "first");
}

#[tokio::test]
async fn a_frame_too_large_is_refused_where_it_is_sent() {
    let (near, mut far) = running_pair(QUIC).await;
    let mut stream = near.opener.open(far.key).await.unwrap();

    assert!(stream.send(vec![0; FRAME_MAX + 1].into()).await.is_err());
    stream.send(Bytes::from_static(b"fits")).await.unwrap();

    assert_eq!(far.stream().await.recv().await.unwrap().unwrap(), "fits");
}

#[tokio::test]
async fn a_dropped_stream_is_noticed_at_the_other_end() {
    let (near, mut far) = running_pair(QUIC).await;
    let mut stream = near.opener.open(far.key).await.unwrap();
    let other = far.stream().await;

    drop(other);

    assert!(!matches!(stream.recv().await, Ok(Some(_))));
}

#[tokio::test]
async fn a_stream_ends_when_its_node_does() {
    let (near, mut far) = running_pair(QUIC).await;
    let mut stream = near.opener.open(far.key).await.unwrap();
    let other = far.stream().await;

    far.task.abort();
    let _ = far.task.await;
    drop(other);

    let end = tokio::time::timeout(PATIENCE, stream.recv()).await.expect("the end is noticed");
    assert!(!matches!(end, Ok(Some(_))));
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_until_one_ends() {
    let mut strict = config(HOME, QUIC);
    strict.limits.job_streams_per_peer = 2;
    let mut nets = [start(config(HOME, QUIC)).await, start(strict).await];
    connect(&mut nets, 0, 1).await;
    let [near, mut far] = nets.map(Running::new);
    let _first = near.opener.open(far.key).await.unwrap();
    let first_other = far.stream().await;
    let _second = near.opener.open(far.key).await.unwrap();
    let _second_other = far.stream().await;

    let mut third = near.opener.open(far.key).await.unwrap();
    let offence =
        far.wait(|event| if let NetEvent::Offence { kind, .. } = event { Some(kind) } else { None }).await;
    assert_eq!(offence, OffenceKind::TooManyStreams);
    assert!(!matches!(third.recv().await, Ok(Some(_))));

    drop(first_other);
    let mut fourth = near.opener.open(far.key).await.unwrap();
    fourth.send(Bytes::from_static(b"room again")).await.unwrap();
    assert_eq!(far.stream().await.recv().await.unwrap().unwrap(), "room again");
}

#[tokio::test]
async fn a_stream_to_nobody_fails_and_says_so() {
    let [near] = start_many::<1>(HOME, QUIC).await.map(Running::new);

    let error = near.opener.open(PeerKey([9; 32])).await.unwrap_err();

    assert!(error.to_string().contains("no job stream to"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_the_round_trip_of_a_frame() {
    for listen in [QUIC, TCP] {
        let (near, mut far) = running_pair(listen).await;
        let mut stream = near.opener.open(far.key).await.unwrap();
        let mut other = far.stream().await;
        tokio::spawn(async move {
            while let Ok(Some(frame)) = other.recv().await {
                other.send(frame).await.unwrap();
            }
        });
        let mut samples = Vec::new();
        for _ in 0..2100 {
            let sent_at = std::time::Instant::now();
            stream.send(Bytes::from_static(&[1; 40])).await.unwrap();
            stream.recv().await.unwrap().unwrap();
            samples.push(sent_at.elapsed());
        }
        print_percentiles(&format!("frame and echo over {listen}"), samples.split_off(100));

        let mut opened = Vec::new();
        for _ in 0..20 {
            let opened_at = std::time::Instant::now();
            let _stream = near.opener.open(far.key).await.unwrap();
            far.stream().await;
            opened.push(opened_at.elapsed());
        }
        print_percentiles(&format!("open until seen over {listen}"), opened);
    }
}

pub(super) fn print_percentiles(what: &str, mut samples: Vec<Duration>) {
    samples.sort();
    let at = |share: f64| samples[(samples.len() as f64 * share) as usize];
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}, n {}", at(0.5), at(0.9), at(0.99), samples.len());
}
