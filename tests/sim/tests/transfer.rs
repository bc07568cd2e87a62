//! Throughput over links that lose, reorder and repeat.

use std::{fmt::Write, time::Duration};

use sim::{Figures, LinkConfig, Side, World, WorldConfig, tunnel::Class};

/// From the server to the client for twenty seconds.
fn download(link: LinkConfig, seed: u64) -> Figures {
    let mut world = World::new(WorldConfig {
        seed,
        ..WorldConfig::both(link)
    });
    let (client, server) = world
        .connect(Class::Bulk)
        .expect("the link lets some through");
    let (from, to) = ((Side::Server, server), (Side::Client, client));
    world.transfer(from, to, u64::MAX, Duration::from_secs(20))
}

#[test]
fn the_figures_that_are_promised() {
    let rate = download(LinkConfig::GOOD, 1).rate();
    assert!(rate >= 8_000_000, "{rate} bytes per second without loss");
    for seed in 1..=5 {
        let rate = download(
            LinkConfig {
                loss: 10,
                ..LinkConfig::GOOD
            },
            seed,
        )
        .rate();
        assert!(
            rate >= 200_000,
            "{rate} bytes per second at 1 % loss, seed {seed}"
        );
    }
}

#[test]
fn throughput_over_loss() {
    let mut table = String::from("100 Mbit/s, 50 ms round trip, queue of 625,000 bytes, KB/s\n");
    table.push_str("loss %    plain  reorder 1 %  duplicate 1 %\n");
    for loss in [0, 10, 20, 50, 100] {
        let link = LinkConfig {
            loss,
            ..LinkConfig::GOOD
        };
        let reordered = LinkConfig {
            reordered: 10,
            ..link
        };
        let duplicated = LinkConfig {
            duplicated: 10,
            ..link
        };
        let [plain, reordered, duplicated] = [link, reordered, duplicated].map(|link| {
            let seeds: &[u64] = if loss == 0 { &[1] } else { &[1, 2, 3, 4, 5] };
            seeds
                .iter()
                .map(|seed| download(link, *seed).rate())
                .sum::<u64>()
                / 1000
                / seeds.len() as u64
        });
        writeln!(
            table,
            "{:>6} {plain:>8} {reordered:>12} {duplicated:>14}",
            loss / 10
        )
        .unwrap();
    }
    insta::assert_snapshot!(table);
}
