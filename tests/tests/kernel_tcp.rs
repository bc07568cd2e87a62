//! What the kernel's TCP makes of the links that the simulated network has: the yardstick beside
//! the figures of `tests/sim`.

use std::{process::Stdio, sync::atomic::Ordering::Relaxed, time::Duration};

use tests::{
    command::Background,
    emulator::{Link, Shape},
    namespace::Namespace,
    root,
};

/// 100 Mbit/s, 50 ms there and back, a queue of one bandwidth-delay product.
const SHAPE: Shape = Shape {
    rate: 100_000_000,
    delay: Duration::from_millis(25),
    queue: 625_000,
    loss_permille: 0,
    mtu: 1420,
};

/// Bytes per second that cubic gets through in ten seconds.
fn throughput(shape: Shape) -> f64 {
    let (a, b) = (Namespace::new(), Namespace::new());
    let link = Link::new(&a, &b, shape);
    let mut server = b.command("iperf3");
    server.args(["--server", "--one-off", "--bind", "fd99::2"]);
    let _server = Background::start({
        server
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        server
    });
    let listening = || {
        b.run("ss", ["-Hltn"], Duration::from_secs(5))
            .text()
            .contains(":5201")
            .then_some(())
    };
    tests::clock::wait_for("iperf3", Duration::from_secs(10), listening);
    let output = a.run(
        "iperf3",
        [
            "--client",
            "fd99::2",
            "--json",
            "--time",
            "10",
            "--congestion",
            "cubic",
        ],
        Duration::from_secs(40),
    );
    let json: serde_json::Value =
        serde_json::from_slice(&output.ok().stdout).expect("iperf3 prints JSON");
    let received = json["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .expect("a figure")
        / 8.0;
    let forward = link.forward();
    println!(
        "kernel TCP (cubic): {:.3} MB/s at {:.1} % loss; {} packets passed, {} lost, {} over the queue",
        received / 1e6,
        shape.loss_permille as f64 / 10.0,
        forward.passed.load(Relaxed),
        forward.lost.load(Relaxed),
        forward.overflowed.load(Relaxed),
    );
    received
}

#[test]
fn the_kernel_fills_the_link_without_loss_and_not_with_it() {
    if !root() {
        return;
    }
    let clean = throughput(SHAPE);
    // The emulator is as fast as its link, or its figures mean nothing.
    assert!((8e6..12.5e6).contains(&clean), "{clean}");
    let lossy = throughput(Shape {
        loss_permille: 10,
        ..SHAPE
    });
    assert!((50e3..4e6).contains(&lossy), "{lossy}");
}
