//! Two networks cannot exchange one packet, nor learn one name of each other.

use std::{path::Path, time::Duration};

use tests::{
    command::run,
    namespace::{Namespace, connect},
    peer::Peer,
    root,
    system::Setup,
};

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

#[test]
fn a_peer_of_another_network_reaches_no_address_and_learns_no_name() {
    if !root() {
        return;
    }
    let (server, ours, theirs) = (Namespace::new(), Namespace::new(), Namespace::new());
    let (address, _) = connect(&server, &ours, 1);
    connect(&server, &theirs, 2);
    theirs.ip(["route", "add", "10.99.1.0/24", "via", "10.99.2.1"]);
    let system = Setup {
        namespace: Some((&server, &address)),
        ..Setup::default()
    }
    .start();
    let files = tempfile::tempdir().expect("a directory");
    let org = system.ready.org.clone();
    system.underpass(&["orgs", "create", "rival"]).ok();
    let up = |org: &str, name: &str, namespace| {
        let path = files
            .path()
            .join(format!("{name}.conf"))
            .display()
            .to_string();
        system
            .underpass(&["wireguard", "create", "--org", org, name, &path])
            .ok();
        Peer::up(namespace, Path::new(&path))
    };
    let insider = up(&org, "insider", ours);
    let rival = up("rival", "rival", theirs);
    assert_ne!(insider.network, rival.network);

    // Both tunnels stand, and the inside works.
    let (app, instance) = system.instance();
    let name = format!("{}.internal", app.name);
    assert!(insider.dig([&name, "AAAA"]).contains(&instance.address));
    assert_eq!(
        rival.dig_status(["rival._peer.internal", "AAAA"]),
        "NOERROR"
    );
    assert!(rival.handshake().is_some());
    assert!(
        ping(&insider, &instance.address),
        "the insider reaches the instance"
    );

    // The rival's own configuration does not even route there: force it.
    let interface = rival.interface.clone();
    for network in [&insider.network, "fdaa::/16"] {
        rival
            .namespace
            .ip(["-6", "route", "replace", network, "dev", &interface]);
    }
    allow_everything(&rival, &interface);
    for app in &system.ready.apps {
        for instance in &app.instances {
            assert!(!ping(&rival, &instance.address), "{}", instance.address);
            assert!(
                !opens(&rival, &instance.address, 22),
                "{}",
                instance.address
            );
        }
    }
    assert!(
        !ping(&rival, &insider.address),
        "a peer of the other network"
    );
    assert!(!ping(&insider, &rival.address), "and the other way round");

    // Names: what exists next door looks like what exists nowhere.
    for name in [
        name.clone(),
        format!("{}.vm.{name}", instance.id),
        format!("{}.{name}", instance.region),
        "insider._peer.internal".to_owned(),
        "no-such-app.internal".to_owned(),
    ] {
        assert_eq!(rival.dig_status([&name, "AAAA"]), "NXDOMAIN", "{name}");
    }
    for list in ["_apps.internal", "_instances.internal", "_peer.internal"] {
        let told = rival.dig([list, "TXT"]).join(" ");
        assert!(
            !told.contains(&app.name) && !told.contains("insider"),
            "{list}: {told}"
        );
    }
    let cas = |peer: &Peer, name: &str| peer.dig([name, "TXT"]);
    for ca in ["_orgcert.internal", "_hostca.internal"] {
        assert_ne!(cas(&rival, ca), cas(&insider, ca), "{ca}");
    }

    // The other network's DNS server is no way round, nor is a source address that is not ours.
    let mut command = rival.namespace.command("dig");
    command.args([
        &format!("@{}", insider.dns),
        "+tries=1",
        "+time=2",
        &name,
        "AAAA",
    ]);
    let output = run(command, b"", Duration::from_secs(20));
    assert!(!output.text().contains(&instance.address), "{output}");
    let borrowed = format!("{}/128", insider.address);
    rival
        .namespace
        .ip(["-6", "addr", "add", &borrowed, "dev", &interface, "nodad"]);
    let from = ["ping", &instance.address, &insider.address];
    assert!(
        !rival.run(PROBE, from).status.success(),
        "a borrowed source address"
    );

    assert!(ping(&insider, &instance.address), "the inside still works");
}

fn ping(from: &Peer, to: &str) -> bool {
    (0..3).any(|_| from.run(PROBE, ["ping", to]).status.success())
}

fn opens(from: &Peer, to: &str, port: u16) -> bool {
    let script = format!("exec 3<>/dev/tcp/{to}/{port}");
    from.run("timeout", ["3", "bash", "-c", &script])
        .status
        .success()
}

/// Lets the rival's own WireGuard send anything, as a hostile client would.
fn allow_everything(peer: &Peer, interface: &str) {
    let gateway = peer.run("wg", ["show", interface, "peers"]).ok().text();
    peer.run(
        "wg",
        ["set", interface, "peer", &gateway, "allowed-ips", "::/0"],
    )
    .ok();
}
