//! The program itself, with its files and flags.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ssh_key::LineEnding;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::world::{HOST, Says, World, host_certificate, key, noise, ok, run, run_with, text};

/// Starts the program on a port of its own, and points the world's clients there.
async fn start(world: &mut World, users: &str) -> Child {
    start_within(world, users, Command::new(HALLPASS)).await
}

const HALLPASS: &str = env!("CARGO_BIN_EXE_hallpass");

/// Starts the program by a command whose last argument it is.
async fn start_within(world: &mut World, users: &str, mut command: Command) -> Child {
    world.write("host", key(HOST).to_openssh(LineEnding::LF).unwrap());
    world.write("host-cert.pub", host_certificate().to_openssh().unwrap());
    command
        .current_dir(world.dir.path())
        .kill_on_drop(true)
        .env("RUST_LOG", "info");
    command.args(["--host-key", "host", "--host-certificate", "host-cert.pub"]);
    command.args([
        "--user-ca",
        "user-ca",
        "--listen",
        "127.0.0.1:0",
        "--users",
        users,
    ]);
    command
        .env("FROM_ENTRY_POINT", "yes")
        .env("HALLPASS_PRIVATE", "no")
        .env("NO_COLOR", "1");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // It may say first that the certificate, which is young, ends soon.
    let address = loop {
        let line = lines.next_line().await.unwrap().expect("it listens");
        if let Some((_, address)) = line.split_once("address=") {
            break address.to_owned();
        }
    };
    world.address = address.trim().parse().unwrap();
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    child
}

#[tokio::test]
async fn files_and_flags() {
    let mut world = World::new().await;
    let mut server = start(&mut world, "current").await;
    let environment = ok(&run(world.ssh(&["env"])).await);
    assert!(
        environment.contains("FROM_ENTRY_POINT=yes"),
        "{environment}"
    );
    assert!(!environment.contains("HALLPASS_"), "{environment}");

    // Much is copied in little memory.
    world.write("sent", noise(100 * 1024 * 1024));
    let mut command = world.tool("sftp");
    command.args(["-q", "-b", "-", "root@127.0.0.1"]);
    let dir = world.dir.path().display();
    ok(&run_with(
        command,
        format!("put sent {dir}/remote\nget {dir}/remote back\n"),
    )
    .await);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id().unwrap())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 64 * 1024, "{peak} kB at the peak");

    // It ends when told to, and so do its sessions.
    let mut waiting = world.ssh(&["echo here; sleep 30"]);
    let mut waiting = waiting
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(waiting.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "here");
    kill(
        Pid::from_raw(server.id().unwrap().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    let limit = Duration::from_secs(5);
    assert!(
        tokio::time::timeout(limit, server.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    let ended = tokio::time::timeout(limit, waiting.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.code(), Some(255));
}

/// What `nohup` asked of the server is not handed down: a program hears that its client left.
#[tokio::test]
async fn under_nohup() {
    let mut world = World::new().await;
    let mut nohup = Command::new("nohup");
    nohup.arg(HALLPASS).stdin(Stdio::null());
    let _server = start_within(&mut world, "current", nohup).await;
    let ignored = ok(&run(world.ssh(&["grep SigIgn: /proc/self/status"])).await);
    let ignored = ignored.trim().strip_prefix("SigIgn:\t").unwrap();
    let ignored = u64::from_str_radix(ignored, 16).unwrap();
    assert_eq!(ignored & 0x7fff_ffff, 0, "of signals 1 to 31: {ignored:x}");
}

/// Only the superuser can switch to anybody else.
#[tokio::test]
async fn as_another_user() {
    if !superuser() {
        return;
    }
    let mut world = World::new().await;
    std::fs::set_permissions(world.dir.path(), Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(world.path("open")).unwrap();
    std::fs::set_permissions(world.path("open"), Permissions::from_mode(0o777)).unwrap();
    let principals = vec!["root", "daemon", "4711", "mallory"];
    world.identity(
        "id",
        &Says {
            principals,
            ..Says::default()
        },
    );
    let _server = start(&mut world, "system").await;
    let ssh = |user: &str, arguments: &[&str]| {
        let mut command = world.tool("ssh");
        command.args(["-l", user, "127.0.0.1"]).args(arguments);
        command
    };
    // The account's own shell refuses to be one on some systems; what counts is who runs it.
    let shown = run(ssh("root", &["id -u; echo $HOME"])).await;
    assert_eq!(ok(&shown), "0\n/root\n");
    let number = ok(&run(ssh("4711", &["id -u; id -g; id -G; echo $USER; pwd"])).await);
    assert_eq!(number, "4711\n4711\n4711\n4711\n/\n");
    let mut terminal = world.tool("ssh");
    terminal.args(["-tt", "-l", "4711", "127.0.0.1", "tty | xargs stat -c %u"]);
    assert_eq!(ok(&run(terminal).await).trim(), "4711");
    let refused = run(ssh("mallory", &["id"])).await;
    assert!(
        text(&refused.stderr).contains("Permission denied"),
        "{}",
        text(&refused.stderr)
    );

    world.write("sent", "words");
    let mut sftp = world.tool("sftp");
    sftp.args(["-q", "-b", "-", "4711@127.0.0.1"]);
    let file = world.path("open/file");
    ok(&run_with(sftp, format!("put sent {}\n", file.display())).await);
    assert_eq!(std::fs::metadata(&file).unwrap().uid(), 4711);
    let mut sftp = world.tool("sftp");
    sftp.args(["-q", "-b", "-", "4711@127.0.0.1"]);
    let denied = run_with(
        sftp,
        format!("put sent {}/not-here\n", world.dir.path().display()),
    )
    .await;
    assert!(
        text(&denied.stderr).contains("denied"),
        "{}",
        text(&denied.stderr)
    );
}

/// An image that holds nothing but its program: a message and 127, and files can still be copied.
#[tokio::test]
async fn an_image_without_a_shell() {
    if !superuser() {
        return;
    }
    let mut world = World::new().await;
    std::fs::create_dir(world.path("empty")).unwrap();
    // In a mount namespace of its own, what holds every shell is empty.
    let mut bare = Command::new("unshare");
    bare.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind empty /usr/bin && exec \"$@\"",
        "sh",
        HALLPASS,
    ]);
    let _server = start_within(&mut world, "current", bare).await;
    for command_line in [&["true"][..], &[]] {
        let output = run(world.ssh(command_line)).await;
        assert_eq!(output.status.code(), Some(127));
        let said = text(&output.stderr);
        assert!(
            said.contains("has no shell") && said.contains("sftp and scp"),
            "{said}"
        );
    }
    world.write("sent", "words");
    let mut sftp = world.tool("sftp");
    sftp.args(["-q", "-b", "-", "root@127.0.0.1"]);
    let remote = world.path("remote");
    ok(&run_with(sftp, format!("put sent {}\n", remote.display())).await);
    assert_eq!(std::fs::read(&remote).unwrap(), b"words");
}

/// Whether this test can change users and mounts; in CI it has to.
fn superuser() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "CI runs as root");
    if !root {
        eprintln!("not run: it needs root; hint: sudo -E cargo test -p underpass-hallpass");
    }
    root
}

/// The next host certificate is put in the place of the one before, and the server goes on: sessions
/// that stand stay, and a file that cannot be read changes nothing.
#[tokio::test]
async fn a_renewed_host_certificate_is_taken_in_the_middle_of_things() {
    let mut world = World::new().await;
    let server = start(&mut world, "current").await;
    let named = |name: &str| {
        let mut command = world.tool("ssh");
        command.args(["-o", &format!("HostKeyAlias={name}")]);
        command.args(["root@127.0.0.1", "true"]);
        command
    };
    let mut standing = world.ssh(&["read line; echo still $line"]);
    let mut standing = standing
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    ok(&run(named("web.internal")).await);
    assert!(!run(named("new.internal")).await.status.success());

    let hang_up = || {
        let pid = Pid::from_raw(server.id().unwrap().try_into().unwrap());
        kill(pid, Signal::SIGHUP).unwrap();
    };
    world.write("host-cert.pub", "half a certifi");
    hang_up();
    ok(&run(named("web.internal")).await);

    let next = Says {
        kind: ssh_key::certificate::CertType::Host,
        ca: crate::world::HOST_CA,
        key: HOST,
        principals: vec!["new.internal"],
        extensions: vec![],
        ..Says::default()
    };
    world.write("host-cert.pub", next.sign().to_openssh().unwrap());
    hang_up();
    let mut taken = false;
    for _ in 0..40 {
        taken = run(named("new.internal")).await.status.success();
        if taken {
            break;
        }
    }
    assert!(taken, "the new certificate is presented");
    assert!(!run(named("web.internal")).await.status.success());

    let mut stdin = standing.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"here\n")
        .await
        .unwrap();
    let output = standing.wait_with_output().await.unwrap();
    assert_eq!(text(&output.stdout), "still here\n");
}
