//! Whatever comes: nothing panics, and no packet crosses from one network to another.

use std::net::{Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::bench::*;

fn addresses() -> impl Strategy<Value = Ipv6Addr> {
    let known = [
        interface(1, 1).address(),
        interface(1, 2).address(),
        interface(2, 3).address(),
        interface(2, 4).address(),
        network(1).dns(),
        network(2).dns(),
        sixpn::INSTANCE_DNS,
        Ipv6Addr::UNSPECIFIED,
        Ipv6Addr::LOCALHOST,
        Ipv6Addr::from_bits(0xff02 << 112 | 1),
    ];
    prop_oneof![
        8 => proptest::sample::select(known.to_vec()),
        1 => any::<u128>().prop_map(Ipv6Addr::from_bits),
        // Of network 2, wherever.
        2 => any::<u128>().prop_map(|bits| {
            Ipv6Addr::from_bits(network(2).prefix().address().to_bits() | bits >> 48)
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_packet_crosses(
        packets in proptest::collection::vec(
            (addresses(), addresses(), any::<u8>(), any::<u8>(),
             proptest::collection::vec(any::<u8>(), 0..100)),
            1..20,
        ),
    ) {
        let mut bench = Bench::new();
        let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
        let (c, d) = (bench.connected(2, 3), bench.connected(2, 4));
        for (source, destination, next, limit, payload) in packets {
            let mut hostile = packet(source, destination, 40 + payload.len());
            hostile[6] = [next, 6, 17, 58, 44, 0][usize::from(next) % 6];
            hostile[7] = limit;
            hostile[40..].copy_from_slice(&payload);
            bench.send(a, &hostile);
        }
        for id in [c, d] {
            prop_assert_eq!(bench.received(id), Vec::<Vec<u8>>::new());
        }
        for received in bench.received(b) {
            // Only what the sender may say reaches even its own network.
            prop_assert!(interface(1, 1).prefix().contains(
                <[u8; 16]>::try_from(&received[8..24]).expect("16 bytes").into()
            ));
        }
        let (from, to) = (bench.get(a).address, bench.get(b).address);
        bench.send(a, &packet(from, to, 60));
        prop_assert_eq!(bench.received(b).len(), 1, "and the way is still open");
    }

    #[test]
    fn no_datagram_panics_nor_disturbs(
        datagrams in proptest::collection::vec(
            (0u8..6, prop_oneof![Just(148usize), Just(92), Just(64), Just(32), 0usize..200],
             any::<u32>(), proptest::collection::vec(any::<u8>(), 0..64)),
            1..50,
        ),
    ) {
        let mut bench = Bench::new();
        let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
        let from: SocketAddr = "203.0.113.66:6".parse().expect("an address");
        let now = bench.now;
        for (kind, length, index, noise) in datagrams {
            let mut datagram = noise;
            datagram.resize(length, kind);
            if length >= 12 {
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                // Half of them aim at a session that stands: indices of the bench start low.
                let index = if index % 2 == 0 { (index % 4) << 8 | index >> 29 } else { index };
                datagram[4..8].copy_from_slice(&index.to_le_bytes());
                datagram[8..12].copy_from_slice(&index.to_le_bytes());
            }
            bench.gateway.handle_datagram(now, from, &datagram);
        }
        bench.settle();
        prop_assert!(bench.strays.is_empty(), "a stranger gets no answer");
        let (ours, theirs) = (bench.get(a).address, bench.get(b).address);
        bench.send(a, &packet(ours, theirs, 60));
        prop_assert_eq!(bench.received(b).len(), 1);
    }
}
