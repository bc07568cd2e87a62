//! What is served inside, used from outside by programs that know nothing of this: PostgreSQL
//! through `proxy`, HTTP through `proxy --socks`. Both servers run on a machine of their own that
//! has a stock WireGuard tunnel and nothing else.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tests::{
    clock::wait_for,
    command::{Background, Output, run},
    firewall::Firewall,
    namespace::Namespace,
    noise, root,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Starts `proxy` on the client's machine; where it listens.
fn proxy(lab: &Firewall, arguments: &[&str]) -> (Background, Vec<String>) {
    let ports = arguments.iter().filter(|it| it.starts_with('0')).count();
    let mut command = lab.underpass(&["proxy", "--json"]);
    command.args(arguments).stdout(Stdio::piped());
    let mut proxy = Background::start(command);
    let lines = BufReader::new(proxy.0.stdout.take().expect("piped")).lines();
    let local = lines.take(ports).map(|line| {
        let line = line.expect("a line");
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        json["local"].as_str().expect("an address").to_owned()
    });
    let local: Vec<String> = local.collect();
    assert_eq!(local.len(), ports, "a line for each port");
    (proxy, local)
}

/// Rows go in and come out as they were, a large answer arrives whole, many connections at once,
/// and a server that refuses is heard.
#[test]
fn postgresql_through_proxy() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let files = tempfile::tempdir().expect("a directory");
    let inner = lab.inner(files.path());
    let cluster = Cluster::new();
    let _server = cluster.serve(&inner.namespace);
    let (_proxy, local) = proxy(&lab, &["0:5432", "inner._peer.internal"]);
    let (address, port) = local[0].rsplit_once(':').expect("a port");
    let command = |password: &str, sql: &str| {
        let mut command = lab.client.command("psql");
        command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]);
        command.args(["--host", address, "--port", port, "--username", "postgres"]);
        command.args(["--set", "ON_ERROR_STOP=1", "--command", sql]);
        command
            .env("PGPASSWORD", password)
            .env("HOME", files.path());
        command
    };
    let psql = |sql: &str, input: &[u8]| run(command(PASSWORD, sql), input, LIMIT);

    assert_eq!(psql("select 6 * 7", b"").ok().text(), "42");
    psql("create table rows (id int primary key, text text)", b"").ok();
    let rows: String = (0..200_000)
        .map(|id| format!("{id}\t{:x}\n", id * 0x9e37_79b9_u64))
        .collect();
    psql("copy rows from stdin", rows.as_bytes()).ok();
    let back = psql("copy (select * from rows order by id) to stdout", b"").ok();
    assert!(
        back.stdout == rows.as_bytes(),
        "{} of {} bytes came back",
        back.stdout.len(),
        rows.len()
    );
    let large = psql("select repeat('x', 20000000)", b"").ok();
    assert_eq!(large.stdout.len(), 20_000_001);

    let sessions: Vec<Background> = (0..20)
        .map(|_| {
            let mut command = command(PASSWORD, "select pg_sleep(1), 'slept'");
            command.stdout(Stdio::null());
            Background::start(command)
        })
        .collect();
    for mut session in sessions {
        let ended = || session.0.try_wait().expect("a status");
        assert!(wait_for("psql", LIMIT, ended).success());
    }

    let output = psql("select no_such_column", b"");
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("no_such_column"), "{output}");
    let output = run(command("wrong", "select 1"), b"", LIMIT);
    assert_eq!(output.status.code(), Some(2), "{output}");
    assert!(output.stderr.contains("password"), "{output}");
}

const PASSWORD: &str = "correct horse";

/// A PostgreSQL cluster of its own, run by a user without privileges.
struct Cluster {
    directory: TempDir,
    programs: PathBuf,
}

/// As whom: PostgreSQL refuses root.
const USER: &str = "nobody";

impl Cluster {
    fn new() -> Cluster {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let cluster = Cluster {
            directory,
            programs: programs(),
        };
        let password = cluster.directory.path().join("password");
        fs::write(&password, PASSWORD).expect("a file");
        let data = cluster.data();
        fs::create_dir(&data).expect("a directory");
        let user = nix::unistd::User::from_name(USER).expect("users");
        let uid = user.expect("the user nobody").uid.as_raw();
        chown(&data, Some(uid), None).expect("an owner");
        let mut command = as_nobody(Command::new("setpriv"), &cluster.programs.join("initdb"));
        command.args(["--auth", "scram-sha-256", "--username", "postgres"]);
        command.args(["--no-locale", "--encoding", "UTF8", "--no-sync"]);
        command.arg("--pwfile").arg(&password);
        command.arg("--pgdata").arg(&data);
        run(command, b"", LIMIT).ok();
        let rule = "host all all fdaa::/16 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), rule).expect("pg_hba.conf");
        cluster
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Serves on every address of the namespace, and returns when it does.
    fn serve(&self, namespace: &Namespace) -> Background {
        let mut command = as_nobody(
            namespace.command("setpriv"),
            &self.programs.join("postgres"),
        );
        command.args([
            "-h",
            "::",
            "-c",
            "fsync=off",
            "-c",
            "log_min_messages=panic",
            "-c",
        ]);
        command.arg(format!("unix_socket_directories={}", self.data().display()));
        command.arg("-D").arg(self.data());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let server = Background::start(command);
        namespace.listens(5432);
        server
    }
}

fn as_nobody(mut setpriv: Command, program: &Path) -> Command {
    setpriv.args(["--reuid", USER, "--regid", "nogroup", "--clear-groups"]);
    setpriv.arg(program).current_dir("/");
    setpriv
}

/// Debian keeps the servers apart by version, and out of `PATH`.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let bin = versions.flatten().map(|version| version.path().join("bin"));
    bin.filter(|bin| bin.join("initdb").exists())
        .max()
        .expect("PostgreSQL's server\ntype: cargo xtask setup")
}

/// Serves the file of its argument to whoever asks, and says how much it was sent.
const HTTP: &str = r"
const { createServer } = require('http');
const { createReadStream } = require('fs');
createServer((request, response) => {
  if (request.method === 'GET') return createReadStream(process.argv[1]).pipe(response);
  let bytes = 0;
  request.on('data', (piece) => { bytes += piece.length; });
  request.on('end', () => response.end(`${bytes} bytes`));
}).listen(8080, '::');
";

/// curl resolves nothing itself: a file there and back, several at once, and each failure as the
/// SOCKS reply that curl knows.
#[test]
fn curl_through_socks_by_name() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let files = tempfile::tempdir().expect("a directory");
    let inner = lab.inner(files.path());
    let bytes = noise(20);
    let file = files.path().join("served");
    fs::write(&file, &bytes).expect("a file");
    let mut command = inner.namespace.command("node");
    command.args(["-e", HTTP]).arg(&file);
    let _server = Background::start(command);
    inner.namespace.listens(8080);
    let (_proxy, local) = proxy(&lab, &["--socks", "0"]);
    let curl = |more: &[&str]| -> Output {
        let mut command = lab.client.command("curl");
        command.args(["--silent", "--show-error", "--max-time", "40", "--proxy"]);
        command.arg(format!("socks5h://{}", local[0])).args(more);
        run(command, b"", LIMIT)
    };

    let url = "http://inner._peer.internal:8080/";
    let output = curl(&[url]).ok();
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    let by_address = format!("http://[{}]:8080/", inner.address);
    let output = curl(&[&by_address]).ok();
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    let sent = format!("@{}", file.display());
    let output = curl(&["--data-binary", &sent, url]).ok();
    assert_eq!(output.text(), format!("{} bytes", bytes.len()));
    let output = curl(&[
        "--parallel",
        "--output",
        &files.path().join("got#1").display().to_string(),
        &format!("{url}[1-10]"),
    ]);
    output.ok();
    for number in 1..=10 {
        let got = fs::read(files.path().join(format!("got{number}"))).expect("a file");
        assert!(got == bytes, "file {number}: {} bytes", got.len());
    }

    // The codes of RFC 1928: 4 the host is unreachable, 5 the connection was refused.
    for (url, reply) in [
        ("http://nowhere.internal/", "(4)"),
        ("http://inner.internal:8080/", "(4)"),
        ("http://inner._peer.internal:9/", "(5)"),
    ] {
        let output = curl(&[url]);
        assert_eq!(output.status.code(), Some(97), "{url}: {output}");
        assert!(output.stderr.contains(reply), "{url}: {output}");
    }
}
