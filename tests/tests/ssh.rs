//! SSH as a person has it: authorities that are rotated, keys in an agent, files, dead instances.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tests::{
    clock::{unix, wait_for},
    command::{Background, Output, run},
    system::{Setup, System, binary},
    warp::Warp,
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const QUICK: Duration = Duration::from_secs(60);

fn json(output: Output) -> Value {
    let output = output.ok();
    serde_json::from_str(&output.text()).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// Plain `ssh` to a name inside the network, through `stdio`. It asks no agent unless told.
fn ssh(system: &System, options: &[&str], host: &str, command: &str) -> Command {
    let mut ssh = Command::new("ssh");
    let proxy = format!(
        "ProxyCommand={} stdio --data-dir {} %h %p",
        binary().display(),
        system.data_dir().display()
    );
    ssh.args(["-F", "none", "-o", &proxy, "-o", "BatchMode=yes"]);
    ssh.args(["-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"]);
    ssh.args(["-o", "GlobalKnownHostsFile=/dev/null"]);
    ssh.args(options).env_remove("SSH_AUTH_SOCK");
    ssh.args([&format!("root@{host}"), command]);
    ssh
}

/// A system whose clock a test turns, and the files that `ssh issue` writes.
struct Warped {
    warp: Warp,
    system: System,
    files: TempDir,
}

impl Warped {
    fn start() -> Warped {
        let warp = Warp::new();
        let setup = Setup {
            clock: Some(&warp),
            ..Setup::default()
        };
        let system = setup.start();
        let files = tempfile::tempdir().expect("a directory");
        Warped {
            warp,
            system,
            files,
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.system.command(arguments);
        self.warp.apply(&mut command);
        run(command, b"", QUICK)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn issue(&self, name: &str, hours: &str) {
        let path = self.path(name);
        let path = path.to_str().expect("a path");
        self.run(&["ssh", "issue", path, "--hours", hours]).ok();
    }

    /// Plain ssh with an issued key, and the known hosts of another.
    fn ssh(&self, key: &str, known: &str, host: &str) -> Output {
        let identity = format!("IdentityFile={}", self.path(key).display());
        let known = format!("UserKnownHostsFile={}", self.path(known).display());
        let options = ["-o", "IdentitiesOnly=yes", "-o", &identity, "-o", &known];
        let mut command = ssh(&self.system, &options, host, "echo in");
        self.warp.apply(&mut command);
        run(command, b"", QUICK)
    }

    fn authorities(&self) -> Vec<Value> {
        let body = json(self.run(&["ssh", "establish", "--status", "--json"]));
        body["authorities"].as_array().expect("a list").clone()
    }

    /// The texts that the network's name server has.
    fn texts(&self, name: &str) -> Vec<String> {
        let output = self.run(&["dig", "TXT", name]).ok();
        output.text().lines().map(str::to_owned).collect()
    }
}

fn is_in(output: &Output) -> bool {
    output.status.success() && output.text() == "in"
}

/// Both CAs are replaced under sessions, certificates and files of known hosts that stand, and
/// nothing of it breaks: not on the day, not when the new host CA begins to sign, not when the old
/// ones are forgotten. Nothing is restarted in 34 days, which is longer than a host certificate.
#[test]
fn authorities_are_rotated_and_nobody_notices() {
    let it = Warped::start();
    let (app, instance) = it.system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);
    it.issue("old", "72");
    assert!(is_in(&it.ssh("old", "old-known_hosts", &host)));
    let before = it.authorities();
    assert_eq!(before.len(), 2);

    let unasked = it.run(&["ssh", "establish"]);
    assert_eq!(unasked.status.code(), Some(1), "{unasked}");
    for said in ["users  SHA256:", "3 days", "\nhint: --yes"] {
        assert!(unasked.stderr.contains(said), "{said}: {unasked}");
    }
    assert_eq!(it.authorities(), before, "nobody said yes");

    let org = it.system.ready.org.clone();
    let done = json(it.run(&["ssh", "establish", &org, "--yes", "--json"]));
    let fingerprints = |kind: &str, all: &Value| -> Vec<String> {
        let all = all["authorities"].as_array().expect("a list");
        all.iter()
            .filter(|ca| ca["kind"] == kind)
            .map(|ca| ca["fingerprint"].as_str().expect("text").to_owned())
            .collect()
    };
    assert_eq!(fingerprints("user", &done).len(), 2);
    assert_eq!(it.texts("_orgcert.internal").len(), 2);
    assert_eq!(it.texts("_hostca.internal").len(), 2);
    let again = it.run(&["ssh", "establish", "--yes"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        again.stderr.contains("(rotation_under_way)\nhint: "),
        "{again}"
    );

    // At once: the old certificate, one of the new CA, and a console.
    assert!(is_in(&it.ssh("old", "old-known_hosts", &host)));
    it.issue("new", "72");
    assert!(
        is_in(&it.ssh("new", "new-known_hosts", &host)),
        "a CA of a second ago is known"
    );
    assert!(
        is_in(&it.ssh("new", "old-known_hosts", &host)),
        "the old host CA still signs"
    );
    let console = ["ssh", "console", "-A", &host, "-C", "echo in"];
    assert!(is_in(&it.run(&console)));
    fs::write(it.path("newest"), new_host_ca(&done)).expect("a file");
    assert!(
        !is_in(&it.ssh("new", "newest", &host)),
        "the new host CA is told and signs nothing yet"
    );

    // The last moment of the certificate of before.
    it.warp.set(3 * DAY - HOUR);
    assert!(is_in(&it.ssh("old", "old-known_hosts", &host)));
    // From here on every file of known hosts names the new CA, and it signs.
    it.warp.set(3 * DAY + HOUR);
    it.issue("later", "72");
    wait_for(
        "a host certificate of the new CA",
        Duration::from_secs(10),
        || is_in(&it.ssh("later", "newest", &host)).then_some(()),
    );
    assert!(
        is_in(&it.ssh("later", "new-known_hosts", &host)),
        "the file of the first day knows it"
    );
    assert!(is_in(&it.run(&console)));
    assert!(
        !is_in(&it.ssh("old", "new-known_hosts", &host)),
        "it has ended"
    );

    it.warp.set(34 * DAY);
    // A clock that jumps by a month finds a certificate that has ended, for half a second.
    wait_for(
        "a renewed host certificate",
        Duration::from_secs(10),
        || is_in(&it.run(&console)).then_some(()),
    );
    wait_for(
        "the old ones to be forgotten",
        Duration::from_secs(90),
        || (it.authorities().len() == 2).then_some(()),
    );
    let left: Vec<Value> = it.authorities();
    let newest = |kind: &str| fingerprints(kind, &done)[0].clone();
    assert_eq!(left[0]["fingerprint"], newest("user"));
    assert_eq!(left[1]["fingerprint"], newest("host"));
    assert_eq!(it.texts("_orgcert.internal").len(), 1);
    it.issue("last", "1");
    assert!(is_in(&it.ssh("last", "last-known_hosts", &host)));
    assert!(is_in(&it.run(&console)));
}

/// The line that trusts the newest host CA and no other.
fn new_host_ca(done: &Value) -> String {
    let all = done["authorities"].as_array().expect("a list");
    let ca = all
        .iter()
        .find(|ca| ca["kind"] == "host")
        .expect("a host CA");
    let line = ca["public_key"].as_str().expect("text");
    format!("@cert-authority *.internal {line}\n")
}

/// A CA that is no longer to be trusted is not, at once, and hosts follow within seconds.
#[test]
fn a_rotation_is_ended_now() {
    let it = Warped::start();
    let (app, instance) = it.system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);
    it.issue("old", "72");
    let done = json(it.run(&["ssh", "establish", "--yes", "--json"]));
    fs::write(it.path("newest"), new_host_ca(&done)).expect("a file");
    it.issue("new", "1");
    let none = it.run(&["ssh", "establish", "--retire"]);
    assert_eq!(none.status.code(), Some(1), "nobody said yes: {none}");
    let left = json(it.run(&["ssh", "establish", "--retire", "--yes", "--json"]));
    assert_eq!(left["authorities"].as_array().map(Vec::len), Some(2));
    wait_for(
        "a host certificate of the new CA",
        Duration::from_secs(10),
        || is_in(&it.ssh("new", "newest", &host)).then_some(()),
    );
    // Instances remember the names of the CAs for five seconds.
    wait_for(
        "the old certificate to be refused",
        Duration::from_secs(15),
        || (!is_in(&it.ssh("old", "newest", &host))).then_some(()),
    );
    it.system.logs("certificate_ca_unknown");
    let none = it.run(&["ssh", "establish", "--retire", "--yes"]);
    assert!(none.stderr.contains("(no_rotation)\nhint: "), "{none}");
    assert!(is_in(
        &it.run(&["ssh", "console", "-A", &host, "-C", "echo in"])
    ));
}

/// Whatever name the name server has for an instance, the instance proves it.
#[test]
fn every_name_that_is_answered_is_certified() {
    let system = System::start();
    let (app, instance) = system.instance();
    let (app, id, region) = (&app.name, &instance.id, &instance.region);
    for host in [
        format!("{app}.internal"),
        format!("global.{app}.internal"),
        format!("{region}.{app}.internal"),
        format!("app.process.{app}.internal"),
        format!("top1.nearest.of.{app}.internal"),
        format!("top3.nearest.of.{app}.internal"),
        format!("{id}.vm.{app}.internal"),
        format!("[{}]", instance.address),
    ] {
        let output = system.underpass(&["ssh", "console", "-A", &host, "-C", "echo in"]);
        assert!(is_in(&output), "{host}: {output}");
    }
}

/// OpenSSH's agent, on a socket of its own.
struct Agent {
    socket: PathBuf,
    _process: Background,
    _directory: TempDir,
}

impl Agent {
    fn start() -> Agent {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("agent");
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = Background::start(command);
        wait_for("the agent", QUICK, || socket.exists().then_some(()));
        Agent {
            socket,
            _process: process,
            _directory: directory,
        }
    }

    fn run(&self, mut command: Command) -> Output {
        command.env("SSH_AUTH_SOCK", &self.socket);
        run(command, b"", QUICK)
    }

    fn list(&self, how: &str) -> Output {
        let mut command = Command::new("ssh-add");
        command.arg(how);
        self.run(command)
    }
}

/// Key and certificate go into the running agent, with a lifetime, and plain ssh logs in by them:
/// no file of them exists.
#[test]
fn a_certificate_in_the_agent() {
    let system = System::start();
    let agent = Agent::start();
    let (app, instance) = system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);
    let issue = ["ssh", "issue", "--agent", "--hours", "1", "--json"];
    let issued = json(agent.run(system.command(&issue)));
    assert!(issued["files"].is_null(), "{issued}");
    let listed = agent.list("-l").ok().text();
    assert!(listed.contains("ED25519-CERT"), "{listed}");
    assert_eq!(listed.lines().count(), 1, "{listed}");

    let known = tempfile::NamedTempFile::new().expect("a file");
    let lines: Vec<&str> = issued["known_hosts"]
        .as_array()
        .expect("lines")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    fs::write(known.path(), lines.join("\n")).expect("known hosts");
    let known = format!("UserKnownHostsFile={}", known.path().display());
    let plain = ssh(&system, &["-o", &known], &host, "echo in");
    let output = agent.run(plain);
    assert!(is_in(&output), "{output}");
    let nobodys = ssh(&system, &["-o", &known], &host, "echo in");
    assert!(
        !run(nobodys, b"", QUICK).status.success(),
        "it was the agent"
    );

    // An agent that refuses, and none at all.
    let (said, output) = with_refusing_agent(&system, &["ssh", "issue", "--agent", "--hours", "2"]);
    assert_eq!(said[4], 25, "a key with constraints");
    let (constraint, seconds) = said[said.len() - 5..].split_at(1);
    let seconds = u32::from_be_bytes(seconds.try_into().expect("four bytes"));
    assert_eq!(constraint, [1], "a lifetime");
    assert!((7100..=7200).contains(&seconds), "{seconds} s");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        output.stderr.contains("(agent_refused)\nhint: "),
        "{output}"
    );
    for (socket, code) in [("", "(no_agent)"), ("/nonexistent", "(agent_unreachable)")] {
        let mut command = system.command(&issue);
        command.env("SSH_AUTH_SOCK", socket);
        let output = run(command, b"", QUICK);
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(
            output.stderr.contains(code) && output.stderr.contains("hint: "),
            "{output}"
        );
    }
}

/// Runs a command with an agent that says no to everything; what it was asked first.
fn with_refusing_agent(system: &System, arguments: &[&str]) -> (Vec<u8>, Output) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let asked = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut frame = vec![0; 4];
        stream.read_exact(&mut frame).expect("a length");
        let length = u32::from_be_bytes(frame[..].try_into().expect("four bytes"));
        frame.resize(4 + length as usize, 0);
        stream.read_exact(&mut frame[4..]).expect("a message");
        stream.write_all(&[0, 0, 0, 1, 5]).expect("an answer");
        frame
    });
    let mut command = system.command(arguments);
    command.env("SSH_AUTH_SOCK", &socket);
    let output = run(command, b"", QUICK);
    (asked.join().expect("a message"), output)
}

/// The agent of this machine answers programs over there: by `ssh console --forward-agent`, and by
/// plain `ssh -A` with a certificate that was asked to permit it. Not otherwise.
#[test]
fn the_agent_is_forwarded_where_that_was_asked_for() {
    let system = System::start();
    let agent = Agent::start();
    let (app, instance) = system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);
    let directory = tempfile::tempdir().expect("a directory");
    let own = directory.path().join("own");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "person", "-f"]);
    keygen.arg(&own);
    run(keygen, b"", QUICK).ok();
    let mut add = Command::new("ssh-add");
    add.arg(&own);
    agent.run(add).ok();
    let here = agent.list("-L").ok().text();

    let console = ["ssh", "console", "-A", &host];
    let there = |more: &[&str]| {
        let arguments = [&console, more].concat();
        agent.run(system.command(&arguments))
    };
    let script = "ssh-add -L; stat -c '%a' \"$(dirname \"$SSH_AUTH_SOCK\")\"";
    let output = there(&["--forward-agent", "-C", script]).ok();
    assert_eq!(output.text(), format!("{here}\n700"));
    let output = there(&["-C", "echo \"<$SSH_AUTH_SOCK>\""]).ok();
    assert_eq!(output.text(), "<>");
    let mut none = system.command(&[&console[..], &["--forward-agent", "-C", "true"]].concat());
    none.env_remove("SSH_AUTH_SOCK");
    let output = run(none, b"", QUICK);
    assert_eq!(output.status.code(), Some(255), "{output}");
    assert!(output.stderr.contains("(no_agent)\nhint: "), "{output}");

    for (name, more, forwarded) in [
        ("plain", None, false),
        ("with", Some("--forward-agent"), true),
    ] {
        let path = directory.path().join(name);
        let mut arguments = vec!["ssh", "issue", path.to_str().expect("a path")];
        arguments.extend(more);
        system.underpass(&arguments).ok();
        let identity = format!("IdentityFile={}", path.display());
        let known = format!("UserKnownHostsFile={}-known_hosts", path.display());
        let options = [
            "-A",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            &identity,
            "-o",
            &known,
        ];
        let output = agent.run(ssh(&system, &options, &host, "ssh-add -L"));
        assert_eq!(output.text() == here, forwarded, "{name}: {output}");
    }
    let left: Vec<_> = fs::read_dir("/tmp")
        .expect("/tmp")
        .flatten()
        .filter(|entry| is_ours_and_fresh(&entry.path()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A directory of an agent's socket, made during this test.
fn is_ours_and_fresh(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let named = name.and_then(|name| name.strip_prefix("underpass-"));
    let socket = named.is_some_and(|rest| rest.len() == 16) && path.join("agent").exists();
    let made = fs::metadata(path).and_then(|meta| meta.modified());
    let age = made.ok().and_then(|made| made.elapsed().ok());
    socket && age.is_some_and(|age| age < Duration::from_secs(unix().min(10)))
}

/// A tree there and back, with a transfer that broke off in the middle, and a script for the shell.
#[test]
fn files_by_shell_and_by_tree() {
    let system = System::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let remote = directory.path().join("remote");
    let remote_text = remote.to_str().expect("a path").to_owned();
    fs::create_dir(&remote).expect("a directory");
    fs::create_dir_all(path("site/deep/er")).expect("a directory");
    let bytes = tests::noise(5);
    fs::write(path("site/large"), &bytes).expect("a file");
    fs::write(path("site/deep/er/a b"), "words").expect("a file");
    fs::write(path("site/empty"), "").expect("a file");
    std::os::unix::fs::symlink("/etc/passwd", path("site/link")).expect("a link");
    let sftp = |arguments: &[&str], input: &str| {
        let mut command = system.command(&["ssh", "sftp"]);
        command.args(arguments).current_dir(directory.path());
        run(command, input.as_bytes(), QUICK)
    };

    let tree = ["-a", "web", "--json", "-R"];
    let from = format!("{remote_text}/site");
    let put = json(sftp(&[&["put", "site", &from], &tree[..]].concat(), ""));
    assert_eq!(
        (&put["files"], &put["skipped"]),
        (&Value::from(3), &Value::from(1)),
        "{put}"
    );
    assert!(fs::read(remote.join("site/large")).expect("sent") == bytes);
    assert!(!remote.join("site/link").exists());
    let flat = sftp(&["get", "-a", "web", &from, "back"], "");
    assert_eq!(flat.status.code(), Some(1));
    assert!(flat.stderr.contains("is a directory\nhint: -R"), "{flat}");
    json(sftp(&[&["get", &from, "back"], &tree[..]].concat(), ""));
    assert!(fs::read(path("back/large")).expect("fetched") == bytes);
    assert_eq!(
        fs::read_to_string(path("back/deep/er/a b")).expect("fetched"),
        "words"
    );

    // It broke off: half of one is there, another is missing.
    fs::remove_file(path("back/large")).expect("a file");
    fs::write(path("back/large.part"), &bytes[..2 << 20]).expect("a file");
    fs::remove_file(path("back/empty")).expect("a file");
    let again = json(sftp(
        &[&["get", "--resume", &from, "back"], &tree[..]].concat(),
        "",
    ));
    assert_eq!(again["bytes"], Value::from(3 << 20), "{again}");
    assert!(fs::read(path("back/large")).expect("fetched") == bytes);
    assert!(!path("back/large.part").exists() && path("back/empty").exists());
    fs::write(remote.join("site/large"), &bytes[..1 << 20]).expect("a file");
    let again = json(sftp(
        &[&["put", "--resume", "site", &from], &tree[..]].concat(),
        "",
    ));
    assert_eq!(again["bytes"], Value::from(4 << 20), "{again}");
    assert!(fs::read(remote.join("site/large")).expect("sent") == bytes);

    let script = format!(
        "# a script\ncd '{remote_text}'\npwd\nmkdir \"new place\"\nput site/large new\\ place/copy\n\
         cd 'new place'\nls\nchmod 600 copy\nrename copy moved\nlcd site/deep\nlpwd\nget moved\n\
         - rm nothing\nrm moved\ncd ..\nrmdir 'new place'\nexit\nrm never\n"
    );
    let output = sftp(&["shell", "-a", "web"], &script).ok();
    let said: Vec<_> = output.stdout.split(|byte| *byte == b'\n').collect();
    assert_eq!(said[0], remote_text.as_bytes(), "{output}");
    assert!(output.text().contains("5242880  copy"), "{output}");
    assert!(output.text().ends_with("site/deep"), "{output}");
    assert!(output.stderr.contains("No such file"), "{output}");
    assert!(fs::read(path("site/deep/moved")).expect("fetched") == bytes);
    assert!(!remote.join("new place").exists());

    // A script ends where it fails, and says where.
    let output = sftp(
        &["shell", "-a", "web"],
        "cd /nothing/there\nput site/large /tmp/never\n",
    );
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(
        output.stderr.contains("stopped at: cd /nothing/there"),
        "{output}"
    );
    assert!(output.stderr.contains("\nhint: "), "{output}");
    assert!(!Path::new("/tmp/never").exists());
}
