//! The native client: the real binary's commands against a real `underpass up --demo`.

use std::{process::Command, time::Duration};

use tests::{
    command::{Output, run},
    system::{System, binary},
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
