//! Relays of their own in front of a system's gateway: replaced, killed and cut under transfers
//! that go on, every byte of them.

use std::{process::Command, time::Duration};

use tests::{
    client::Client,
    command::run,
    relay::{Relay, Setup, Transfer, have, through},
    root,
    system::System,
};
use tokio::time::{sleep, timeout};

/// Drained and replaced on the same port, and then killed: every transfer ends whole.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_outlive_their_relay() {
    let system = System::start();
    let session = system.session();
    let directory = tempfile::tempdir().expect("a directory");
    let first = Setup::here(&system, directory.path(), 0).start();
    let address = first.listen;
    let mut transfers = Vec::new();
    for _ in 0..4 {
        transfers.push(Transfer::start(&system, &session, address).await);
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!(first.sessions(), 8);
    assert_eq!(first.get("/readyz"), "ready");

    let second = Setup::here(&system, directory.path(), address.port()).start();
    assert_eq!(second.listen, address, "the same port, at the same time");
    first.signal("-TERM");
    sleep(Duration::from_millis(500)).await;
    assert_eq!(first.get("/readyz"), "draining");
    let status = first.ended().await;
    assert!(status.success(), "{status}");
    have(&[&second], 8).await;
    sleep(Duration::from_secs(1)).await;

    let third = Setup::here(&system, directory.path(), address.port()).start();
    second.signal("-KILL");
    second.ended().await;
    have(&[&third], 8).await;
    sleep(Duration::from_secs(1)).await;
    let mut worst = Duration::ZERO;
    for transfer in transfers {
        let (bytes, longest) = transfer.end().await;
        assert!(bytes > 1_000_000, "{bytes}");
        worst = worst.max(longest);
    }
    println!("a relay drained and replaced, then one killed: longest pause {worst:?}");
}

/// The kernel forgets the connections: the clients come back with their resume tokens, and the
/// gateway sees no move.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_resumed() {
    if !root() {
        return;
    }
    let system = System::start();
    let session = system.session();
    let directory = tempfile::tempdir().expect("a directory");
    let relay = Setup::here(&system, directory.path(), 0).start();
    let transfer = Transfer::start(&system, &session, relay.listen).await;
    for round in 1..=3 {
        sleep(Duration::from_millis(500)).await;
        let mut kill = Command::new("ss");
        let port = relay.listen.port().to_string();
        kill.args([
            "--kill",
            "state",
            "established",
            "dst",
            "127.0.0.1",
            "dport",
            "=",
            &port,
        ]);
        run(kill, b"", Duration::from_secs(5));
        let resumed = async {
            while relay.metric("resumes_total{outcome=\"resumed\"}") < 2 * round {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(15), resumed)
            .await
            .expect("both come back");
    }
    assert_eq!(relay.metric("resumes_total{outcome=\"unknown\"}"), 0);
    let (bytes, longest) = transfer.end().await;
    println!("three cuts: {bytes} bytes, longest pause {longest:?}");
}

/// SIGHUP, a change of the file, and one that cannot be used.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_read_again() {
    let system = System::start();
    let session = system.session();
    let directory = tempfile::tempdir().expect("a directory");
    let relay = Setup::here(&system, directory.path(), 0).start();
    let transfer = Transfer::start(&system, &session, relay.listen).await;
    let file = Relay::config(directory.path(), 0);
    let good = std::fs::read_to_string(&file).expect("its configuration");
    let opens = async |opens: bool| {
        let client = Client::lease(&system, &session);
        let transport = through(&system, &client, relay.listen);
        let as_expected = async {
            loop {
                let opened = client.connect(transport.clone()).await;
                if opened.is_ok() == opens {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(10), as_expected).await.is_ok()
    };
    assert!(opens(true).await);
    std::fs::write(&file, good.replace("gateways.local", "gateways.other")).expect("written");
    relay.signal("-HUP");
    assert!(opens(false).await, "the gateway is gone");
    // Half of it: what was loaded last stays.
    std::fs::write(&file, &good[..good.len() / 2]).expect("written");
    relay.signal("-HUP");
    sleep(Duration::from_millis(300)).await;
    assert!(opens(false).await);
    // Without a signal.
    std::fs::write(&file, &good).expect("written");
    assert!(opens(true).await, "the file has changed");
    let (bytes, _) = transfer.end().await;
    assert!(bytes > 0, "and who was there has noticed nothing");
}
