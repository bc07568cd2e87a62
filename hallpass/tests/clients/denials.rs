//! Every refusal: the client is refused, the server counts why, and goes on.

use std::time::Duration;

use ssh_key::LineEnding;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::world::{HOST_CA, STRANGER, Says, USER, World, eventually, key, ok, run, seconds, text};

#[tokio::test]
async fn every_certificate_that_is_no_good() {
    let world = World::new().await;
    let source = |list: &str| vec![("source-address", list.to_owned())];
    let good = Says::default;
    let cases = [
        (
            "certificate_ca_unknown",
            Says {
                ca: STRANGER,
                ..good()
            },
        ),
        (
            "certificate_ca_unknown",
            Says {
                ca: HOST_CA,
                ..good()
            },
        ),
        (
            "certificate_no_principals",
            Says {
                principals: vec![],
                ..good()
            },
        ),
        (
            "certificate_wrong_principal",
            Says {
                principals: vec!["mia"],
                ..good()
            },
        ),
        (
            "certificate_foreign_source",
            Says {
                critical: source("192.0.2.1"),
                ..good()
            },
        ),
        (
            "certificate_malformed_option",
            Says {
                critical: source("127.0.0.1/8"),
                ..good()
            },
        ),
        (
            "certificate_malformed_option",
            Says {
                critical: vec![("force-command", String::new())],
                ..good()
            },
        ),
        (
            "certificate_unknown_option",
            Says {
                critical: vec![("app@underpass.example", "web".to_owned())],
                ..good()
            },
        ),
    ];
    for (code, says) in cases {
        let before = world.counters.refused_for(code);
        world.identity("bad", &says);
        refused(&world, "bad").await;
        assert_eq!(world.counters.refused_for(code), before + 1, "{code}");
    }
    assert_eq!(world.counters.logins(), 0);
    assert_eq!(world.counters.channels(), 0);
    assert_eq!(ok(&run(world.ssh(&["echo in"])).await), "in\n");
}

/// These the protocol library refuses before anybody is asked.
#[tokio::test]
async fn certificates_of_another_time() {
    let world = World::new().await;
    for valid in [
        seconds() - 3600..seconds() - 60,
        seconds() + 600..seconds() + 3600,
    ] {
        world.identity(
            "bad",
            &Says {
                valid,
                ..Says::default()
            },
        );
        refused(&world, "bad").await;
    }
    assert_eq!(world.counters.logins(), 0);
    eventually("the client is gone", || {
        world.counters.refused_for("no_login") == 2
    })
    .await;
}

#[tokio::test]
async fn a_plain_key() {
    let world = World::new().await;
    world.write("plain", key(USER).to_openssh(LineEnding::LF).unwrap());
    ok(&crate::world::tool_runs("chmod", ["600".as_ref(), world.path("plain").as_os_str()]).await);
    refused(&world, "plain").await;
    assert_eq!(world.counters.refused_for("plain_key"), 1);
}

/// An agent with a dozen plain keys before the certificate gets through.
#[tokio::test]
async fn a_full_agent() {
    let world = World::new().await;
    let socket = world.path("agent");
    let mut agent = Command::new("ssh-agent");
    agent
        .args(["-D", "-a"])
        .arg(&socket)
        .kill_on_drop(true)
        .stdout(std::process::Stdio::null());
    let _agent = agent.spawn().unwrap();
    eventually("the agent", || socket.exists()).await;
    let with_agent = |tool: &str| {
        let mut command = Command::new(tool);
        command
            .env("SSH_AUTH_SOCK", &socket)
            .current_dir(world.dir.path());
        command
    };
    let kinds = ["ed25519", "ecdsa", "rsa"];
    for number in 0..12 {
        let name = format!("plain{number}");
        let kind = kinds[number % kinds.len()];
        ok(&crate::world::tool_runs(
            "ssh-keygen",
            [
                "-q",
                "-N",
                "",
                "-t",
                kind,
                "-f",
                world.path(&name).to_str().unwrap(),
            ],
        )
        .await);
        let mut add = with_agent("ssh-add");
        add.args(["-q", &name]);
        ok(&run(add).await);
    }
    let mut add = with_agent("ssh-add");
    add.args(["-q", "id"]);
    ok(&run(add).await);

    let mut ssh = with_agent("ssh");
    let options = world.options("none");
    let options = options
        .iter()
        .map(|option| option.replace("IdentitiesOnly=yes", "IdentitiesOnly=no"));
    ssh.args(options).args(["root@127.0.0.1", "echo in"]);
    assert_eq!(ok(&run(ssh).await), "in\n");
    assert!(world.counters.refused_for("plain_key") >= 8);
}

#[tokio::test]
async fn nobody_is_trusted_when_nobody_can_be_asked() {
    let world = World::new().await;
    std::fs::remove_file(world.path("user-ca")).unwrap();
    refused(&world, "id").await;
    world.write("user-ca", "ssh-ed25519 rubbish\n");
    refused(&world, "id").await;
    assert_eq!(world.counters.refused_for("trust_unavailable"), 2);
    assert_eq!(world.counters.logins(), 0);
}

#[tokio::test]
async fn a_host_that_is_another() {
    let world = World::new().await;
    let stranger = key(STRANGER).public_key().to_openssh().unwrap();
    world.write("known_hosts", format!("@cert-authority * {stranger}\n"));
    let output = run(world.ssh(&["echo in"])).await;
    assert!(
        text(&output.stderr).contains("Host key verification failed"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(world.counters.logins(), 0);
}

#[tokio::test]
async fn limits() {
    let world = World::with(|config| {
        config.limits.connections = 3;
        config.limits.startups = 2;
        config.limits.login_grace = Duration::from_millis(800);
    })
    .await;
    let connect = || TcpStream::connect(world.address);
    let (mut one, mut two) = (connect().await.unwrap(), connect().await.unwrap());
    let mut hello = [0; 8];
    one.read_exact(&mut hello).await.unwrap();
    two.read_exact(&mut hello).await.unwrap();
    let mut three = connect().await.unwrap();
    assert_eq!(
        three.read(&mut hello).await.unwrap_or(0),
        0,
        "the third is dropped"
    );
    assert_eq!(world.counters.refused_for("startup_limit"), 1);

    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), one.read_to_end(&mut rest))
        .await
        .expect("the grace time ends");
    let _ = tokio::time::timeout(Duration::from_secs(5), two.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(world.counters.refused_for("login_grace"), 2);
    assert_eq!(ok(&run(world.ssh(&["echo in"])).await), "in\n");
    let sessions: Vec<_> = (0..4)
        .map(|_| tokio::spawn(run(world.ssh(&["sleep 1"]))))
        .collect();
    let mut refused = 0;
    for session in sessions {
        refused += u32::from(!session.await.unwrap().status.success());
    }
    assert!(refused >= 1, "four at a time where three may be");
}

/// A person at stock OpenSSH is told why, once, with a code and a hint.
#[tokio::test]
async fn the_person_refused_is_told_why() {
    let world = World::new().await;
    let good = Says::default;
    let cases = [
        (
            "certificate_ca_unknown",
            "it is another's",
            Says {
                ca: STRANGER,
                ..good()
            },
        ),
        (
            "certificate_wrong_principal",
            "principals",
            Says {
                principals: vec!["mia"],
                ..good()
            },
        ),
        (
            "no_certificate",
            "underpass ssh issue",
            Says {
                valid: seconds() - 3600..seconds() - 60,
                ..good()
            },
        ),
    ];
    for (code, hint, says) in cases {
        world.identity("bad", &says);
        told(&world, "bad", code, hint).await;
    }
    world.write("plain", key(USER).to_openssh(LineEnding::LF).unwrap());
    ok(&crate::world::tool_runs("chmod", ["600".as_ref(), world.path("plain").as_os_str()]).await);
    told(&world, "plain", "no_certificate", "underpass ssh issue").await;
    assert_eq!(world.counters.logins(), 0);
}

async fn told(world: &World, identity: &str, code: &str, hint: &str) {
    let mut command = Command::new("ssh");
    // The first value of an option counts.
    command
        .args(["-o", "BatchMode=no", "-o", "LogLevel=INFO"])
        .args(world.options(identity));
    command
        .env_remove("SSH_AUTH_SOCK")
        .args(["root@127.0.0.1", "echo in"]);
    let output = run(command).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(said.matches(&format!("({code})")).count(), 1, "{said}");
    assert!(said.contains("hint: ") && said.contains(hint), "{said}");
}

async fn refused(world: &World, identity: &str) {
    let mut command = Command::new("ssh");
    command
        .args(world.options(identity))
        .env_remove("SSH_AUTH_SOCK");
    command.args(["root@127.0.0.1", "echo in"]);
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(255));
    assert!(
        text(&output.stderr).contains("Permission denied (publickey"),
        "{}",
        text(&output.stderr)
    );
}
