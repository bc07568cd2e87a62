//! SSH certificates that are wrong in one way each, by OpenSSH against an instance. The client is
//! told why and what to do, the server's log says it too, and a good certificate works throughout.

use std::{fs, path::Path, process::Command, time::Duration};

use tempfile::TempDir;
use tests::{
    command::{Output, run},
    namespace::{Namespace, connect},
    peer::Peer,
    root,
    system::{Setup, System},
    warp::Warp,
};

struct Lab {
    here: Peer,
    elsewhere: Peer,
    system: System,
    files: TempDir,
    host: String,
}

impl Lab {
    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    /// `underpass ssh issue` into the file of that name.
    fn issue(&self, name: &str, more: &[&str]) {
        let path = self.path(name);
        let arguments = [&["ssh", "issue", &path], more].concat();
        self.system.underpass(&arguments).ok();
    }

    /// Logs in with the key and certificate of that name.
    fn login(&self, from: &Peer, name: &str) -> Output {
        let mut command = from.namespace.command("ssh");
        command.args(["-F", "none", "-i", &self.path(name)]);
        for option in [
            "NumberOfPasswordPrompts=1",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=/dev/null",
            "ConnectTimeout=20",
            &format!("UserKnownHostsFile={}", self.path("good-known_hosts")),
        ] {
            command.args(["-o", option]);
        }
        command.args([&self.host, "echo in"]);
        run(command, b"", Duration::from_secs(60))
    }

    fn admits(&self, name: &str) {
        assert_eq!(self.login(&self.here, name).ok().text(), "in", "{name}");
    }

    /// A login that is refused, where the person is told that code and a hint.
    fn refuses(&self, from: &Peer, name: &str, code: &str) {
        let output = self.login(from, name);
        assert_eq!(output.status.code(), Some(255), "{name}: {output}");
        for said in ["Permission denied", &format!("({code})"), "hint: "] {
            assert!(output.stderr.contains(said), "{name}: {said}: {output}");
        }
    }

    /// An ed25519 key without a certificate.
    fn plain_key(&self, name: &str) {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f", &self.path(name)]);
        run(command, b"", Duration::from_secs(20)).ok();
    }

    /// Signs the key of that name by the CA of that name, as stock tools do.
    fn sign(&self, ca: &str, name: &str, more: &[&str]) {
        let mut command = Command::new("ssh-keygen");
        command
            .args(["-q", "-s", &self.path(ca), "-I", "test", "-n", "root"])
            .args(more);
        command.arg(format!("{}.pub", self.path(name)));
        run(command, b"", Duration::from_secs(20)).ok();
    }
}

#[test]
fn each_wrong_certificate_is_refused_for_its_reason() {
    if !root() {
        return;
    }
    let clock = Warp::new();
    let (server, here, elsewhere) = (Namespace::new(), Namespace::new(), Namespace::new());
    let (address, _) = connect(&server, &here, 1);
    connect(&server, &elsewhere, 2);
    elsewhere.ip(["route", "add", "10.99.1.0/24", "via", "10.99.2.1"]);
    let setup = Setup {
        namespace: Some((&server, &address)),
        clock: Some(&clock),
        ..Setup::default()
    };
    let system = setup.start();
    let org = system.ready.org.clone();
    let files = tempfile::tempdir().expect("a directory");
    let peer = |name: &str, namespace| {
        let path = files.path().join(name).display().to_string();
        system
            .underpass(&["wireguard", "create", "--org", &org, name, &path])
            .ok();
        Peer::up(namespace, Path::new(&path))
    };
    let (here, elsewhere) = (peer("here", here), peer("elsewhere", elsewhere));
    let (app, instance) = system.instance();
    let host = format!("root@{}.vm.{}.internal", instance.id, app.name);
    let lab = Lab {
        here,
        elsewhere,
        system,
        files,
        host,
    };
    let org = ["--org", &org];

    lab.issue("good", &org);
    lab.admits("good");

    lab.plain_key("bare");
    lab.refuses(&lab.here, "bare", "no_certificate");

    lab.system.underpass(&["orgs", "create", "rival"]).ok();
    lab.issue("rival", &["--org", "rival"]);
    lab.refuses(&lab.here, "rival", "certificate_ca_unknown");
    lab.plain_key("own_ca");
    lab.plain_key("own");
    lab.sign("own_ca", "own", &["-V", "+1h"]);
    lab.refuses(&lab.here, "own", "certificate_ca_unknown");
    lab.plain_key("as_host");
    lab.sign("own_ca", "as_host", &["-h"]);
    // OpenSSH itself keeps a host certificate back.
    lab.refuses(&lab.here, "as_host", "no_certificate");

    lab.issue("somebody", &[&org[..], &["--user", "somebody"]].concat());
    lab.refuses(&lab.here, "somebody", "certificate_wrong_principal");
    lab.system.logs("certificate_wrong_principal");

    // For one peer's address alone, as the console has them.
    let session = lab.system.session();
    lab.plain_key("console");
    let public = fs::read_to_string(lab.path("console.pub")).expect("a public key");
    let body = serde_json::json!({ "public_key": public.trim(), "peer": lab.here.address });
    let path = format!("/api/v1/orgs/{}/ssh/certificates", org[1]);
    let reply = lab
        .system
        .api("POST", &path, Some(&session), Some(&body.to_string()));
    assert_eq!(reply.status, 200, "{}", reply.body);
    let certificate = reply.json["certificate"].as_str().expect("a certificate");
    fs::write(lab.path("console-cert.pub"), certificate).expect("a file");
    lab.admits("console");
    lab.refuses(&lab.elsewhere, "console", "certificate_foreign_source");

    lab.issue("short", &[&org[..], &["--hours", "1"]].concat());
    lab.admits("short");
    // The SSH library looks at the dates itself, before any rule of ours.
    clock.set(-3_600);
    lab.refuses(&lab.here, "short", "no_certificate");
    clock.set(2 * 3_600);
    lab.refuses(&lab.here, "short", "no_certificate");
    clock.set(0);
    lab.system.logs("expired or not yet valid");

    lab.admits("good");
    lab.admits("console");
}
