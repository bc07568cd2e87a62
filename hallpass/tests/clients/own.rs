//! This project's own client.

use std::time::Duration;

use ssh::Dialled;
use ssh::client::{
    ExitStatus, HostPolicy, Identity, Output, Pty, Session, Sign, SignFailed, SignFuture, Signer,
    SshError, connect,
};
use ssh_key::Certificate;
use ssh_key::certificate::CertType;
use tokio::net::TcpStream;

use crate::world::{
    HOST, HOST_CA, STRANGER, Says, USER, World, eventually, key, narrow_socket, noise, now,
};

fn policy(dialled: &str, authority: u8) -> HostPolicy {
    HostPolicy::Certificate {
        dialled: Dialled::parse(dialled),
        authorities: vec![key(authority).public_key().clone()],
    }
}

fn identity(certificate: Certificate) -> Identity {
    Identity {
        certificate,
        signer: Signer::Local(Box::new(key(USER))),
    }
}

async fn log_in(world: &World, says: &Says, policy: HostPolicy) -> Result<Session, SshError> {
    let stream = TcpStream::connect(world.address).await.unwrap();
    connect(stream, "root", identity(says.sign()), policy, now).await
}

async fn session(world: &World) -> Session {
    log_in(world, &Says::default(), policy("web.internal", HOST_CA))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_command() {
    let world = World::new().await;
    let session = session(&world).await;
    assert_eq!(session.host().unwrap().principal(), "web.internal");
    let env = [("LC_ALL", "C.UTF-8"), ("NOT_FOR_CLIENTS", "x")];
    let mut channel = session
        .exec(
            "cat; echo $LC_ALL$NOT_FOR_CLIENTS; echo err >&2; exit 3",
            None,
            &env,
        )
        .await
        .unwrap();
    channel.write("hello ").await.unwrap();
    channel.eof().await.unwrap();
    let (mut out, mut err, mut end) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(output) = channel.next().await {
        match output {
            Output::Stdout(data) => out.extend(data),
            Output::Stderr(data) => err.extend(data),
            other => end.push(other),
        }
    }
    assert_eq!(
        (out.as_slice(), err.as_slice()),
        (&b"hello C.UTF-8\n"[..], &b"err\n"[..])
    );
    assert_eq!(end, [Output::Exit(ExitStatus::Code(3)), Output::Eof]);

    let mut channel = session.exec("kill -TERM $$", None, &[]).await.unwrap();
    let mut exit = None;
    while let Some(output) = channel.next().await {
        if let Output::Exit(status) = output {
            exit = Some(status);
        }
    }
    let signal = ExitStatus::Signal {
        name: "TERM".to_owned(),
        message: String::new(),
    };
    assert_eq!(exit, Some(signal));
}

#[tokio::test]
async fn a_shell_that_is_resized() {
    let world = World::new().await;
    let session = session(&world).await;
    let pty = Pty {
        term: "xterm-256color".to_owned(),
        cols: 100,
        rows: 30,
    };
    let mut channel = session.open_shell(&pty, &[]).await.unwrap();
    let mut shown = String::new();
    channel
        .write("PS1=; stty -echo; stty size; echo \"[$TERM]\"\n")
        .await
        .unwrap();
    until(&mut channel, &mut shown, "[xterm-256color]").await;
    assert!(shown.contains("30 100"), "{shown}");
    channel.resize(132, 43).await.unwrap();
    channel
        .write("sleep 0.1; stty size; echo [again]\n")
        .await
        .unwrap();
    until(&mut channel, &mut shown, "[again]").await;
    assert!(shown.contains("43 132"), "{shown}");
    channel.write("sleep 60\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    channel
        .write("\x03echo \"[interrupted $?]\"\n")
        .await
        .unwrap();
    until(&mut channel, &mut shown, "[interrupted 130]").await;
    channel.write("exit 4\n").await.unwrap();
    let (mut read, _write) = channel.split();
    while read.next().await.is_some() {}
    assert_eq!(read.exit(), Some(&ExitStatus::Code(4)));
}

async fn until(channel: &mut ssh::client::Channel, shown: &mut String, words: &str) {
    while !shown.contains(words) {
        let next = tokio::time::timeout(Duration::from_secs(10), channel.next()).await;
        match next.unwrap_or_else(|_| panic!("no {words} in {shown:?}")) {
            Some(Output::Stdout(data)) => shown.push_str(&String::from_utf8_lossy(&data)),
            Some(_) => {}
            None => panic!("no {words} in {shown:?}"),
        }
    }
}

#[tokio::test]
async fn signals() {
    let world = World::new().await;
    let session = session(&world).await;
    let script = "trap 'echo usr1; exit 9' USR1; echo ready; while :; do sleep 0.05; done";
    let mut channel = session.exec(script, None, &[]).await.unwrap();
    let mut shown = String::new();
    until(&mut channel, &mut shown, "ready").await;
    channel.signal("USR1").await.unwrap();
    until(&mut channel, &mut shown, "usr1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn much_both_ways() {
    let world = World::new().await;
    echo(&session(&world).await, 50 * 1024 * 1024).await;
}

/// Both sides have much to write and the path takes little of it: were either to wait for its
/// writing before it reads on, neither would.
#[tokio::test(flavor = "multi_thread")]
async fn much_both_ways_over_a_path_that_holds_little() {
    let world = World::narrow();
    let stream = narrow_socket().connect(world.address).await.unwrap();
    let identity = identity(Says::default().sign());
    let policy = policy("web.internal", HOST_CA);
    let session = connect(stream, "root", identity, policy, now)
        .await
        .unwrap();
    let echo = echo(&session, 16 * 1024 * 1024);
    let done = tokio::time::timeout(Duration::from_secs(120), echo).await;
    done.expect("both sides wait for each other");
}

async fn echo(session: &Session, bytes: usize) {
    let sent = noise(bytes);
    let (mut read, write) = session.exec("cat", None, &[]).await.unwrap().split();
    let data = bytes::Bytes::from(sent.clone());
    let writing = tokio::spawn(async move {
        write.write(data).await.unwrap();
        write.eof().await.unwrap();
        write
    });
    let mut back = Vec::with_capacity(sent.len());
    while let Some(output) = read.next().await {
        if let Output::Stdout(data) = output {
            back.extend_from_slice(&data);
        }
    }
    writing.await.unwrap();
    assert!(back == sent, "{} bytes came back", back.len());
    assert_eq!(read.exit(), Some(&ExitStatus::Code(0)));
}

/// A reader that stops reading stops the program, and a program that stops reading the writer.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_piles_up() {
    let world = World::new().await;
    let session = session(&world).await;
    let count = world.path("written");
    let script = format!(
        "i=0; while head -c 1000000 /dev/zero; do i=$((i+1)); echo $i > {}; done",
        count.display()
    );
    let _unread = session.exec(&script, None, &[]).await.unwrap();
    let written = || {
        std::fs::read_to_string(&count)
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
    };
    eventually("the program has begun", || written().is_some()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let early = written().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let late = written().unwrap();
    assert!(late < 30, "{late} MB went somewhere");
    assert_eq!(early, late, "and goes on going");

    let other = crate::own::session(&world).await;
    let unreading = other.exec("exec sleep 30", None, &[]).await.unwrap();
    let sent = std::sync::atomic::AtomicUsize::new(0);
    let chunk = bytes::Bytes::from(vec![0; 32 * 1024]);
    let pour = async {
        loop {
            unreading.write(chunk.clone()).await.unwrap();
            sent.fetch_add(chunk.len(), std::sync::atomic::Ordering::Relaxed);
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), pour).await;
    let sent = sent.into_inner();
    assert!(
        (1_000_000..9_000_000).contains(&sent),
        "{sent} bytes were taken"
    );
    // The connection is alive all the same.
    let mut alive = other.exec("echo alive", None, &[]).await.unwrap();
    assert_eq!(alive.next().await, Some(Output::Stdout("alive\n".into())));
}

#[tokio::test]
async fn the_host_has_to_be_the_one_that_was_dialled() {
    let world = World::new().await;
    let good = Says::default();
    for (policy, code) in [
        (policy("db.internal", HOST_CA), "host_principal_mismatch"),
        (policy("127.0.0.2", HOST_CA), "host_principal_mismatch"),
        (policy("web.internal", STRANGER), "host_ca_unknown"),
        (
            HostPolicy::Key(Box::new(key(STRANGER).public_key().clone())),
            "host_key_mismatch",
        ),
    ] {
        let error = log_in(&world, &good, policy).await.err().unwrap();
        assert_eq!(error.code(), code, "{error}");
    }
    assert_eq!(world.counters.logins(), 0);
    assert!(
        log_in(&world, &good, policy("127.0.0.1", HOST_CA))
            .await
            .is_ok()
    );
    let pinned = HostPolicy::Key(Box::new(key(HOST).public_key().clone()));
    assert!(log_in(&world, &good, pinned).await.is_ok());
}

#[tokio::test]
async fn what_the_certificate_tells_of_a_refusal() {
    let world = World::new().await;
    let refused = async |says: Says| {
        log_in(&world, &says, policy("web.internal", HOST_CA))
            .await
            .err()
            .unwrap()
            .code()
    };
    assert_eq!(
        refused(Says {
            principals: vec!["mia"],
            ..Says::default()
        })
        .await,
        "certificate_wrong_principal"
    );
    assert_eq!(
        refused(Says {
            ca: STRANGER,
            ..Says::default()
        })
        .await,
        "authentication_refused"
    );
    // OpenSSH does not even offer a host certificate.
    let says = Says {
        kind: CertType::Host,
        ..Says::default()
    };
    assert_eq!(refused(says).await, "certificate_wrong_type");
    assert_eq!(world.counters.refused_for("certificate_wrong_type"), 1);
    let valid = 1..2;
    assert_eq!(
        refused(Says {
            valid,
            ..Says::default()
        })
        .await,
        "certificate_expired"
    );
}

struct Elsewhere(bool);

impl Sign for Elsewhere {
    fn sign(&mut self, data: Vec<u8>) -> SignFuture {
        let works = self.0;
        Box::pin(async move {
            use ssh_key::private::KeypairData;
            let KeypairData::Ed25519(pair) = key(USER).key_data().clone() else {
                unreachable!()
            };
            if !works {
                return Err(SignFailed("the key is locked".to_owned()));
            }
            let signature =
                russh::keys::signature::Signer::<ssh_key::Signature>::sign(&pair, &data);
            Ok(signature.as_bytes().to_vec())
        })
    }
}

#[tokio::test]
async fn a_signer_that_keeps_its_key() {
    let world = World::new().await;
    let log_in = async |works: bool| {
        let stream = TcpStream::connect(world.address).await.unwrap();
        let certificate = Says::default().sign();
        let identity = Identity {
            certificate,
            signer: Signer::External(Box::new(Elsewhere(works))),
        };
        connect(
            stream,
            "root",
            identity,
            policy("web.internal", HOST_CA),
            now,
        )
        .await
    };
    assert!(log_in(true).await.is_ok());
    assert_eq!(log_in(false).await.err().unwrap().code(), "signer_failed");
}
