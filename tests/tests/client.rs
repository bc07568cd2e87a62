//! The native client: the real binary's commands against a real `underpass up --demo`.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use tests::{
    command::{Background, Output, run},
    namespace::{Namespace, connect},
    peer::Peer,
    root,
    system::{Setup, System, binary},
};

/// Megabytes of noise, the same at each run.
fn noise(megabytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(megabytes << 20);
    while bytes.len() < megabytes << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// The binary, finding this system.
fn underpass(system: &System, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .env("UNDERPASS_DATA_DIR", system.data_dir());
    command
}

fn console(system: &System, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = underpass(system, &["ssh", "console"]);
    command.args(arguments);
    run(command, input, Duration::from_secs(120))
}

/// Bytes, their end and the exit status pass as they are, over either transport.
#[test]
fn a_command_is_a_pipe() {
    let system = System::start();
    let bytes = noise(50);
    for way in ["--udp", "--websockets"] {
        let started = tests::clock::now();
        let output = console(&system, &["-a", "web", way, "-C", "cat; exit 7"], &bytes);
        assert_eq!(output.status.code(), Some(7), "{way}: {}", output.stderr);
        assert!(
            output.stdout == bytes,
            "{way}: {} of {} bytes",
            output.stdout.len(),
            bytes.len()
        );
        assert_eq!(output.stderr, "", "{way}");
        println!(
            "50 MiB there and back {way}: {:.1} s",
            started.elapsed().as_secs_f64()
        );
    }
}

/// What ssh does with words, streams, statuses and signals.
#[test]
fn a_command_ends_as_it_would_with_ssh() {
    let system = System::start();
    let (app, instance) = system.instance();
    let by_id = format!("{}.vm.{}.internal", instance.id, app.name);
    for host in [&by_id, &instance.address] {
        let output = console(
            &system,
            &["-A", host, "-C", "echo out; echo err >&2; exit 3"],
            b"",
        );
        assert_eq!(output.status.code(), Some(3), "{output}");
        assert_eq!(
            (output.text().as_str(), output.stderr.trim()),
            ("out", "err")
        );
    }
    let command = r#"printf '%s|' "a  b" 'c"d' '$HOME' \\"#;
    let output = console(&system, &["-a", "web", "-C", command], b"").ok();
    assert_eq!(output.text(), r#"a  b|c"d|$HOME|\|"#);
    let output = console(&system, &["-a", "web", "-C", "kill -TERM $$"], b"");
    assert_eq!(output.status.code(), Some(128 + 15), "{output}");
    let output = console(
        &system,
        &["-a", "web", "-C", "test -t 0 && echo terminal"],
        b"",
    );
    assert_eq!(
        (output.status.code(), output.text().as_str()),
        (Some(1), "")
    );
    let output = console(&system, &["-a", "web", "--pty", "-C", "tty"], b"").ok();
    assert!(output.text().starts_with("/dev/pts/"), "{output}");
    let output = console(
        &system,
        &["-a", "web", "-r", "lhr"],
        b"echo shell; exit 5\n",
    );
    assert_eq!(
        (output.status.code(), output.text().as_str()),
        (Some(5), "shell")
    );
    // Whoever reads the output goes away.
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(r#""$0" ssh console -a web -C yes | head -n 3"#)
        .arg(binary())
        .env("UNDERPASS_DATA_DIR", system.data_dir());
    let output = run(command, b"", Duration::from_secs(60)).ok();
    assert_eq!(output.text(), "y\ny\ny");
    peers_are_given_back(&system);
}

fn peers_are_given_back(system: &System) {
    let output = system.underpass(&["wireguard", "list", "--json"]).ok();
    let peers: serde_json::Value = serde_json::from_str(&output.text()).expect("JSON");
    assert_eq!(peers["peers"].as_array().map(Vec::len), Some(0), "{peers}");
}

/// The client's own failures are 255, a code, and what to do.
#[test]
fn a_failure_of_the_client_says_what_to_do() {
    let system = System::start();
    for (arguments, code) in [
        (&["-a", "nowhere", "-C", "true"][..], "(nx_domain)"),
        (&["-C", "true"], "which app?"),
        (&["-a", "web", "-s", "-C", "true"], "which instance?"),
        (
            &["-a", "web", "-u", "Not A User", "-C", "true"],
            "(principals_invalid)",
        ),
    ] {
        let output = console(&system, arguments, b"");
        assert_eq!(output.status.code(), Some(255), "{arguments:?}: {output}");
        assert!(
            output.stderr.contains(code) && output.stderr.contains("\nhint: "),
            "{arguments:?}: {output}"
        );
    }
    let mut command = underpass(&system, &["ssh", "console", "-a", "web"]);
    command.env("UNDERPASS_DATA_DIR", "/nonexistent");
    let output = run(command, b"", Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(255), "{output}");
    assert!(output.stderr.contains("hint: "), "{output}");
    peers_are_given_back(&system);
}

/// Names, pings, ports and SOCKS, in a network that this machine has no route to.
#[test]
fn names_pings_and_ports() {
    let system = System::start();
    let (app, instance) = system.instance();
    let name = format!("{}.internal", app.name);
    let by_id = format!("{}.vm.{name}", instance.id);

    let mut addresses: Vec<_> = app.instances.iter().map(|i| i.address.clone()).collect();
    addresses.sort();
    let output = system.underpass(&["dig", &name]).ok();
    let mut answered: Vec<_> = output.text().lines().map(str::to_owned).collect();
    answered.sort();
    assert_eq!(answered, addresses);
    let output = system
        .underpass(&["dig", "TXT", "_apps.internal", "--json"])
        .ok();
    let json: serde_json::Value = serde_json::from_str(&output.text()).expect("JSON");
    assert!(
        json["records"][0]
            .as_str()
            .is_some_and(|apps| apps.contains(&app.name)),
        "{json}"
    );
    let output = system.underpass(&["dig", "nowhere.internal"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.contains("(nx_domain)\nhint: "), "{output}");

    let output = system.underpass(&["ping", "-c", "2", &by_id]).ok();
    assert!(output.text().contains("over UDP"), "{output}");
    assert!(output.text().ends_with("2 sent, 2 answered"), "{output}");
    let output = system
        .underpass(&["ping", "-c", "1", "--websockets", &instance.address])
        .ok();
    assert!(output.text().contains("over WebSocket"), "{output}");

    // What a server says first comes out, and the end of the input goes in.
    let output = run(
        underpass(&system, &["stdio", &by_id, "22"]),
        b"SSH-2.0-nobody\r\n",
        Duration::from_secs(30),
    );
    assert!(output.text().starts_with("SSH-2.0-"), "{output}");
    let output = run(
        underpass(&system, &["stdio", &by_id, "9"]),
        b"",
        Duration::from_secs(30),
    );
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("(refused)\nhint: "), "{output}");

    ports(&system, &by_id);
    peers_are_given_back(&system);
}

/// `proxy` with two ports and SOCKS at once: each leads to the instance's SSH server.
fn ports(system: &System, host: &str) {
    let mut command = underpass(
        system,
        &["proxy", "0:22", "0:9", host, "--socks", "0", "--json"],
    );
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut proxy = Background::start(command);
    let mut lines = BufReader::new(proxy.0.stdout.take().expect("piped")).lines();
    let mut local = || {
        let line = lines.next().expect("a line").expect("a line");
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        json["local"].as_str().expect("an address").to_owned()
    };
    let (ssh, closed, socks) = (local(), local(), local());
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&ssh).expect("the port");
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting, b"SSH-2.0-");
    }
    let mut stream = TcpStream::connect(&closed).expect("the port");
    let mut nothing = Vec::new();
    assert_eq!(
        stream.read_to_end(&mut nothing).unwrap_or(0),
        0,
        "{nothing:?}"
    );
    let curl = |url: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--proxy"]);
        command.args([&format!("socks5h://{socks}"), url]);
        run(command, b"", Duration::from_secs(30))
    };
    // Not HTTP, but it is the server that says so.
    let output = curl(&format!("http://{host}:22/"));
    assert!(output.stderr.contains("HTTP/0.9"), "{output}");
    let output = curl("http://nowhere.internal/");
    assert_eq!(output.status.code(), Some(97), "{output}");
    let output = run(
        underpass(
            system,
            &[
                "proxy",
                &format!("{}:22", ssh.rsplit(':').next().unwrap_or("")),
                host,
            ],
        ),
        b"",
        Duration::from_secs(10),
    );
    assert!(
        output.stderr.contains("cannot listen") && output.stderr.contains("hint: "),
        "{output}"
    );
    assert_eq!(
        proxy.stop().and_then(|status| status.code()),
        Some(128 + 15)
    );
}

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

/// Two machines, and a firewall between them.
struct Firewall {
    server: Namespace,
    client: Namespace,
    system: System,
}

impl Firewall {
    fn new() -> Firewall {
        let (server, client) = (Namespace::new(), Namespace::new());
        let (address, _) = connect(&server, &client, 7);
        let setup = Setup {
            namespace: Some((&server, &address)),
            ..Setup::default()
        };
        let system = setup.start();
        for namespace in [&server, &client] {
            let chain = "add table inet wall; add chain inet wall in { type filter hook input priority 0; }";
            namespace.run("nft", [chain], Duration::from_secs(10)).ok();
        }
        Firewall {
            server,
            client,
            system,
        }
    }

    /// Drops what arrives of that protocol at either side, without a word.
    fn drops(&self, protocol: &str) {
        for namespace in [&self.server, &self.client] {
            let rule = format!("add rule inet wall in iifname v* meta l4proto {protocol} drop");
            namespace.run("nft", [&rule], Duration::from_secs(10)).ok();
        }
    }

    fn opens(&self) {
        for namespace in [&self.server, &self.client] {
            namespace
                .run("nft", ["flush chain inet wall in"], Duration::from_secs(10))
                .ok();
        }
    }

    fn underpass(&self, arguments: &[&str]) -> Command {
        let mut command = self.client.command(binary());
        command
            .args(arguments)
            .env("UNDERPASS_DATA_DIR", self.system.data_dir());
        command
    }

    /// Which way a ping goes.
    fn way(&self) -> String {
        let ping = self.underpass(&["ping", "-c", "1", "web.internal"]);
        let output = run(ping, b"", Duration::from_secs(30)).ok();
        let first = output.text();
        first
            .lines()
            .next()
            .and_then(|line| line.rsplit(' ').next())
            .unwrap_or_default()
            .to_owned()
    }
}

/// UDP is used where it gets through, the relay where it does not, and a session moves from one to
/// the other and back without losing a byte.
#[test]
fn a_session_outlives_the_loss_of_either_path() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    assert_eq!(lab.way(), "UDP");
    lab.drops("udp");
    assert_eq!(lab.way(), "WebSocket");
    let bytes = noise(50);
    let started = tests::clock::now();
    let console = lab.underpass(&["ssh", "console", "-a", "web", "-C", "cat; exit 7"]);
    let output = run(console, &bytes, Duration::from_secs(120));
    assert_eq!(output.status.code(), Some(7), "{}", output.stderr);
    assert!(
        output.stdout == bytes,
        "{} bytes came back",
        output.stdout.len()
    );
    println!(
        "50 MiB there and back with UDP dropped: {:.1} s",
        started.elapsed().as_secs_f64()
    );
    lab.opens();

    // A piece every 100 ms: what goes missing shows as a pause.
    let mut command = lab.underpass(&["ssh", "console", "-a", "web", "-C", "cat; exit 7"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut session = Background::start(command);
    let mut stdin = session.0.stdin.take().expect("piped");
    let mut stdout = session.0.stdout.take().expect("piped");
    let reader = thread::spawn(move || {
        let (mut back, mut piece) = (Vec::new(), vec![0; 65_536]);
        let mut pauses = Vec::new();
        let mut last = tests::clock::now();
        while let Ok(n @ 1..) = stdout.read(&mut piece) {
            back.extend_from_slice(&piece[..n]);
            pauses.push(last.elapsed());
            last = tests::clock::now();
        }
        (back, pauses)
    });
    let begin = tests::clock::now();
    let mut step = 0;
    for piece in bytes.chunks(256 * 1024) {
        stdin.write_all(piece).expect("the session takes its input");
        thread::sleep(Duration::from_millis(100));
        match (step, begin.elapsed().as_secs()) {
            (0, 3..) => lab.drops("udp"),
            (1, 10..) => lab.opens(),
            (2, 20..) => {
                // Whatever carries it now: both ways are cut, for ten seconds.
                lab.drops("udp");
                lab.drops("tcp");
                thread::sleep(Duration::from_secs(10));
                lab.opens();
            }
            _ => continue,
        }
        step += 1;
    }
    drop(stdin);
    let (back, pauses) = reader.join().expect("the reader");
    assert!(
        back == bytes,
        "{} of {} bytes came back",
        back.len(),
        bytes.len()
    );
    let status = session.0.wait().expect("an exit status");
    assert_eq!(status.code(), Some(7));
    assert_eq!(step, 3, "the transfer was over too soon");
    let mut longest = pauses.clone();
    longest.sort();
    longest.reverse();
    // The first is the start of the session.
    println!("longest pauses: {:?}", &longest[..4]);
    assert!(
        longest[0] < Duration::from_secs(20),
        "the cut of both: {longest:?}"
    );
    assert!(
        longest[1] < Duration::from_secs(6),
        "the loss of UDP: {:?}",
        longest[1]
    );
}

/// Each line of `doctor`: the layer and whether it works.
fn doctor(command: Command) -> (Option<i32>, String) {
    let output = run(command, b"", Duration::from_secs(90));
    let json: serde_json::Value =
        serde_json::from_str(&output.text()).unwrap_or_else(|error| panic!("{error}: {output}"));
    let findings = json["findings"].as_array().expect("findings");
    let line = |finding: &serde_json::Value| {
        let ok = finding["ok"] == true;
        let hint = finding["hint"].as_str().unwrap_or_default();
        assert_eq!(
            ok,
            hint.is_empty(),
            "a failure has a hint, and nothing else: {finding}"
        );
        format!(
            "{}{} ",
            finding["layer"].as_str().unwrap_or("?"),
            if ok { "" } else { "!" }
        )
    };
    (output.status.code(), findings.iter().map(line).collect())
}

/// The path of the pings of one process follows the firewall, and `doctor` names it.
#[test]
fn the_path_follows_the_firewall_both_ways() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let examine = || doctor(lab.underpass(&["doctor", "--json"]));
    let all = "control relay dns tcp tls udp websocket names instance ssh ";
    assert_eq!(examine(), (Some(0), all.to_owned()));
    lab.drops("udp");
    assert_eq!(examine(), (Some(0), all.replace("udp", "udp!")));
    lab.opens();

    let mut command = lab.underpass(&["ping", "-c", "30", "--json", "web.internal"]);
    command.stdout(Stdio::piped());
    let mut ping = Background::start(command);
    let lines = BufReader::new(ping.0.stdout.take().expect("piped")).lines();
    let mut seen: Vec<String> = Vec::new();
    for line in lines.map_while(Result::ok) {
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let Some(way) = json["transport"].as_str() else {
            continue;
        };
        if seen.last().is_none_or(|last| last != way) {
            seen.push(way.to_owned());
            match seen.len() {
                1 => lab.drops("udp"),
                2 => lab.opens(),
                _ => break,
            }
        }
    }
    assert_eq!(seen, ["UDP", "WebSocket", "UDP"]);
}

/// A terminal in tmux: prompt, resize, Ctrl-C, a full-screen program, and the way out.
#[test]
fn a_terminal_is_a_terminal() {
    let system = System::start();
    let socket = format!("underpass-test-{}", std::process::id());
    let _server = TmuxServer(socket.clone());
    let tmux = |arguments: &[&str]| {
        let mut command = Command::new("tmux");
        command
            .args(["-L", &socket, "-f", "/dev/null"])
            .args(arguments);
        command.env("UNDERPASS_DATA_DIR", system.data_dir());
        run(command, b"", Duration::from_secs(20))
    };
    let screen = || tmux(&["capture-pane", "-p"]).text();
    let shows = |what: &str| {
        let says = || screen().contains(what).then_some(());
        tests::clock::wait_for(
            &format!("{what:?} on the screen"),
            Duration::from_secs(20),
            says,
        );
    };
    let keys = |keys: &[&str]| {
        let mut arguments = vec!["send-keys"];
        arguments.extend(keys);
        tmux(&arguments).ok();
    };
    let console = format!(
        "'{}' ssh console -a web; echo ended with $?",
        binary().display()
    );
    tmux(&["new-session", "-d", "-x", "100", "-y", "30", "sh"]).ok();
    keys(&[&console, "Enter"]);
    shows("connected to web.internal over UDP");
    keys(&["PS1='there> '; unset PROMPT_COMMAND; clear", "Enter"]);
    shows("there>");
    keys(&["stty size", "Enter"]);
    shows("30 100");
    tmux(&["resize-window", "-x", "90", "-y", "20"]).ok();
    thread::sleep(Duration::from_millis(300));
    keys(&["stty size", "Enter"]);
    shows("20 90");
    keys(&["sleep 1000", "Enter"]);
    thread::sleep(Duration::from_millis(300));
    keys(&["C-c"]);
    keys(&["echo status $?", "Enter"]);
    shows("status 130");
    // Takes the whole screen, and gives it back.
    keys(&["seq 1000 | less", "Enter"]);
    shows("1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16\n17\n18\n19\n");
    keys(&["G"]);
    shows("1000");
    keys(&["q"]);
    shows("status 130");
    keys(&["exit 5", "Enter"]);
    shows("ended with 5");
    keys(&["stty -a", "Enter"]);
    // The terminal is as it was.
    shows(" icanon");
    keys(&["clear", "Enter", &console, "Enter"]);
    shows("connected to");
    keys(&["Enter", "~."]);
    shows("ended with 255");
}

/// A tmux server of its own name, ended with the test.
struct TmuxServer(String);

impl Drop for TmuxServer {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.0, "kill-server"]);
        // One that is gone already is what is wanted.
        let _ = command.output();
    }
}

/// wireguard-go, told that its gateway is a port of this machine, works where UDP is dropped.
#[test]
fn a_stock_client_passes_through_the_bridge() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    lab.drops("udp");
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let bridge = |arguments: &[&str]| {
        let mut command = lab.underpass(&["bridge"]);
        command.args(arguments);
        command
    };
    let output = run(
        bridge(&["--listen", "0.0.0.0:0"]),
        b"",
        Duration::from_secs(10),
    );
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(
        output.stderr.contains("hint: listen on 127.0.0.1"),
        "{output}"
    );
    let output = run(bridge(&["--systemd"]), b"", Duration::from_secs(10)).ok();
    assert!(output.text().contains("\nExecStart=/"), "{output}");

    let mut command = bridge(&["--listen", "127.0.0.1:0", "--json"]);
    command.stdout(Stdio::piped());
    let mut bridge = Background::start(command);
    let mut line = String::new();
    let mut stdout = BufReader::new(bridge.0.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("a line");
    let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let endpoint = json["endpoint"].as_str().expect("an endpoint");

    let org = lab.system.ready.org.clone();
    lab.system
        .underpass(&[
            "wireguard",
            "create",
            "--org",
            &org,
            "stock",
            &path("wg.conf"),
        ])
        .ok();
    lab.system
        .underpass(&["ssh", "issue", "--org", &org, &path("id")])
        .ok();
    let configuration = fs::read_to_string(path("wg.conf")).expect("a configuration");
    let bridged: String = configuration
        .lines()
        .map(|line| match line.strip_prefix("Endpoint = ") {
            Some(_) => format!("Endpoint = {endpoint}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(path("wg.conf"), bridged).expect("a configuration");
    let Firewall {
        server: _server,
        client,
        system,
    } = lab;
    let peer = Peer::up(client, std::path::Path::new(&path("wg.conf")));
    let (app, _) = system.instance();
    let name = format!("{}.internal", app.name);
    assert_eq!(peer.dig([&name, "AAAA"]).len(), app.instances.len());
    let mut ssh = peer.namespace.command("ssh");
    ssh.args(["-F", "none", "-i", &path("id"), "-o", "BatchMode=yes", "-o"]);
    ssh.args([
        &format!("UserKnownHostsFile={}", path("id-known_hosts")),
        &format!("root@{name}"),
    ]);
    ssh.arg("head -c 104857600 /dev/zero; exit 7");
    let started = tests::clock::now();
    let output = run(ssh, b"", Duration::from_secs(120));
    assert_eq!(
        (output.status.code(), output.stdout.len()),
        (Some(7), 100 << 20)
    );
    let seconds = started.elapsed().as_secs_f64();
    println!("100 MiB through wireguard-go and the bridge: {seconds:.1} s");
}

/// Files there and back, a copy that broke off gone on with, names that are not there.
#[test]
fn files_by_sftp() {
    let system = System::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let sftp = |arguments: &[&str]| {
        let mut command = underpass(&system, &["ssh", "sftp"]);
        command
            .args(arguments)
            .args(["-a", "web"])
            .current_dir(directory.path());
        run(command, b"", Duration::from_secs(120))
    };
    let json = |output: Output| -> serde_json::Value {
        serde_json::from_str(&output.ok().text()).expect("JSON")
    };
    let bytes = noise(50);
    fs::write(path("here"), &bytes).expect("a file");
    fs::create_dir(path("there")).expect("a directory");
    let there = path("there");

    let put = json(sftp(&["put", "--json", "here", &there]));
    assert_eq!(put["bytes"], bytes.len(), "{put}");
    assert!(
        fs::read(path("there/here")).ok().as_ref() == Some(&bytes),
        "put"
    );
    let output = sftp(&["get", &path("there/here")]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("exists already\nhint: "), "{output}");
    let get = json(sftp(&["get", "--json", &path("there/here"), "back"]));
    assert_eq!(
        (&get["bytes"], &get["resumed_at"]),
        (&bytes.len().into(), &0.into())
    );
    assert!(fs::read(path("back")).ok().as_ref() == Some(&bytes), "get");
    let rate = |copied: &serde_json::Value| 52.4 / copied["seconds"].as_f64().unwrap_or(f64::NAN);
    println!(
        "50 MiB: put {:.0} MB/s, get {:.0} MB/s",
        rate(&put),
        rate(&get)
    );

    // What an earlier try left.
    fs::write(path("again.part"), &bytes[..40_000_001]).expect("a file");
    let get = json(sftp(&[
        "get",
        "--json",
        "--resume",
        &path("there/here"),
        "again",
    ]));
    assert_eq!(get["resumed_at"], 40_000_001, "{get}");
    assert!(
        fs::read(path("again")).ok().as_ref() == Some(&bytes),
        "get --resume"
    );
    assert!(!std::path::Path::new(&path("again.part")).exists());
    fs::write(path("there/here"), &bytes[..123]).expect("a file");
    let put = json(sftp(&["put", "--json", "--resume", "here", &there]));
    assert_eq!(put["resumed_at"], 123, "{put}");
    assert!(
        fs::read(path("there/here")).ok().as_ref() == Some(&bytes),
        "put --resume"
    );

    let ls = json(sftp(&["ls", "--json", &there]));
    assert_eq!(ls["entries"][0]["name"], "here", "{ls}");
    let output = sftp(&["get", &path("there/nothing")]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(
        output.stderr.contains("No such file") && output.stderr.contains("hint: "),
        "{output}"
    );
}

/// A CONNECT proxy that wants a login and says where it leads.
const PROXY: &str = r#"
const login = 'Basic ' + Buffer.from('me:s@cret').toString('base64');
require('http').createServer().on('connect', (request, client) => {
  if (request.headers['proxy-authorization'] !== login) {
    return client.end('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n');
  }
  console.log(request.url);
  const [host, port] = request.url.split(':');
  const relay = require('net').connect(port, host, () => {
    client.write('HTTP/1.1 200 Connection established\r\n\r\n');
    relay.pipe(client).pipe(relay);
  });
  relay.on('error', () => client.destroy());
  client.on('error', () => relay.destroy());
}).listen(3128, '0.0.0.0', () => console.log('ready'));
"#;

/// The relay is reached through the HTTP proxy that the environment names.
#[test]
fn an_http_proxy_is_passed() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    lab.drops("udp");
    let mut command = lab.server.command("node");
    command.args(["-e", PROXY]).stdout(Stdio::piped());
    let mut proxy = Background::start(command);
    let mut lines = BufReader::new(proxy.0.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("a line"), "ready");
    let ping = |proxy: &str, exceptions: &str| {
        let mut command = lab.underpass(&["ping", "-c", "1", "--websockets", "web.internal"]);
        command
            .env("HTTPS_PROXY", proxy)
            .env("NO_PROXY", exceptions);
        run(command, b"", Duration::from_secs(40))
    };
    ping("http://me:s%40cret@10.99.7.1:3128", "").ok();
    assert_eq!(
        lines.next().expect("a line").expect("a line"),
        "10.99.7.1:8443"
    );
    let output = ping("http://10.99.7.1:3128", "");
    assert!(output.stderr.contains("(proxy_login)\nhint: "), "{output}");
    let output = ping("http://10.99.7.1:3129", "");
    assert!(output.stderr.contains("10.99.7.1:3129 refused"), "{output}");
    ping("http://10.99.7.1:3129", "localhost, 10.99.7.1").ok();
    let mut command = lab.underpass(&["doctor", "--json"]);
    command.env("HTTPS_PROXY", "http://me:s%40cret@10.99.7.1:3128");
    let findings = "control relay proxy udp! websocket names instance ssh ";
    assert_eq!(doctor(command), (Some(0), findings.to_owned()));
}

/// An instance that ends under a session is noticed, and said.
#[test]
fn an_instance_that_dies_ends_its_sessions() {
    let system = System::start();
    let (app, instance) = system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);
    let mut command = underpass(
        &system,
        &["ssh", "console", "-A", &host, "-C", "echo up; sleep 1000"],
    );
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut session = Background::start(command);
    let mut line = String::new();
    let mut stdout = BufReader::new(session.0.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("a line");
    assert_eq!(line, "up\n");
    let stopped = tests::clock::now();
    system.underpass(&["instances", "stop", &instance.id]).ok();
    let ended = || session.0.try_wait().expect("a status");
    let status = tests::clock::wait_for("the end of the session", Duration::from_secs(25), ended);
    println!(
        "a dead instance is noticed after {:.1} s",
        stopped.elapsed().as_secs_f64()
    );
    let mut said = String::new();
    let mut stderr = session.0.stderr.take().expect("piped");
    stderr.read_to_string(&mut said).expect("text");
    assert_eq!(status.code(), Some(255), "{said}");
    assert!(said.contains("\nhint: "), "{said}");
}
