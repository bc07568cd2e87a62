//! What the client says when something on the way is not as it should be: every message whole, as
//! a person reads it.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read},
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tests::{
    command::{Background, run},
    firewall::Firewall,
    namespace::Namespace,
    root,
    system::System,
    warp::Warp,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Cases and what was said, to be compared as one text.
struct Said {
    text: String,
    /// What differs from run to run, and what is shown for it.
    replaced: Vec<(String, String)>,
}

impl Said {
    fn new(system: &System) -> Said {
        let mut said = Said {
            text: String::new(),
            replaced: Vec::new(),
        };
        said.redacts(&system.data_dir().display().to_string(), "[data-dir]");
        said.redacts(system.origin(), "[origin]");
        let address = system.origin().trim_start_matches("https://");
        said.redacts(address, "[address]");
        let instances = system.ready.apps.iter().flat_map(|app| &app.instances);
        for (number, instance) in instances.enumerate() {
            said.redacts(&instance.id, &format!("[instance-{number}]"));
            said.redacts(&instance.address, &format!("[instance-{number}-address]"));
        }
        said
    }

    /// Shows `what` as something that stays the same.
    fn redacts(&mut self, what: &str, shown: &str) {
        self.replaced.push((what.to_owned(), shown.to_owned()));
    }

    /// Runs a command that has to fail, and notes how.
    fn notes(&mut self, case: &str, command: Command) {
        let started = tests::clock::now();
        let output = run(command, b"", LIMIT);
        println!("{case}: {:.1} s", started.elapsed().as_secs_f64());
        let code = output.status.code();
        assert!(code.is_some_and(|code| code != 0), "{case}: {output}");
        assert_eq!(output.text(), "", "{case}: failures are not output");
        self.adds(case, &output.stderr, code.unwrap_or_default());
    }

    fn adds(&mut self, case: &str, text: &str, code: i32) {
        let said = self.redact(text);
        assert!(said.contains("\nhint: "), "{case}: what now? {said}");
        let _ = write!(self.text, "## {case}\n\n{said}\nexit status {code}\n\n");
    }

    fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (what, shown) in &self.replaced {
            text = text.replace(what, shown);
        }
        // A certificate of this run.
        if let Some((before, rest)) = text.clone().split_once("SHA256:") {
            let rest = rest.trim_start_matches(|c: char| c.is_ascii_hexdigit() || c == ':');
            text = format!("{before}SHA256:[fingerprint]{rest}");
        }
        text.trim_end().to_owned()
    }
}

/// A server in node: `PORT` and what else the script wants are arguments.
fn node(namespace: &Namespace, script: &str, arguments: &[&str]) -> Background {
    let mut command = namespace.command("node");
    command.args(["-e", script]).args(arguments);
    command.stdout(Stdio::piped());
    let mut node = Background::start(command);
    let mut line = String::new();
    let mut stdout = BufReader::new(node.0.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    node
}

/// A proxy on 3128 that answers CONNECT with its argument, or leads everywhere to one port.
const PROXY: &str = r"
const [answer] = process.argv.slice(1);
require('http').createServer().on('connect', (request, client) => {
  client.on('error', () => {});
  if (!/^[0-9]+$/.test(answer)) return client.end(answer.replaceAll('\\n', '\r\n'));
  const there = require('net').connect(answer, '127.0.0.1', () => {
    client.write('HTTP/1.1 200 Connection established\r\n\r\n');
    there.pipe(client).pipe(there);
  });
  there.on('error', () => client.destroy());
}).listen(3128, '127.0.0.1', () => console.log('ready'));
";

/// What a hotel answers to everything, with TLS where a certificate is given; the API alone it lets
/// through, if it is told where that is.
const PORTAL: &str = r"
const fs = require('fs');
const [port, status, cert, key, api] = process.argv.slice(1);
const answer = (request, response) => {
  if (api && request.url.startsWith('/api/')) {
    const { method, url: path, headers } = request;
    const [hostname, port] = api.split(':');
    const options = { hostname, port, method, path, headers, rejectUnauthorized: false };
    return request.pipe(require('https').request(options, (answered) => {
      response.writeHead(answered.statusCode, answered.headers);
      answered.pipe(response);
    }));
  }
  const headers = { 'content-type': 'text/html' };
  if (status === '302') headers.location = 'http://login.hotel.example/';
  response.writeHead(status, headers);
  response.end('<html><title>Welcome to our hotel</title>Please log in.</html>');
};
const server = cert
  ? require('https').createServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) }, answer)
  : require('http').createServer(answer);
server.on('upgrade', (request, socket) => {
  const there = status === '302' ? 'Location: http://login.hotel.example/\r\n' : '';
  socket.end(`HTTP/1.1 ${status} Hotel\r\n${there}Content-Type: text/html\r\nContent-Length: 14\r\n\r\nPlease log in.`);
});
server.listen(port, '0.0.0.0', () => console.log('ready'));
";

/// Networks that carry nothing, or carry it somewhere else.
#[test]
fn a_network_that_is_in_the_way() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let mut said = Said::new(&lab.system);
    let files = tempfile::tempdir().expect("a directory");
    let path = |name: &str| files.path().join(name).display().to_string();
    let console = |options: &[&str]| {
        let mut command = lab.underpass(&["ssh", "console", "-a", "web", "-C", "true"]);
        command.args(options);
        command
    };
    let proxied = || {
        let mut command = console(&["--websockets"]);
        command.env("HTTPS_PROXY", "http://127.0.0.1:3128");
        command
    };

    for (case, answer) in [
        (
            "a proxy that wants a login",
            "HTTP/1.1 407 Proxy Authentication Required\\nProxy-Authenticate: Basic realm=\"office\"\\n\\n",
        ),
        (
            "a proxy that refuses",
            "HTTP/1.1 403 Forbidden\\nContent-Type: text/html\\n\\n<h1>Category: tunnels</h1>",
        ),
        (
            "a proxy that sends to a login page",
            "HTTP/1.1 302 Found\\nLocation: http://login.hotel.example/\\n\\n",
        ),
        ("a proxy that is none", "SSH-2.0-OpenSSH_9.2\\n"),
    ] {
        let _proxy = node(&lab.client, PROXY, &[answer]);
        said.notes(case, proxied());
    }
    said.notes("a proxy that is not there", proxied());

    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]);
    openssl.args(["-nodes", "-days", "2", "-subj", "/CN=Office Inspection CA"]);
    openssl.args(["-addext", "subjectAltName=IP:10.99.7.1"]);
    openssl.args(["-keyout", &path("other.key"), "-out", &path("other.crt")]);
    run(openssl, b"", LIMIT).ok();
    let (cert, key) = (path("other.crt"), path("other.key"));
    {
        let _portal = node(&lab.client, PORTAL, &["9000", "200", &cert, &key]);
        let _proxy = node(&lab.client, PROXY, &["9000"]);
        said.notes("a proxy that opens TLS and signs it anew", proxied());
    }
    {
        let _portal = node(&lab.client, PORTAL, &["9000", "200"]);
        let _proxy = node(&lab.client, PROXY, &["9000"]);
        said.notes("a login page instead of TLS", proxied());
    }
    let tls = lab.system.data_dir().join("tls");
    let (ours, our_key) = (tls.join("cert.pem"), tls.join("key.pem"));
    let trusted = [ours.display().to_string(), our_key.display().to_string()];
    for (case, status) in [
        ("a login page behind a certificate that is trusted", "200"),
        ("a redirect behind a certificate that is trusted", "302"),
    ] {
        let _portal = node(
            &lab.client,
            PORTAL,
            &["9000", status, &trusted[0], &trusted[1]],
        );
        let _proxy = node(&lab.client, PROXY, &["9000"]);
        said.notes(case, proxied());
    }

    // In the way of everything, control's API too.
    let elsewhere = "add table ip hotel; add chain ip hotel out { type nat hook output priority -100; }; \
                     add rule ip hotel out ip daddr 10.99.7.1 tcp dport 8443 dnat to 127.0.0.1:9000";
    lab.client.run("nft", [elsewhere], LIMIT).ok();
    lab.client
        .run(
            "sysctl",
            ["-qw", "net.ipv4.conf.all.route_localnet=1"],
            LIMIT,
        )
        .ok();
    {
        let _portal = node(&lab.client, PORTAL, &["9000", "302"]);
        said.notes("control behind a login page", console(&[]));
    }
    {
        let _portal = node(&lab.client, PORTAL, &["9000", "302", &cert, &key]);
        said.notes(
            "control behind a certificate that nobody here knows",
            console(&[]),
        );
    }
    lab.client.run("nft", ["delete table ip hotel"], LIMIT).ok();

    lab.drops("udp");
    said.notes("UDP alone, and UDP dropped", console(&["--udp"]));
    lab.drops("tcp");
    said.notes("everything dropped", console(&[]));
    lab.opens();
    let links = lab.client.run("ip", ["-o", "link"], LIMIT).ok().text();
    let link = links.split_whitespace().find(|word| word.starts_with("vb"));
    let link = link
        .and_then(|word| word.split('@').next())
        .expect("a link");
    lab.client.ip(["link", "set", link, "down"]);
    said.notes("no network", console(&[]));

    insta::assert_snapshot!(said.text);
}

/// Machines, ports and names that are not as the command would have them.
#[test]
fn a_request_that_cannot_be_met() {
    let system = System::start();
    let mut said = Said::new(&system);
    let (app, instance) = system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);
    let console = |arguments: &[&str]| {
        let mut command = system.command(&["ssh", "console", "-C", "true"]);
        command.args(arguments);
        command
    };

    said.notes("no app named, and there are two", console(&[]));
    // In the order of their names, which differ from run to run.
    let output = run(console(&["-a", "web", "-s"]), b"", LIMIT);
    let asked = "underpass: which instance?\nhint: -A with one of ";
    assert_eq!(output.status.code(), Some(255), "{output}");
    assert!(output.stderr.starts_with(asked), "{output}");
    for instance in &app.instances {
        let choice = format!("{}.vm.web.internal  {}", instance.id, instance.region);
        assert!(output.stderr.contains(&choice), "{output}");
    }
    said.notes("no such app", console(&["-a", "nowhere"]));
    said.notes(
        "no such app to choose from",
        console(&["-a", "nowhere", "-s"]),
    );
    said.notes(
        "no instance in that region",
        console(&["-a", "worker", "-r", "iad"]),
    );
    said.notes(
        "no such name",
        system.command(&["stdio", "nowhere.internal", "22"]),
    );
    said.notes(
        "a name that is not of this network",
        console(&["-A", "example.com"]),
    );
    said.notes(
        "an address of another network",
        console(&["-A", "fdaa:ffff:ffff::1"]),
    );
    said.notes(
        "the remote host refuses",
        system.command(&["stdio", &host, "9"]),
    );
    said.notes(
        "no SSH there",
        system.command(&["ssh", "console", "-A", "fdaa::3", "-C", "true"]),
    );
    said.notes(
        "a user that no certificate can name",
        console(&["-a", "web", "-u", "Not A User"]),
    );
    said.notes(
        "no such organisation",
        console(&["-a", "web", "--org", "rival"]),
    );

    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let udp_port = udp.local_addr().expect("an address").port();
    said.redacts(&port.to_string(), "[taken]");
    said.redacts(&udp_port.to_string(), "[taken]");
    let pair = format!("{port}:22");
    said.notes(
        "proxy on a port that is taken",
        system.command(&["proxy", &pair, &host]),
    );
    let socks = port.to_string();
    said.notes(
        "SOCKS on a port that is taken",
        system.command(&["proxy", "--socks", &socks]),
    );
    let listen = format!("127.0.0.1:{udp_port}");
    said.notes(
        "bridge on a port that is taken",
        system.command(&["bridge", "--listen", &listen]),
    );
    let listen = format!("127.0.0.1:{port}");
    let other = tempfile::tempdir().expect("a directory");
    let other = other.path().join("data").display().to_string();
    said.redacts(&other, "[other-dir]");
    said.notes(
        "up on a port that is taken",
        system.command(&["up", "--demo", "--listen", &listen, "--data-dir", &other]),
    );
    said.notes(
        "a second up on one data directory",
        system.command(&["up", "--demo", "--listen", "127.0.0.1:0"]),
    );
    if !root() {
        // Ports below 1024 are root's, and root has no others that it may not take.
        said.notes(
            "a port of root's",
            system.command(&["proxy", "80:80", &host]),
        );
    }
    said.notes(
        "nothing was ever started",
        system.command(&["ssh", "console", "-a", "web", "--data-dir", "/nonexistent"]),
    );
    let mut system = system;
    let dir = system.data_dir().to_owned();
    let announced = fs::read(dir.join("up.json")).expect("up.json");
    system.stop();
    let gone = |arguments: &[&str]| system.command(arguments);
    said.notes(
        "it was stopped",
        gone(&["ssh", "console", "-a", "web", "-C", "true"]),
    );
    // So a crash leaves it.
    let mut json: serde_json::Value = serde_json::from_slice(&announced).expect("JSON");
    json["address"] = "127.0.0.1:1".into();
    fs::write(dir.join("up.json"), json.to_string()).expect("up.json");
    said.notes(
        "it crashed",
        gone(&["ssh", "console", "-a", "web", "-C", "true"]),
    );
    fs::write(dir.join("up.json"), "{").expect("up.json");
    said.notes("what it left is damaged", gone(&["apps"]));
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("a mode");
    said.notes("its directory is open to others", gone(&["apps"]));
    insta::assert_snapshot!(said.text);
}

/// A client whose clock is wrong: what is not valid then is named. A day ahead is within what host
/// certificates allow.
#[test]
fn a_clock_that_is_off() {
    let system = System::start();
    let clock = Warp::new();
    let mut said = Said::new(&system);
    let console = |days: i64| {
        clock.set(days * 86_400);
        let mut command = system.command(&["ssh", "console", "-a", "web", "-C", "true"]);
        clock.apply(&mut command);
        command
    };
    run(console(1), b"", LIMIT).ok();
    said.notes("a day behind", console(-1));
    said.notes("a year ahead", console(365));
    insta::assert_snapshot!(said.text);
}

/// What a session says when the other side has gone: the instance, or all of the system at once.
#[test]
fn an_instance_that_dies_ends_its_sessions() {
    let mut system = System::start();
    let mut said = Said::new(&system);
    let (app, instance) = system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);
    let id = instance.id.clone();
    let session = |system: &System, way: &str, host: &str| {
        let remote = "echo up; sleep 1000";
        let mut command = system.command(&["ssh", "console", "-A", host, way, "-C", remote]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        let mut session = Background::start(command);
        let mut line = String::new();
        let mut stdout = BufReader::new(session.0.stdout.take().expect("piped"));
        stdout.read_line(&mut line).expect("a line");
        assert_eq!(line, "up\n");
        session
    };
    let mut ends = |case: &str, since: Instant, mut session: Background| {
        let ended = || session.0.try_wait().expect("a status");
        let limit = Duration::from_secs(40);
        let status = tests::clock::wait_for("the end of the session", limit, ended);
        println!(
            "{case}: noticed after {:.1} s",
            since.elapsed().as_secs_f64()
        );
        let mut text = String::new();
        let mut stderr = session.0.stderr.take().expect("piped");
        stderr.read_to_string(&mut text).expect("text");
        assert_eq!(status.code(), Some(255), "{text}");
        said.adds(case, &text, 255);
    };

    let stopped = session(&system, "--udp", &host);
    let since = tests::clock::now();
    system.underpass(&["instances", "stop", &id]).ok();
    ends("the instance was stopped", since, stopped);
    let other = format!(
        "{}.vm.{}.internal",
        system.ready.apps[0].instances[1].id, "web"
    );
    let (udp, websocket) = (
        session(&system, "--udp", &other),
        session(&system, "--websockets", &other),
    );
    let since = tests::clock::now();
    system.kill();
    ends(
        "the system was killed, over the WebSocket",
        since,
        websocket,
    );
    ends("the system was killed, over UDP", since, udp);
    insta::assert_snapshot!(said.text);
}
