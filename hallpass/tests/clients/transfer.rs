//! Files, with OpenSSH's `scp` and `sftp`, rsync and git.

use crate::world::{World, noise, ok, run, run_with};

const LENGTH: usize = 100 * 1024 * 1024;

/// Copies 100 MB there and back, with this between the paths.
async fn there_and_back(tool: &str, arguments: &[&str]) {
    let world = World::new().await;
    let sent = noise(LENGTH);
    world.write("sent", &sent);
    let remote = format!("root@127.0.0.1:{}", world.path("remote").display());
    let mut there = world.tool(tool);
    there.args(arguments).arg("sent").arg(&remote);
    ok(&run(there).await);
    let mut back = world.tool(tool);
    back.args(arguments).arg(&remote).arg("back");
    ok(&run(back).await);
    assert!(std::fs::read(world.path("remote")).unwrap() == sent);
    assert!(std::fs::read(world.path("back")).unwrap() == sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn scp() {
    there_and_back("scp", &["-q", "-p"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scp_as_it_was() {
    there_and_back("scp", &["-q", "-O"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp() {
    let world = World::new().await;
    let sent = noise(LENGTH);
    world.write("sent", &sent);
    let dir = world.dir.path().display();
    let batch = format!(
        "mkdir {dir}/d\nput sent {dir}/d/a\nrename {dir}/d/a {dir}/d/b\nchmod 600 {dir}/d/b\n\
         ln -s b {dir}/d/link\nls -l {dir}/d\nget {dir}/d/link back\nrm {dir}/d/link\n\
         -rm {dir}/d/none\nrm {dir}/d/b\nrmdir {dir}/d\n"
    );
    let mut command = world.tool("sftp");
    command.args(["-b", "-", "root@127.0.0.1"]);
    let shown = ok(&run_with(command, batch).await);
    assert!(
        shown.contains("-rw-------") && shown.contains(" 104857600 "),
        "{shown}"
    );
    assert!(std::fs::read(world.path("back")).unwrap() == sent);
    assert!(!world.path("d").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn rsync() {
    let world = World::new().await;
    std::fs::create_dir_all(world.path("tree/deep")).unwrap();
    let sent = noise(20 * 1024 * 1024);
    world.write("tree/deep/file", &sent);
    let shell = format!("ssh {}", world.options("id").join(" "));
    let remote = format!("root@127.0.0.1:{}", world.path("remote").display());
    for (from, to) in [("tree", remote.as_str()), (remote.as_str(), "back")] {
        let mut command = tokio::process::Command::new("rsync");
        command
            .current_dir(world.dir.path())
            .args(["-a", "-e", &shell, from, to]);
        ok(&run(command).await);
    }
    assert!(std::fs::read(world.path("back/remote/tree/deep/file")).unwrap() == sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_under_way() {
    let world = World::new().await;
    let sent = noise(50 * 1024 * 1024);
    let mut command = world.tool("ssh");
    command.args(["-o", "RekeyLimit=1M", "root@127.0.0.1", "cat"]);
    let output = run_with(command, &sent).await;
    assert!(
        output.status.success(),
        "{}",
        crate::world::text(&output.stderr)
    );
    assert!(
        output.stdout == sent,
        "{} bytes came back",
        output.stdout.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn git() {
    let world = World::new().await;
    let shell = format!("ssh {}", world.options("id").join(" "));
    let git = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("git");
        command
            .current_dir(world.dir.path())
            .env("GIT_SSH_COMMAND", &shell);
        command.args(["-c", "user.name=mia", "-c", "user.email=mia@example.com"]);
        command.args(arguments);
        command
    };
    world.write("file", noise(5 * 1024 * 1024));
    let remote = format!("ssh://root@127.0.0.1{}", world.path("remote").display());
    for arguments in [
        &["init", "-q", "--bare", "remote"][..],
        &["init", "-q"],
        &["add", "file"],
        &["commit", "-q", "-m", "a file"],
        &["push", "-q", &remote, "HEAD:refs/heads/main"],
        &["clone", "-q", "-b", "main", &remote, "clone"],
    ] {
        ok(&run(git(arguments)).await);
    }
    let sent = std::fs::read(world.path("file")).unwrap();
    assert!(std::fs::read(world.path("clone/file")).unwrap() == sent);
}
