//! Shells and commands, with OpenSSH and PuTTY.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::world::{Says, World, eventually, ok, run, run_with, text, tool_runs};

#[tokio::test]
async fn exit_codes_and_signals() {
    let world = World::new().await;
    assert_eq!(ok(&run(world.ssh(&["echo hello"])).await), "hello\n");
    for (command, code) in [
        ("true", 0),
        ("exit 7", 7),
        ("no-such-command-here", 127),
        ("exit 255", 255),
    ] {
        let output = run(world.ssh(&[command])).await;
        assert_eq!(output.status.code(), Some(code), "{command}");
    }
    // OpenSSH turns an exit signal into 255 and a sentence.
    let mut command = world.tool("ssh");
    command.args(["-v", "root@127.0.0.1", "kill -TERM $$"]);
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(255));
    assert!(
        text(&output.stderr).contains("exit-signal"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn standard_streams() {
    let world = World::new().await;
    let output = run(world.ssh(&["echo out; echo err >&2; exit 3"])).await;
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("out\n".into(), "err\n".into())
    );
    assert_eq!(output.status.code(), Some(3));

    assert_eq!(
        ok(&run_with(world.ssh(&["wc -c"]), vec![b'x'; 300_000]).await).trim(),
        "300000"
    );
    assert_eq!(ok(&run(world.ssh(&["yes | head -3"])).await), "y\ny\ny\n");
    // A command that does not read what it is sent ends all the same.
    assert_eq!(
        ok(&run_with(world.ssh(&["echo done"]), vec![b'x'; 3_000_000]).await),
        "done\n"
    );
    // Standard error after standard output ended.
    let output = run(world.ssh(&["exec >&-; sleep 0.2; echo late >&2; exit 4"])).await;
    assert_eq!(
        (text(&output.stderr), output.status.code()),
        ("late\n".into(), Some(4))
    );
}

/// What would lock up if the server stopped reading the connection while a program does not read.
#[tokio::test]
async fn much_both_ways_at_once() {
    let world = World::new().await;
    let sent = crate::world::noise(24 * 1024 * 1024);
    let output = run_with(world.ssh(&["cat"]), &sent).await;
    assert!(output.status.success());
    assert!(
        output.stdout == sent,
        "{} bytes came back",
        output.stdout.len()
    );
}

#[tokio::test]
async fn the_environment() {
    let world = World::new().await;
    let mut command = world.tool("ssh");
    command.args([
        "-o",
        "SendEnv=LC_ALL SECRET",
        "-o",
        "SetEnv=LANG=de_DE.UTF-8",
    ]);
    command.env("SECRET", "no").env("LC_ALL", "C.UTF-8");
    command.args(["root@127.0.0.1", "env"]);
    let output = ok(&run(command).await);
    let has = |line: &str| output.lines().any(|found| found == line);
    assert!(has("FROM_ENTRY_POINT=yes"), "{output}");
    assert!(has("LC_ALL=C.UTF-8") && has("LANG=de_DE.UTF-8"), "{output}");
    assert!(
        !output.contains("SECRET=") && !output.contains("LD_"),
        "{output}"
    );
    assert!(output.contains("SSH_CONNECTION=127.0.0.1 "), "{output}");
    for name in ["HOME=", "USER=", "LOGNAME=", "SHELL=", "PATH="] {
        assert!(
            output.lines().any(|line| line.starts_with(name)),
            "{name} in {output}"
        );
    }

    // Nobody says what characters are: letters are letters all the same.
    let output = ok(&run(world.ssh(&["echo $LANG; printf 漢 | wc -m"])).await);
    assert_eq!(output, "C.UTF-8\n1\n");
}

#[tokio::test]
async fn a_terminal() {
    let world = World::new().await;
    let mut command = world.tool("ssh");
    command.env("TERM", "xterm-256color");
    command.args([
        "-tt",
        "root@127.0.0.1",
        "tty; echo $TERM; stty size; exit 5",
    ]);
    let output = run(command).await;
    let shown = text(&output.stdout);
    assert!(shown.starts_with("/dev/pts/"), "{shown}");
    assert!(shown.contains("xterm-256color\r\n"), "{shown}");
    assert!(shown.contains("0 0\r\n"), "{shown}");
    assert_eq!(output.status.code(), Some(5));
}

#[tokio::test]
async fn a_login_shell_on_a_terminal() {
    let world = World::new().await;
    let mut command = world.tool("ssh");
    command.args(["-tt", "root@127.0.0.1"]);
    let input = "echo \"[$0]\"\necho $((40 + 2))\nexit 6\n";
    let output = run_with(command, input).await;
    let shown = text(&output.stdout);
    assert!(shown.contains("[-"), "a login shell: {shown}");
    assert!(shown.contains("42"), "{shown}");
    assert_eq!(output.status.code(), Some(6));
}

#[tokio::test]
async fn hanging_up() {
    let world = World::new().await;
    for (options, trap) in [("-T", "HUP"), ("-tt", "HUP")] {
        let file = world.path(&format!("hung-up{options}"));
        let script = format!(
            "trap 'echo yes > {}; exit' {trap}; echo ready; while :; do sleep 0.1; done",
            file.display()
        );
        let mut command = world.tool("ssh");
        command
            .args([options, "root@127.0.0.1", &script])
            .kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().unwrap().trim(), "ready");
        child.kill().await.unwrap();
        eventually("the program is told that the client is gone", || {
            file.exists()
        })
        .await;
    }
}

#[tokio::test]
async fn a_job_in_the_background_does_not_hold_a_terminal() {
    let world = World::new().await;
    let mut command = world.tool("ssh");
    command.args(["-tt", "root@127.0.0.1", "sleep 30 & echo started"]);
    let output = tokio::time::timeout(Duration::from_secs(5), run(command))
        .await
        .unwrap();
    assert!(ok(&output).contains("started"));
}

#[tokio::test]
async fn a_forced_command() {
    let world = World::new().await;
    let critical = vec![(
        "force-command",
        "echo forced: $SSH_ORIGINAL_COMMAND".to_owned(),
    )];
    world.identity(
        "id",
        &Says {
            critical,
            ..Says::default()
        },
    );
    assert_eq!(
        ok(&run(world.ssh(&["rm -rf /"])).await),
        "forced: rm -rf /\n"
    );
    assert_eq!(ok(&run(world.ssh(&[])).await), "forced:\n");
}

#[tokio::test]
async fn several_sessions_in_one_connection() {
    let world = World::new().await;
    let control = format!("ControlPath={}", world.path("control").display());
    let mut master = world.tool("ssh");
    master
        .args(["-o", &control, "-M", "-N", "root@127.0.0.1"])
        .kill_on_drop(true);
    let _master = master.stdin(Stdio::null()).spawn().unwrap();
    eventually("the master connection", || world.path("control").exists()).await;

    let session = |command: &str| {
        let mut ssh = world.tool("ssh");
        ssh.args(["-o", &control, "root@127.0.0.1", command]);
        ssh
    };
    // One that neither reads nor ends does not stop the other.
    let mut stuck = session("sleep 20");
    let mut stuck = stuck
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = stuck.stdin.take().unwrap();
    let filling = tokio::spawn(async move { stdin.write_all(&vec![0; 16 * 1024 * 1024]).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(
        !filling.is_finished(),
        "16 MB were taken for a program that reads nothing"
    );
    assert_eq!(ok(&run_with(session("cat"), "hello").await), "hello");
    let (one, two) = tokio::join!(
        run(session("sleep 0.2; echo 1")),
        run(session("echo 2; exit 2"))
    );
    assert_eq!(
        (ok(&one), text(&two.stdout), two.status.code()),
        ("1\n".into(), "2\n".into(), Some(2))
    );
    assert_eq!(world.counters.logins(), 1);
    filling.abort();
}

#[tokio::test]
async fn what_is_refused_does_not_end_the_session() {
    let world = World::new().await;
    let mut command = world.tool("ssh");
    command.args([
        "-X",
        "-A",
        "-R",
        "0:localhost:9",
        "-o",
        "ExitOnForwardFailure=no",
    ]);
    command
        .env("DISPLAY", ":77")
        .args(["root@127.0.0.1", "echo still here"]);
    assert_eq!(ok(&run(command).await), "still here\n");
    assert_eq!(world.counters.refused_for("remote_forwarding"), 1);

    let mut command = world.tool("ssh");
    command.args(["-s", "root@127.0.0.1", "no-such-subsystem"]);
    assert!(!run(command).await.status.success());
}

#[tokio::test]
async fn a_terminal_has_to_be_permitted() {
    let world = World::new().await;
    world.identity(
        "id",
        &Says {
            extensions: vec![],
            ..Says::default()
        },
    );
    let mut command = world.tool("ssh");
    command.args(["-tt", "root@127.0.0.1", "echo ran"]);
    let output = run(command).await;
    assert!(
        text(&output.stderr).contains("PTY allocation request failed"),
        "{output:?}"
    );
    assert_eq!(world.counters.refused_for("pty"), 1);
    assert_eq!(ok(&run(world.ssh(&["echo ran"])).await), "ran\n");
}

#[tokio::test]
async fn local_forwarding_reaches_loopback_where_it_is_permitted() {
    let world = World::new().await;
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let through = |to: String| {
        let mut command = world.tool("ssh");
        command.args(["-W", &to, "root@127.0.0.1"]);
        run_with(command, vec![b'x'; 200_000])
    };
    assert!(!through(format!("localhost:{port}")).await.status.success());
    let extensions = vec!["permit-port-forwarding"];
    world.identity(
        "id",
        &Says {
            extensions,
            ..Says::default()
        },
    );
    assert_eq!(
        ok(&through(format!("localhost:{port}")).await).len(),
        200_000
    );
    assert!(!through("192.0.2.1:80".to_owned()).await.status.success());
    assert_eq!(world.counters.refused_for("forwarding"), 2);
}

#[tokio::test]
async fn putty() {
    let world = World::new().await;
    let host_key = crate::world::key(crate::world::HOST);
    let fingerprint = host_key
        .public_key()
        .fingerprint(ssh_key::HashAlg::Sha256)
        .to_string();
    let converted = tool_runs(
        "puttygen",
        [
            world.path("id").as_os_str(),
            "-O".as_ref(),
            "private".as_ref(),
            "-o".as_ref(),
            world.path("id.ppk").as_os_str(),
        ],
    )
    .await;
    ok(&converted);
    let mut command = tokio::process::Command::new("plink");
    command.args([
        "-batch",
        "-ssh",
        "-noagent",
        "-P",
        &world.address.port().to_string(),
    ]);
    command
        .args(["-hostkey", &fingerprint, "-i"])
        .arg(world.path("id.ppk"));
    command.arg("-cert").arg(world.path("id-cert.pub"));
    command.args(["root@127.0.0.1", "echo out; echo err >&2; exit 9"]);
    let output = run(command).await;
    assert_eq!(text(&output.stdout), "out\n", "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(9));
}
