//! `underpass bridge` under wireguard-go, where UDP is dropped.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use tests::{
    command::{Background, run},
    firewall::Firewall,
    peer::Peer,
    root,
};

/// wireguard-go, told that its gateway is a port of this machine, works where UDP is dropped.
#[test]
fn a_stock_client_passes_through_the_bridge() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    lab.drops("udp");
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let bridge = |arguments: &[&str]| {
        let mut command = lab.underpass(&["bridge"]);
        command.args(arguments);
        command
    };
    let output = run(
        bridge(&["--listen", "0.0.0.0:0"]),
        b"",
        Duration::from_secs(10),
    );
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(
        output.stderr.contains("hint: listen on 127.0.0.1"),
        "{output}"
    );
    let output = run(bridge(&["--systemd"]), b"", Duration::from_secs(10)).ok();
    assert!(output.text().contains("\nExecStart=/"), "{output}");

    let mut command = bridge(&["--listen", "127.0.0.1:0", "--json"]);
    command.stdout(Stdio::piped());
    let mut bridge = Background::start(command);
    let mut line = String::new();
    let mut stdout = BufReader::new(bridge.0.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("a line");
    let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let endpoint = json["endpoint"].as_str().expect("an endpoint");

    let org = lab.system.ready.org.clone();
    lab.system
        .underpass(&[
            "wireguard",
            "create",
            "--org",
            &org,
            "stock",
            &path("wg.conf"),
        ])
        .ok();
    lab.system
        .underpass(&["ssh", "issue", "--org", &org, &path("id")])
        .ok();
    let configuration = fs::read_to_string(path("wg.conf")).expect("a configuration");
    let bridged: String = configuration
        .lines()
        .map(|line| match line.strip_prefix("Endpoint = ") {
            Some(_) => format!("Endpoint = {endpoint}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(path("wg.conf"), bridged).expect("a configuration");
    let inner = lab.inner(directory.path());
    let Firewall {
        server: _server,
        client,
        system,
    } = lab;
    let peer = Peer::up(client, std::path::Path::new(&path("wg.conf")));
    let (app, _) = system.instance();
    let name = format!("{}.internal", app.name);
    assert_eq!(peer.dig([&name, "AAAA"]).len(), app.instances.len());
    let mut ssh = peer.namespace.command("ssh");
    ssh.args(["-F", "none", "-i", &path("id"), "-o", "BatchMode=yes", "-o"]);
    ssh.args([
        &format!("UserKnownHostsFile={}", path("id-known_hosts")),
        &format!("root@{name}"),
    ]);
    ssh.arg("head -c 104857600 /dev/zero; exit 7");
    let started = tests::clock::now();
    let output = run(ssh, b"", Duration::from_secs(120));
    assert_eq!(
        (output.status.code(), output.stdout.len()),
        (Some(7), 100 << 20)
    );
    let seconds = started.elapsed().as_secs_f64();
    println!("100 MiB through wireguard-go and the bridge: {seconds:.1} s");

    // iperf3 both ways, TCP and UDP.
    let mut server = inner.namespace.command("iperf3");
    server.args(["--server"]).stdout(Stdio::null());
    let _server = Background::start(server);
    inner.namespace.listens(5201);
    for (flow, more) in [
        ("TCP up", &["--time", "3"][..]),
        ("TCP down", &["--time", "3", "--reverse"]),
        (
            "UDP up",
            &[
                "--time",
                "3",
                "--udp",
                "--bitrate",
                "20M",
                "--length",
                "1300",
            ],
        ),
    ] {
        let mut client = peer.namespace.command("iperf3");
        client
            .args(["--client", &inner.address, "--json"])
            .args(more);
        let output = run(client, b"", Duration::from_secs(40)).ok();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let sum = &json["end"][if flow.starts_with("UDP") {
            "sum"
        } else {
            "sum_received"
        }];
        let (bytes, rate) = (sum["bytes"].as_u64(), sum["bits_per_second"].as_f64());
        println!(
            "iperf3 through wireguard-go and the bridge, {flow}: {:.0} Mbit/s, {} lost",
            rate.unwrap_or_default() / 1e6,
            sum["lost_packets"],
        );
        assert!(bytes.is_some_and(|bytes| bytes > 1 << 20), "{flow}: {json}");
    }
}
