//! A peer that nobody here wrote: wireguard-go, dig and OpenSSH against a real `underpass up`.

use std::{fs, path::Path, time::Duration};

use tempfile::TempDir;
use tests::{
    command::{Output, run},
    namespace::{Namespace, connect},
    peer::Peer,
    root,
    system::{Setup, System},
};

/// A system in one namespace and a stock peer in another.
struct Lab {
    peer: Peer,
    system: System,
    /// Keys and certificates from `underpass ssh issue`.
    keys: TempDir,
    _server: Namespace,
}

impl Lab {
    fn new() -> Lab {
        let (server, client) = (Namespace::new(), Namespace::new());
        let (address, _) = connect(&server, &client, 1);
        let system = Setup {
            namespace: Some((&server, &address)),
            ..Setup::default()
        }
        .start();
        let keys = tempfile::tempdir().expect("a directory for keys");
        let path = |name: &str| keys.path().join(name).display().to_string();
        let org = system.ready.org.clone();
        system
            .underpass(&[
                "wireguard",
                "create",
                "--org",
                &org,
                "stock",
                &path("wg.conf"),
            ])
            .ok();
        let peer = Peer::up(client, Path::new(&path("wg.conf")));
        system
            .underpass(&["ssh", "issue", "--org", &org, &path("id")])
            .ok();
        Lab {
            peer,
            system,
            keys,
            _server: server,
        }
    }

    fn path(&self, name: &str) -> String {
        self.keys.path().join(name).display().to_string()
    }

    /// OpenSSH as a careful person runs it: this key alone, the host certificate verified.
    fn options(&self) -> Vec<String> {
        let mut options = vec![
            "-F".to_owned(),
            "none".to_owned(),
            "-i".to_owned(),
            self.path("id"),
        ];
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=/dev/null",
            "ConnectTimeout=20",
        ] {
            options.extend(["-o".to_owned(), option.to_owned()]);
        }
        options.extend([
            "-o".to_owned(),
            format!("UserKnownHostsFile={}", self.path("known_hosts")),
        ]);
        options
    }

    fn program(&self, program: &str, arguments: &[&str], limit: u64) -> Output {
        let mut command = self.peer.namespace.command(program);
        command.args(self.options()).args(arguments);
        run(command, b"", Duration::from_secs(limit))
    }

    /// Writes the line that makes every host of the organisation known, from what DNS says.
    fn trust_host_ca(&self) {
        let cas = self.peer.dig(["_hostca.internal", "TXT"]);
        assert!(!cas.is_empty(), "no host CA in DNS");
        let lines: String = cas
            .iter()
            .map(|ca| {
                format!(
                    "@cert-authority *.internal,fdaa:* {}\n",
                    ca.trim_matches('"')
                )
            })
            .collect();
        fs::write(self.path("known_hosts"), lines).expect("known_hosts");
    }
}

#[test]
fn stock_programs_reach_an_instance_by_name() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    names(&lab);
    lab.trust_host_ca();
    shell(&lab);
    strangers(&lab);
    copies(&lab);
    assert!(
        lab.peer.handshake().is_some_and(|age| age < 200),
        "wg shows no handshake"
    );
}

/// Every kind of name, over UDP and over TCP.
fn names(lab: &Lab) {
    let peer = &lab.peer;
    for app in &lab.system.ready.apps {
        let mut expected: Vec<_> = app.instances.iter().map(|i| i.address.clone()).collect();
        expected.sort();
        let name = format!("{}.internal", app.name);
        for transport in ["+notcp", "+tcp"] {
            let mut addresses = peer.dig([transport, &name, "AAAA"]);
            addresses.sort();
            assert_eq!(addresses, expected, "{name} {transport}");
        }
        for instance in &app.instances {
            let by_id = format!("{}.vm.{name}", instance.id);
            assert_eq!(
                peer.dig([&by_id, "AAAA"]),
                [instance.address.as_str()],
                "{by_id}"
            );
            let by_region = peer.dig([&format!("{}.{name}", instance.region), "AAAA"]);
            assert!(
                by_region.contains(&instance.address),
                "{} of {name}",
                instance.region
            );
        }
        let apps = peer.dig(["+tcp", "_apps.internal", "TXT"]).join(",");
        assert!(apps.contains(&app.name), "{apps}");
    }
    assert!(
        peer.dig(["_instances.internal", "TXT"])
            .join(" ")
            .contains(&lab.system.instance().1.id)
    );
    assert!(
        peer.dig(["_peer.internal", "TXT"])
            .join(" ")
            .contains("stock")
    );
    assert_eq!(
        peer.dig(["stock._peer.internal", "AAAA"]),
        [peer.address.as_str()]
    );
    assert!(
        peer.dig(["_orgcert.internal", "TXT"])
            .join(" ")
            .contains("ssh-ed25519")
    );
    assert_eq!(
        peer.dig_status(["no-such-app.internal", "AAAA"]),
        "NXDOMAIN"
    );
    let app = &lab.system.instance().0.name;
    // A name that exists, of a type that it has none of.
    assert_eq!(
        peer.dig_status([&format!("{app}.internal"), "MX"]),
        "NOERROR"
    );
    assert!(peer.dig([&format!("{app}.internal"), "MX"]).is_empty());
}

/// OpenSSH logs in by name, the host certificate verified, and carries output and exit status.
fn shell(lab: &Lab) {
    let (app, instance) = lab.system.instance();
    let by_app = format!("root@{}.internal", app.name);
    let by_id = format!("root@{}.vm.{}.internal", instance.id, app.name);
    let by_region = format!("root@{}.{}.internal", instance.region, app.name);
    let by_address = format!("root@{}", instance.address);
    for host in [&by_app, &by_id, &by_region, &by_address] {
        let output = lab.program("ssh", &[host, "echo out; echo err >&2; exit 7"], 60);
        assert_eq!(output.status.code(), Some(7), "{host}: {output}");
        assert_eq!(output.text(), "out", "{host}: {output}");
        assert!(output.stderr.contains("err"), "{host}: {output}");
    }
    let output = lab.program("ssh", &[&by_id, "kill -TERM $$"], 60);
    assert_eq!(
        output.status.code(),
        Some(255),
        "a signal, as ssh shows it: {output}"
    );
    let output = lab.program("ssh", &["-tt", &by_id, "stty size; tty"], 60);
    assert!(output.text().contains("/dev/pts/"), "{output}");
    let mut command = lab.peer.namespace.command("ssh");
    command.args(lab.options()).args([&by_id, "sha256sum"]);
    let input: Vec<u8> = (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let remote = run(command, &input, Duration::from_secs(60)).ok().text();
    fs::write(lab.path("input"), &input).expect("a file");
    assert_eq!(
        remote.split(' ').next(),
        Some(sha256(&lab.path("input")).as_str()),
        "stdin, to its end"
    );
}

/// Without the host CA nothing is trusted, and with a CA of somebody else neither.
fn strangers(lab: &Lab) {
    let known_hosts = fs::read_to_string(lab.path("known_hosts")).expect("known_hosts");
    let host = format!("root@{}.internal", lab.system.instance().0.name);
    let mut command = std::process::Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f", &lab.path("other_ca")]);
    run(command, b"", Duration::from_secs(10)).ok();
    let other = fs::read_to_string(lab.path("other_ca.pub")).expect("a public key");
    for trust in [String::new(), format!("@cert-authority *.internal {other}")] {
        fs::write(lab.path("known_hosts"), trust).expect("known_hosts");
        let output = lab.program("ssh", &[&host, "true"], 60);
        assert_eq!(output.status.code(), Some(255), "{output}");
        assert!(
            output.stderr.contains("Host key verification failed"),
            "{output}"
        );
    }
    fs::write(lab.path("known_hosts"), known_hosts).expect("known_hosts");
}

/// 100 MB there and back, by the SFTP that scp speaks today, by its old protocol, and by sftp.
fn copies(lab: &Lab) {
    let (app, instance) = lab.system.instance();
    let host = format!("root@{}.vm.{}.internal", instance.id, app.name);
    let there = format!("/tmp/underpass-test-{}", std::process::id());
    let mut random = std::process::Command::new("dd");
    random.args([
        "if=/dev/urandom",
        &format!("of={}", lab.path("big")),
        "bs=1M",
        "count=100",
    ]);
    run(random, b"", Duration::from_secs(60)).ok();
    let hash = sha256(&lab.path("big"));
    for (name, more) in [("scp", &[][..]), ("scp -O", &["-O"])] {
        let started = tests::clock::now();
        let to: Vec<&str> = more.to_vec();
        let (big, remote, back) = (lab.path("big"), format!("{host}:{there}"), lab.path("back"));
        let mut arguments = to.clone();
        arguments.extend([big.as_str(), remote.as_str()]);
        lab.program("scp", &arguments, 180).ok();
        let sent = started.elapsed();
        assert_eq!(sha256(&there), hash, "{name}, there");
        let mut arguments = to;
        arguments.extend([remote.as_str(), back.as_str()]);
        lab.program("scp", &arguments, 180).ok();
        assert_eq!(sha256(&lab.path("back")), hash, "{name}, back");
        println!(
            "{name}: 100 MiB there in {:.1} s, back in {:.1} s",
            sent.as_secs_f64(),
            (started.elapsed() - sent).as_secs_f64()
        );
        fs::remove_file(lab.path("back")).expect("the copy");
    }
    let batch = format!(
        "put {} {there}\nget {there} {}\nrm {there}\n",
        lab.path("id.pub"),
        lab.path("got")
    );
    fs::write(lab.path("id.pub"), "not very long\n").expect("a file");
    fs::write(lab.path("batch"), batch).expect("a file");
    lab.program("sftp", &["-b", &lab.path("batch"), &host], 60)
        .ok();
    assert_eq!(
        sha256(&lab.path("got")),
        sha256(&lab.path("id.pub")),
        "sftp"
    );
    assert!(!Path::new(&there).exists(), "sftp rm");
}

fn sha256(path: &str) -> String {
    let mut command = std::process::Command::new("sha256sum");
    command.arg(path);
    let text = run(command, b"", Duration::from_secs(60)).ok().text();
    text.split(' ').next().unwrap_or_default().to_owned()
}
