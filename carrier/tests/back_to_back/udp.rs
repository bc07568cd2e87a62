//! Streams, listeners, pings and life cycle of a carrier over UDP.

use std::{
    io::ErrorKind,
    net::Ipv6Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::bench::{A, B, Noise, Pair, Switch, at, config, key, pair, receive, send, send_while};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tunnel::Class;
use underpass_carrier::{Event, Transport, start};

const MB: usize = 1_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_both_ways_at_once() {
    let Pair {
        a,
        b,
        switch: _switch,
    } = pair().await;
    let mut listener = b.listen(7000).unwrap();
    let server = tokio::spawn(async move {
        let (stream, remote) = listener.accept().await.unwrap();
        assert_eq!(*remote.ip(), A);
        assert_eq!(stream.local_addr(), at(B, 7000));
        let (read, write) = split(stream);
        tokio::join!(receive(read), send(write, 2, 50 * MB))
    });
    let started = Instant::now();
    let stream = a.connect(at(B, 7000), Class::Bulk).await.unwrap();
    assert_eq!(stream.peer_addr(), at(B, 7000));
    assert_ne!(stream.local_addr().port(), 0);
    let (read, write) = split(stream);
    let (received, sent) = tokio::join!(receive(read), send(write, 1, 50 * MB));
    let (received_there, sent_there) = server.await.unwrap();
    println!(
        "50 MB both ways in {:.2} s",
        started.elapsed().as_secs_f64()
    );
    assert_eq!(received, (50 * MB, sent_there));
    assert_eq!(received_there, (50 * MB, sent));
}

#[tokio::test]
async fn half_close_leaves_the_other_half_open() {
    let Pair {
        a,
        b,
        switch: _switch,
    } = pair().await;
    let mut listener = b.listen(7000).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = String::new();
        stream.read_to_string(&mut question).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        stream
            .write_all(format!("{question}, answered").as_bytes())
            .await
            .unwrap();
    });
    let mut stream = a.connect(at(B, 7000), Class::Interactive).await.unwrap();
    stream.write_all(b"asked").await.unwrap();
    stream.shutdown().await.unwrap();
    let refused = stream.write_all(b"more").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "asked, answered");
    server.await.unwrap();
}

#[tokio::test]
async fn a_dropped_stream_delivers_what_was_written() {
    let Pair {
        a,
        b,
        switch: _switch,
    } = pair().await;
    let mut listener = b.listen(7000).unwrap();
    let mut stream = a.connect(at(B, 7000), Class::Interactive).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    // Something is on its way here that nobody reads: the goodbye stays graceful all the same.
    accepted.write_all(b"unread").await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let mut bytes = vec![0; MB];
    Noise::new(1).fill(&mut bytes);
    let writing = bytes.clone();
    tokio::spawn(async move { stream.write_all(&writing).await.unwrap() });
    let mut received = Vec::new();
    accepted.read_to_end(&mut received).await.unwrap();
    assert!(
        received == bytes,
        "{} of {} bytes",
        received.len(),
        bytes.len()
    );
    let gone = async {
        while a.stats().streams > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(1), gone).await.unwrap();
}

#[tokio::test]
async fn refusals_and_resets_have_their_kinds() {
    let Pair {
        a,
        b,
        switch: _switch,
    } = pair().await;
    let error = a.connect(at(B, 7001), Class::Bulk).await.unwrap_err();
    assert_eq!(error.code(), "refused");
    assert!(!error.hint().is_empty());
    assert_eq!(
        std::io::Error::from(error).kind(),
        ErrorKind::ConnectionRefused
    );

    let mut listener = b.listen(7000).unwrap();
    let mut stream = a.connect(at(B, 7000), Class::Bulk).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    accepted.abort();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = stream.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    // The listener is gone: so is the port. A stream that it accepted lives on.
    let mut kept = a.connect(at(B, 7000), Class::Bulk).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    drop(listener);
    kept.write_all(b"still here").await.unwrap();
    let mut text = [0; 10];
    accepted.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"still here");
    let refused = async { while a.connect(at(B, 7000), Class::Bulk).await.is_ok() {} };
    timeout(Duration::from_secs(5), refused).await.unwrap();
}

#[tokio::test]
async fn a_port_is_taken_once() {
    let Pair {
        b,
        a: _a,
        switch: _switch,
    } = pair().await;
    let mut first = b.listen(7000).unwrap();
    first.listening().await.unwrap();
    let mut second = b.listen(7000).unwrap();
    assert_eq!(second.listening().await.unwrap_err().code(), "port_in_use");
    assert!(second.accept().await.is_err());
    drop(first);
    drop(second);
    b.listen(7000).unwrap().listening().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_stalls_holds_up_its_own_stream_alone() {
    let Pair {
        a,
        b,
        switch: _switch,
    } = pair().await;
    let mut listener = b.listen(7000).unwrap();
    let stalled = a.connect(at(B, 7000), Class::Bulk).await.unwrap();
    let (unread, _) = listener.accept().await.unwrap();
    let (read_half, mut write_half) = split(stalled);
    // Nobody reads: the writer stops after the buffers on the way are full.
    let mut noise = Noise::new(3);
    let mut written = 0;
    let mut buffer = vec![0; 64 * 1024];
    noise.fill(&mut buffer);
    while let Ok(n) = timeout(Duration::from_millis(500), write_half.write(&buffer)).await {
        written += n.unwrap();
        assert!(
            written < 4 * MB,
            "a stalled stream takes all that it is given"
        );
    }
    assert!(written > MB, "the window of a bulk stream: {written}");
    // Meanwhile another stream of the same tunnel flows.
    let quick = a.connect(at(B, 7000), Class::Bulk).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let (sent, received) = timeout(Duration::from_secs(30), async {
        tokio::join!(send(quick, 4, 5 * MB), receive(accepted))
    })
    .await
    .unwrap();
    assert_eq!(received, (5 * MB, sent));
    // And the stalled one, once it is read, has lost nothing.
    write_half.shutdown().await.unwrap();
    drop(read_half);
    let (total, _) = timeout(Duration::from_secs(30), receive(unread))
        .await
        .unwrap();
    assert_eq!(total, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_streams_at_once() {
    let Pair {
        a,
        b,
        switch: _switch,
    } = pair().await;
    let mut listener = b.listen_class(7000, Class::Interactive).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = split(stream);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        }
    });
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..200 {
        let a = a.clone();
        tasks.spawn(async move {
            let stream = a.connect(at(B, 7000), Class::Interactive).await.unwrap();
            let (read, write) = split(stream);
            let (sent, received) = tokio::join!(send(write, n, 100_000), receive(read));
            assert_eq!(received, (100_000, sent));
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    println!("200 streams in {:.2} s", started.elapsed().as_secs_f64());
    let gone = async {
        while a.stats().streams + b.stats().streams > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), gone).await.unwrap();
}

#[tokio::test]
async fn pings_and_datagrams() {
    let Pair {
        a,
        b,
        switch: _switch,
    } = pair().await;
    let rtt = a.ping(B).await.unwrap();
    assert!(rtt < Duration::from_secs(1));
    let mut server = b.udp(5353).await.unwrap();
    let mut client = a.udp(0).await.unwrap();
    client.send_to(b"question", at(B, 5353)).await.unwrap();
    let (from, question) = server.recv_from().await.unwrap();
    assert_eq!((*from.ip(), question.as_slice()), (A, &b"question"[..]));
    server.send_to(b"answer", from).await.unwrap();
    assert_eq!(
        client.recv_from().await.unwrap(),
        (at(B, 5353), b"answer".to_vec())
    );
    assert_eq!(b.udp(5353).await.unwrap_err().code(), "port_in_use");
    drop(server);
    b.udp(5353).await.unwrap();
    let nobody = Ipv6Addr::new(0xfdaa, 0, 0x18, 0xc, 0, 0, 0, 2);
    let error = timeout(Duration::from_secs(10), a.ping(nobody))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code(), "no_answer");
}

#[tokio::test]
async fn a_path_that_is_cut_and_comes_back_costs_seconds_and_no_byte() {
    let Pair { a, b, switch } = pair().await;
    let mut listener = b.listen(7000).unwrap();
    let stream = a.connect(at(B, 7000), Class::Bulk).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let mut events = a.events();
    let going = Arc::new(AtomicBool::new(true));
    let transfer = tokio::spawn({
        let going = going.clone();
        async move { tokio::join!(send_while(stream, 5, going), receive(accepted)) }
    });
    sleep(Duration::from_millis(200)).await;
    switch.cut(true);
    sleep(Duration::from_secs(4)).await;
    switch.cut(false);
    let back = Instant::now();
    a.ping(B).await.unwrap();
    going.store(false, Relaxed);
    let (sent, received) = timeout(Duration::from_secs(60), transfer)
        .await
        .unwrap()
        .unwrap();
    println!(
        "finished {:.2} s after the path came back",
        back.elapsed().as_secs_f64()
    );
    assert_eq!(received, sent);
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(event);
    }
    assert!(seen.contains(&Event::PathSilent), "{seen:?}");
}

#[tokio::test]
async fn the_last_handle_stops_the_carrier() {
    let Pair {
        a,
        b,
        switch: _switch,
    } = pair().await;
    let mut listener = b.listen(7000).unwrap();
    let mut stream = a.connect(at(B, 7000), Class::Bulk).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    let mut own = a.listen(7000).unwrap();
    own.listening().await.unwrap();
    let again = a.clone();
    drop(a);
    stream.write_all(b"one handle is left").await.unwrap();
    drop(again);
    let mut text = String::new();
    timeout(Duration::from_secs(3), accepted.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(text, "one handle is left");
    assert_eq!(
        stream.read(&mut [0; 1]).await.unwrap_err().kind(),
        ErrorKind::NotConnected
    );
    assert!(stream.write_all(b"x").await.is_err());
    assert_eq!(
        own.accept().await.unwrap_err().kind(),
        ErrorKind::NotConnected
    );

    let started = Instant::now();
    let other = b.clone();
    b.close().await;
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(other.ping(A).await.unwrap_err().code(), "stopped");
    assert_eq!(other.ready().await.unwrap_err().code(), "stopped");
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_is_said_within_seconds() {
    // Nobody listens: the operating system says so, and the reason carries it.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = socket.local_addr().unwrap();
    drop(socket);
    let handle = start(config(&key(), &key(), A), Transport::Udp { endpoint })
        .await
        .unwrap();
    let mut events = handle.events();
    let error = timeout(Duration::from_secs(12), handle.ready())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code(), "handshake_no_answer");
    assert!(error.to_string().contains("nothing listens"), "{error}");
    assert!(error.hint().contains("relay"), "{}", error.hint());
    let mut told = 0;
    while let Ok(event) = events.try_recv() {
        told += usize::from(matches!(event, Event::Trouble { .. }));
    }
    assert!(told <= 1, "the same trouble is told once, not per datagram");

    // A gateway that knows another key: silence.
    let switch = Switch::new().await;
    let (key_a, key_b) = (key(), key());
    let udp = |side| Transport::Udp {
        endpoint: switch.address(side),
    };
    let _b = start(config(&key_b, &key(), B), udp(1)).await.unwrap();
    let a = start(config(&key_a, &key_b, A), udp(0)).await.unwrap();
    let error = timeout(Duration::from_secs(12), a.ready())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code(), "handshake_no_answer");
}

#[tokio::test]
async fn a_name_that_nobody_answers_for_fails_with_a_code() {
    let Pair {
        a,
        b: _b,
        switch: _switch,
    } = pair().await;
    let lookup = a.lookup("web.internal", tunnel::RecordKind::Aaaa);
    let error = timeout(Duration::from_secs(30), lookup)
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        !error.code().is_empty() && !error.to_string().is_empty(),
        "{error:?}"
    );
    println!("{}: {error}; {}", error.code(), error.hint());
}
