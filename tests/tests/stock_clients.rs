//! Programs that know nothing of this, by `.internal` name: through `stdio`, `proxy` and SOCKS.

use std::{fs, process::Command, time::Duration};

use tests::{command::run, noise, system::System};

/// Programs that know nothing of this work by name, through `stdio`, host certificates verified.
#[test]
fn stock_programs_work_by_name() {
    let system = System::start();
    let (app, instance) = system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    system.underpass(&["ssh", "issue", &path("id")]).ok();
    let config = system.underpass(&["ssh", "config", &path("id")]).ok();
    assert!(
        config
            .text()
            .contains("@cert-authority *.internal,fdaa:* ssh-ed25519 "),
        "{config}"
    );
    fs::write(path("config"), config.stdout).expect("a file");
    let program = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command
            .args(["-F", &path("config"), "-o", "BatchMode=yes"])
            .args(arguments);
        run(command, b"", Duration::from_secs(60))
    };

    let output = program("ssh", &[&host, "echo hello; exit 7"]);
    assert_eq!(
        (output.status.code(), output.text().as_str()),
        (Some(7), "hello"),
        "{output}"
    );
    fs::write(path("sent"), noise(5)).expect("a file");
    let there = path("there");
    program("scp", &[&path("sent"), &format!("{host}:{there}")]).ok();
    assert!(fs::read(&there).ok() == fs::read(path("sent")).ok(), "scp");
    let shell = format!("ssh -F {} -o BatchMode=yes", path("config"));
    let mut command = Command::new("rsync");
    command.args([
        "--checksum",
        "-e",
        &shell,
        &format!("{host}:{there}"),
        &path("rsynced"),
    ]);
    run(command, b"", Duration::from_secs(60)).ok();
    assert!(
        fs::read(path("rsynced")).ok() == fs::read(path("sent")).ok(),
        "rsync"
    );
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "safe.directory=*",
        ]);
        command.args(arguments).env("GIT_SSH_COMMAND", &shell);
        run(command, b"", Duration::from_secs(60)).ok()
    };
    git(&["init", "--quiet", &path("repository")]);
    git(&[
        "-C",
        &path("repository"),
        "commit",
        "--quiet",
        "--allow-empty",
        "-m",
        "first",
    ]);
    git(&[
        "clone",
        "--quiet",
        &format!("ssh://{host}{}", path("repository")),
        &path("clone"),
    ]);
    let log = git(&["-C", &path("clone"), "log", "--format=%s"]);
    assert_eq!(log.text(), "first");

    // Another organisation's authority: refused by ssh itself.
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f", &path("other")]);
    run(command, b"", Duration::from_secs(10)).ok();
    let other = fs::read_to_string(path("other.pub")).expect("a key");
    fs::write(
        path("id-known_hosts"),
        format!("@cert-authority *.internal {other}"),
    )
    .expect("a file");
    let output = program("ssh", &[&host, "true"]);
    assert_eq!(output.status.code(), Some(255), "{output}");
    assert!(
        output.stderr.contains("Host key verification failed"),
        "{output}"
    );
}
