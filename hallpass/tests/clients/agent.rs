//! Agent forwarding, with OpenSSH's own agent and client.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::world::{Says, World, eventually, ok, run, text};

/// A running agent that holds the world's identity.
struct Agent {
    socket: PathBuf,
    _process: Child,
}

impl Agent {
    async fn start(world: &World) -> Agent {
        let socket = world.path("person.agent");
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket);
        command.stdout(Stdio::null()).kill_on_drop(true);
        let process = command.spawn().unwrap();
        eventually("the agent listens", || socket.exists()).await;
        let mut add = Command::new("ssh-add");
        add.arg(world.path("id")).env("SSH_AUTH_SOCK", &socket);
        let added = run(add).await;
        assert!(added.status.success(), "{}", text(&added.stderr));
        Agent {
            socket,
            _process: process,
        }
    }
}

fn ssh(world: &World, agent: &Agent, command: &str) -> Command {
    let mut ssh = world.tool("ssh");
    ssh.env("SSH_AUTH_SOCK", &agent.socket);
    ssh.args(["-A", "root@127.0.0.1", command]);
    ssh
}

fn permitted(world: &World) {
    world.identity(
        "id",
        &Says {
            extensions: vec!["permit-pty", "permit-agent-forwarding"],
            ..Says::default()
        },
    );
}

#[tokio::test]
async fn the_session_asks_the_persons_agent() {
    let world = World::new().await;
    permitted(&world);
    let agent = Agent::start(&world).await;
    let here = {
        let mut list = Command::new("ssh-add");
        list.arg("-L").env("SSH_AUTH_SOCK", &agent.socket);
        ok(&run(list).await)
    };
    assert!(here.contains("cert-v01"), "{here}");
    let script =
        "ssh-add -L; echo \"$SSH_AUTH_SOCK\"; stat -c %a \"$(dirname \"$SSH_AUTH_SOCK\")\"";
    let there = ok(&run(ssh(&world, &agent, script)).await);
    let mut lines: Vec<_> = there.lines().collect();
    assert_eq!(lines.pop(), Some("700"));
    let socket = Path::new(lines.pop().unwrap()).to_owned();
    assert_eq!(lines.join("\n"), here.trim_end());
    let gone = || !socket.parent().unwrap().exists();
    eventually("the socket goes with the session", gone).await;

    // A signature, not only a list: the session logs in to itself by the forwarded agent.
    let options = world
        .options("none")
        .join(" ")
        .replace("IdentitiesOnly=yes", "IdentitiesOnly=no");
    let nested = format!("ssh {options} root@127.0.0.1 echo nested");
    assert_eq!(ok(&run(ssh(&world, &agent, &nested)).await), "nested\n");

    // Many at once, and one after another: each connection is a channel that is given back.
    let many = "for i in 1 2 3 4 5 6 7 8; do for j in 1 2 3 4 5 6; do ssh-add -l >/dev/null || echo no & done; wait; done; echo done";
    assert_eq!(ok(&run(ssh(&world, &agent, many)).await), "done\n");
    assert_eq!(world.counters.refused_for("agent_forwarding"), 0);
    assert_eq!(world.counters.refused_for("agent_channel"), 0);
}

#[tokio::test]
async fn only_where_the_certificate_says_so() {
    let world = World::new().await;
    let agent = Agent::start(&world).await;
    let output = run(ssh(&world, &agent, "echo \"<$SSH_AUTH_SOCK>\"; exit 3")).await;
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(3), "<>\n"),
        "the session runs without it"
    );
    assert_eq!(world.counters.refused_for("agent_forwarding"), 1);

    // Permitted, and not asked for.
    permitted(&world);
    let output = run(world.ssh(&["echo \"<$SSH_AUTH_SOCK>\""])).await;
    assert_eq!(ok(&output), "<>\n");
}

/// A program may end while its connection to the agent is open: the client is not left with it.
#[tokio::test]
async fn the_client_ends_with_the_session() {
    let world = World::new().await;
    permitted(&world);
    let agent = Agent::start(&world).await;
    for _ in 0..20 {
        ok(&run(ssh(&world, &agent, "ssh-add -L")).await);
    }
    let script = "python3 -c 'import os, socket; \
        s = socket.socket(socket.AF_UNIX); s.connect(os.environ[\"SSH_AUTH_SOCK\"]); \
        s.send(bytes([0, 0, 0, 1, 11])); s.recv(5); print(\"asked\", flush=True); os._exit(4)'";
    let output = run(ssh(&world, &agent, script)).await;
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(4), "asked\n"),
        "{}",
        text(&output.stderr)
    );
    // One that outlives the program.
    let script = "ssh-add -L >/dev/null; (python3 -c 'import os, socket, time; \
        s = socket.socket(socket.AF_UNIX); s.connect(os.environ[\"SSH_AUTH_SOCK\"]); \
        s.send(bytes([0, 0, 0, 1, 11])); s.recv(5); time.sleep(30)' >/dev/null 2>&1 &) ; sleep 0.5; echo done";
    let output = ok(&run(ssh(&world, &agent, script)).await);
    assert_eq!(output, "done\n");
}

/// A session that is cut off takes its socket with it.
#[tokio::test]
async fn nothing_is_left_of_a_session_that_is_cut_off() {
    let world = World::new().await;
    permitted(&world);
    let agent = Agent::start(&world).await;
    let mut command = ssh(&world, &agent, "echo \"$SSH_AUTH_SOCK\"; sleep 60");
    let mut child = command
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
    tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line)
        .await
        .unwrap();
    let socket = PathBuf::from(line.trim_end());
    assert!(socket.exists());
    child.kill().await.unwrap();
    eventually("the socket goes", || !socket.parent().unwrap().exists()).await;
}
