//! The native client: the real binary's commands against a real `underpass up --demo`.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use tests::{
    command::{Background, Output, run},
    noise,
    system::{System, binary},
};

fn console(system: &System, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = system.command(&["ssh", "console"]);
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
    let mut command = system.command(&["ssh", "console", "-a", "web"]);
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
        system.command(&["stdio", &by_id, "22"]),
        b"SSH-2.0-nobody\r\n",
        Duration::from_secs(30),
    );
    assert!(output.text().starts_with("SSH-2.0-"), "{output}");
    let output = run(
        system.command(&["stdio", &by_id, "9"]),
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
    let mut command = system.command(&["proxy", "0:22", "0:9", host, "--socks", "0", "--json"]);
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
        system.command(&[
            "proxy",
            &format!("{}:22", ssh.rsplit(':').next().unwrap_or("")),
            host,
        ]),
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

/// Files there and back, a copy that broke off gone on with, names that are not there.
#[test]
fn files_by_sftp() {
    let system = System::start();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let sftp = |arguments: &[&str]| {
        let mut command = system.command(&["ssh", "sftp"]);
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
