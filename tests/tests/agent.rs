//! `underpass agent`: the process that keeps tunnels for the other commands, by the real binary
//! against a real system.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
        process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tests::{
    clock::{now, wait_for},
    command::{Background, Output, run},
    firewall::Firewall,
    noise, root,
    system::{System, binary},
    warp::Warp,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A user's place for an agent, whose agent ends with the test.
struct Place {
    directory: TempDir,
    data_dir: PathBuf,
}

impl Place {
    fn new(system: &System) -> Place {
        Place {
            directory: tempfile::tempdir().expect("a directory"),
            data_dir: system.data_dir().to_owned(),
        }
    }

    /// Lets `command` find this place and the system.
    fn within(&self, command: &mut Command) {
        command
            .env("UNDERPASS_AGENT", "on")
            .env("XDG_RUNTIME_DIR", self.directory.path())
            .env("UNDERPASS_DATA_DIR", &self.data_dir);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments);
        self.within(&mut command);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments), b"", LIMIT)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("underpass").join(name)
    }

    fn status(&self) -> serde_json::Value {
        let output = self.run(&["agent", "status", "--json"]);
        serde_json::from_str(&output.text()).unwrap_or_else(|_| panic!("{output}"))
    }

    /// The process of the agent that runs.
    fn pid(&self) -> i32 {
        let status = self.status();
        let pid = status["pid"].as_i64().unwrap_or_else(|| panic!("{status}"));
        i32::try_from(pid).expect("a process")
    }

    fn runs(&self) -> bool {
        self.status()["running"] == true
    }

    fn log(&self) -> String {
        self.run(&["agent", "logs"]).ok().text()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut stop = Command::new(binary());
        stop.args(["agent", "stop"]);
        self.within(&mut stop);
        let output = stop.output();
        if thread::panicking() {
            eprintln!("{output:?}");
            for log in ["agent.log.1", "agent.log"] {
                eprint!("{}", fs::read_to_string(self.file(log)).unwrap_or_default());
            }
        }
    }
}

fn peers(system: &System) -> usize {
    let output = system.underpass(&["wireguard", "list", "--json"]).ok();
    let peers: serde_json::Value = serde_json::from_str(&output.text()).expect("JSON");
    peers["peers"].as_array().map_or(0, Vec::len)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The first command starts it; those that follow have no lease, no handshake and no certificate
/// to wait for, and ask control nothing at all.
#[test]
fn the_first_command_starts_it_and_the_next_ask_control_nothing() {
    let system = System::start();
    let place = Place::new(&system);
    let console = ["ssh", "console", "-a", "web", "-C", "echo hello; exit 7"];
    let first_byte = |options: &[&str]| {
        let mut command = place.command(&console);
        command
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let started = now();
        let mut session = Background::start(command);
        let mut line = String::new();
        let mut stdout = BufReader::new(session.0.stdout.take().expect("piped"));
        stdout.read_line(&mut line).expect("a line");
        let after = milliseconds(started);
        assert_eq!(line, "hello\n");
        let status = session.0.wait().expect("a status");
        assert_eq!(status.code(), Some(7));
        after
    };
    let without = first_byte(&["--no-agent"]);
    assert!(!place.file("agent.sock").exists(), "not asked for");
    let cold = first_byte(&[]);
    let socket = fs::metadata(place.file("agent.sock")).expect("a socket");
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let directory = fs::metadata(place.file("")).expect("a directory");
    assert_eq!(directory.permissions().mode() & 0o777, 0o700);
    let (pid, before) = (place.pid(), peers(&system));
    assert_eq!(before, 1);

    // Whoever asks control now, command or agent, asks nobody.
    let file = system.data_dir().join("up.json");
    let text = fs::read_to_string(&file).expect("up.json");
    let mut running: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    running["address"] = "127.0.0.1:1".into();
    fs::write(&file, running.to_string()).expect("up.json");
    let warm: Vec<f64> = (0..5).map(|_| first_byte(&[])).collect();
    let refused = place.run(&["apps"]);
    assert!(refused.stderr.contains("nothing listens"), "{refused}");
    fs::write(&file, text).expect("up.json");
    println!(
        "from start to first byte of `ssh console`: {without:.0} ms without an agent, {cold:.0} ms with the start of one, then {warm:.0?} ms"
    );
    assert_eq!((place.pid(), peers(&system)), (pid, 1));
    let status = place.status();
    assert_eq!(
        status["tunnels"].as_array().map(Vec::len),
        Some(1),
        "{status}"
    );
    assert_eq!(status["tunnels"][0]["uses"], 0, "{status}");

    let output = place.run(&["agent", "stop"]).ok();
    assert_eq!(output.text(), "the agent has ended");
    assert_eq!(peers(&system), 0);
    assert!(!place.file("agent.sock").exists());
    let output = place.run(&["agent", "status", "--json"]);
    assert_eq!(
        (output.status.code(), output.text().as_str()),
        (Some(1), r#"{"running":false}"#)
    );
}

/// What commands do, done through the agent.
#[test]
fn every_command_works_through_it() {
    let system = System::start();
    let place = Place::new(&system);
    let (app, instance) = system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);

    let bytes = noise(50);
    let started = now();
    let console = place.command(&["ssh", "console", "-a", "web", "-C", "cat; exit 7"]);
    let output = run(console, &bytes, Duration::from_secs(120));
    assert_eq!(output.status.code(), Some(7), "{}", output.stderr);
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    assert_eq!(output.stderr, "");
    println!(
        "50 MiB there and back through the agent: {:.1} s",
        milliseconds(started) / 1e3
    );

    let output = place.run(&["dig", "TXT", "_apps.internal", "--json"]).ok();
    assert!(output.text().contains(&app.name), "{output}");
    let output = place.run(&["dig", "nowhere.internal"]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("(nx_domain)\nhint: "), "{output}");
    let output = place.run(&["ping", "-c", "1", &host]).ok();
    assert!(output.text().contains("over UDP"), "{output}");
    let output = place.run(&["ping", "-c", "1", "--websockets", &host]).ok();
    assert!(output.text().contains("over WebSocket"), "{output}");
    let stdio = place.command(&["stdio", &host, "22"]);
    let output = run(stdio, b"SSH-2.0-nobody\r\n", LIMIT);
    assert!(output.text().starts_with("SSH-2.0-"), "{output}");
    let output = place.run(&["stdio", &host, "9"]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("(refused)\nhint: "), "{output}");
    let output = place
        .run(&["ssh", "sftp", "ls", "-a", "web", "--json"])
        .ok();
    assert!(output.text().contains("entries"), "{output}");
    let output = place.run(&[
        "ssh",
        "console",
        "-a",
        "web",
        "-u",
        "Not A User",
        "-C",
        "true",
    ]);
    assert_eq!(output.status.code(), Some(255), "{output}");
    assert!(
        output.stderr.contains("(principals_invalid)\nhint: "),
        "{output}"
    );
    // The one way and the other.
    let status = place.status();
    assert_eq!(
        status["tunnels"].as_array().map(Vec::len),
        Some(2),
        "{status}"
    );

    let mut proxy = place.command(&["proxy", "0:22", &host, "--socks", "0", "--json"]);
    proxy.stdout(Stdio::piped());
    let mut proxy = Background::start(proxy);
    let mut lines = BufReader::new(proxy.0.stdout.take().expect("piped")).lines();
    let mut local = || {
        let line = lines.next().expect("a line").expect("a line");
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        json["local"].as_str().expect("an address").to_owned()
    };
    let (ssh, socks) = (local(), local());
    let greets = || {
        let mut stream = std::net::TcpStream::connect(&ssh).expect("the port");
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting, b"SSH-2.0-");
    };
    greets();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20", "--proxy"]);
    curl.args([&format!("socks5h://{socks}"), &format!("http://{host}:22/")]);
    let output = run(curl, b"", LIMIT);
    assert!(output.stderr.contains("HTTP/0.9"), "{output}");
    // A command that lasts longer than its agent has the next one.
    kill(Pid::from_raw(place.pid()), Signal::SIGKILL).expect("a signal");
    greets();
    assert!(place.runs());
}

/// An agent that was killed leaves a socket, a lock file and a lease, and nobody stumbles over
/// them. What went through it is not taken for complete.
#[test]
fn an_agent_that_was_killed_is_followed_by_another() {
    let system = System::start();
    let place = Place::new(&system);
    let (app, instance) = system.instance();
    let host = format!("{}.vm.{}.internal", instance.id, app.name);
    let mut stdio = place.command(&["stdio", &host, "22"]);
    stdio
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut stdio = Background::start(stdio);
    let mut line = String::new();
    let mut stdout = BufReader::new(stdio.0.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("a line");
    assert!(line.starts_with("SSH-2.0-"), "{line}");

    let pid = place.pid();
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a signal");
    let ended = || stdio.0.try_wait().expect("a status");
    let status = wait_for("the end of the stream", Duration::from_secs(10), ended);
    let mut said = String::new();
    let mut stderr = stdio.0.stderr.take().expect("piped");
    stderr.read_to_string(&mut said).expect("text");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("the connection was lost"), "{said}");

    assert!(place.file("agent.sock").exists(), "left behind");
    let output = place.run(&["dig", "web.internal"]).ok();
    assert_eq!(output.stderr, "");
    assert_ne!(place.pid(), pid);
    let output = place.run(&["agent", "start"]).ok();
    assert!(
        output.text().starts_with("an agent runs already (process "),
        "{output}"
    );
}

/// However many commands begin at once, there is one agent and one lease.
#[test]
fn commands_that_begin_at_once_start_one_agent() {
    let system = System::start();
    let place = Place::new(&system);
    for round in 1..=3 {
        let commands: Vec<Background> = (0..8)
            .map(|_| {
                let mut command = place.command(&["dig", "web.internal"]);
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                Background::start(command)
            })
            .collect();
        for mut command in commands {
            let mut said = String::new();
            let mut stderr = command.0.stderr.take().expect("piped");
            stderr.read_to_string(&mut said).expect("text");
            let status = command.0.wait().expect("a status");
            assert!(status.success() && said.is_empty(), "{said}");
        }
        let log = fs::read_to_string(place.file("agent.log")).expect("a log");
        assert_eq!(log.matches(" began ").count(), round, "{log}");
        assert_eq!(log.matches(" opened ").count(), round, "{log}");
        place.run(&["agent", "stop"]).ok();
    }
}

/// Nobody needs it any more: it gives its leases back and ends.
#[test]
fn it_ends_when_nobody_uses_it() {
    let system = System::start();
    let place = Place::new(&system);
    let output = place.run(&["agent", "start", "--idle", "2", "--json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&output.text()).expect("JSON");
    assert_eq!(json["started"], true, "{json}");
    // Used for longer than that, it stays.
    place.run(&["ping", "-c", "5", "web.internal"]).ok();
    assert_eq!(json["pid"], place.pid());
    assert_eq!(peers(&system), 1);
    let gone = || (!place.runs()).then_some(());
    wait_for("the end of the agent", Duration::from_secs(10), gone);
    assert!(!place.file("agent.sock").exists());
    let given_back = || (peers(&system) == 0).then_some(());
    wait_for("the lease", Duration::from_secs(5), given_back);
    let log = place.log();
    assert!(log.contains("nobody uses it"), "{log}");
    // What it wrote down tells nothing that opens anything.
    for secret in ["PRIVATE", "Bearer", "token"] {
        assert!(!log.contains(secret), "{log}");
    }
}

/// Asks the socket who is there, and says how many bytes came back.
const STRANGER: &str = r#"
const socket = require('net').connect(process.argv[1]);
const body = Buffer.from('{"do":"ping"}');
const head = Buffer.from('undrpas\u0001\0\0\0\0', 'latin1');
head.writeUInt32BE(body.length, 8);
let answer = 0;
socket.on('data', (data) => (answer += data.length));
socket.on('error', () => {});
socket.on('close', () => console.log(answer));
socket.write(Buffer.concat([head, body]));
"#;

/// The socket's mode keeps others away; where it does not, the agent does.
#[test]
fn another_user_is_refused() {
    if !root() {
        return;
    }
    let system = System::start();
    let place = Place::new(&system);
    place.run(&["agent", "start"]).ok();
    let ask = |user: u32| {
        let mut command = Command::new("node");
        command.args(["-e", STRANGER]).arg(place.file("agent.sock"));
        command.uid(user).gid(user).current_dir("/");
        run(command, b"", LIMIT).ok().text()
    };
    assert_ne!(ask(0), "0");
    assert_eq!(ask(65_534), "0", "not even let in");
    for (path, mode) in [
        (place.directory.path().to_owned(), 0o755),
        (place.file(""), 0o755),
        (place.file("agent.sock"), 0o666),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    assert_ne!(ask(0), "0");
    assert_eq!(ask(65_534), "0");

    // The directory is open to others now: commands do not trust it, and go on without.
    let output = place.run(&["dig", "web.internal"]).ok();
    assert!(output.stderr.contains("is open to others"), "{output}");
    assert!(output.stderr.contains("\nhint: chmod 700 "), "{output}");
    fs::set_permissions(place.file(""), fs::Permissions::from_mode(0o700)).expect("a mode");
    let log = place.log();
    assert!(log.contains("user 65534"), "{log}");
    // A directory that somebody else owns is his trap.
    nix::unistd::chown(&place.file(""), Some(65_534.into()), None).expect("an owner");
    let output = place.run(&["dig", "web.internal"]).ok();
    assert!(output.stderr.contains("belongs to user 65534"), "{output}");
    let output = place.run(&["agent", "status"]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("\nhint: "), "{output}");
    nix::unistd::chown(&place.file(""), Some(0.into()), None).expect("an owner");
}

/// Nothing that is said on the socket ends the agent or keeps others waiting.
#[test]
fn strange_words_and_silence_are_borne() {
    let system = System::start();
    let place = Place::new(&system);
    place.run(&["agent", "start"]).ok();
    let pid = place.pid();
    let dial = || UnixStream::connect(place.file("agent.sock")).expect("a connection");
    let frame = |length: u32, body: &[u8]| {
        let mut frame = b"undrpas\x01".to_vec();
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(body);
        frame
    };
    let mut silent: Vec<UnixStream> = (0..100).map(|_| dial()).collect();
    for words in [
        noise(1)[..65_536].to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        frame(u32::MAX, b""),
        frame(2, b"{}"),
        frame(16, br#"{"do":"overturn"}"#),
        frame(
            53,
            br#"{"do":"connect","tunnel":1,"host":"","port":70000,"class":"bulk"}"#,
        ),
        frame(300_000, &[b'['; 300_000]),
    ] {
        let mut stranger = dial();
        stranger
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a limit");
        // The agent may have hung up before all of it was said.
        let _ = stranger.write_all(&words);
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{:?}", String::from_utf8_lossy(&answer));
    }
    // Another version hears a number, and nothing else.
    let mut later = dial();
    later
        .write_all(b"undrpas\x07and more")
        .expect("it is heard");
    let mut answer = Vec::new();
    // What was not read of the rest resets the connection.
    let _ = later.read_to_end(&mut answer);
    assert_eq!(answer, b"undrpas\x01");
    // A tunnel that nobody opened.
    let mut guess = dial();
    let body = br#"{"do":"sign","tunnel":1,"data":"AA=="}"#;
    guess
        .write_all(&frame(u32::try_from(body.len()).expect("short"), body))
        .expect("it is heard");
    let mut answer = String::new();
    guess.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("tunnel_gone"), "{answer}");

    place.run(&["dig", "web.internal"]).ok();
    assert_eq!(place.pid(), pid);
    // Those who say nothing are let go.
    let first = silent.first_mut().expect("one");
    first
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a limit");
    assert_eq!(first.read(&mut [0; 1]).expect("the end"), 0);
}

/// An agent of a later version: it says so and hangs up.
const LATER: &str = r#"
require('net').createServer((socket) => {
  socket.on('error', () => {});
  socket.end(Buffer.from('undrpas\u0002whatever this means', 'latin1'));
}).listen(process.argv[1], () => console.log('ready'));
"#;

/// What another version says is not guessed at.
#[test]
fn an_agent_of_another_version_is_left_alone_until_it_is_replaced() {
    let system = System::start();
    let place = Place::new(&system);
    fs::create_dir(place.file("")).expect("a directory");
    fs::set_permissions(place.file(""), fs::Permissions::from_mode(0o700)).expect("a mode");
    let mut later = Command::new("node");
    later
        .args(["-e", LATER])
        .arg(place.file("agent.sock"))
        .stdout(Stdio::piped());
    let mut later = Background::start(later);
    let mut line = String::new();
    let mut stdout = BufReader::new(later.0.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("a line");

    let output = place.run(&["dig", "web.internal"]).ok();
    assert!(output.stderr.contains("version 2"), "{output}");
    assert!(
        output.stderr.contains("\nhint: underpass agent stop"),
        "{output}"
    );
    assert_eq!(output.stderr.lines().count(), 2, "{output}");
    assert!(later.0.try_wait().expect("a status").is_none());
    let output = place.run(&["agent", "start"]).ok();
    assert!(output.text().starts_with("the agent runs"), "{output}");
    assert!(later.0.wait().is_ok());
    assert!(place.runs());
    let output = place.run(&["dig", "web.internal"]).ok();
    assert_eq!(output.stderr, "");
}

/// Where no agent can be, commands say so once and do their work.
#[test]
fn commands_work_where_no_agent_can_be() {
    let system = System::start();
    let place = Place::new(&system);
    // Somebody's file is in the way.
    fs::write(place.file("").with_file_name("underpass"), "").expect("a file");
    let output = place.run(&["dig", "web.internal"]).ok();
    assert!(
        output.stderr.starts_with("underpass: no agent, "),
        "{output}"
    );
    assert_eq!(output.stderr.matches("no agent").count(), 1, "{output}");
    assert!(output.stderr.contains("\nhint: "), "{output}");
    let output = place.run(&["dig", "--no-agent", "web.internal"]).ok();
    assert_eq!(output.stderr, "");
    let mut off = place.command(&["dig", "web.internal"]);
    off.env("UNDERPASS_AGENT", "off");
    assert_eq!(run(off, b"", LIMIT).ok().stderr, "");
    assert_eq!(peers(&system), 0);
}

/// A pipe that the caller of a command waits on is not held open by the agent that it starts.
#[test]
fn the_agent_holds_nothing_of_its_starter() {
    let system = System::start();
    let place = Place::new(&system);
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec 7>&1; "$0" dig web.internal"#])
        .arg(binary());
    place.within(&mut command);
    // Ends when every copy of the pipe is closed.
    let output = run(command, b"", Duration::from_secs(30)).ok();
    assert!(!output.text().is_empty());
    let pid = place.pid();
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).expect("a link");
    assert_eq!(link("cwd"), PathBuf::from("/"));
    assert_eq!(link("fd/0"), PathBuf::from("/dev/null"));
    assert_eq!(link("fd/1"), PathBuf::from("/dev/null"));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a status");
    let session = stat.split(' ').nth(5).and_then(|id| id.parse().ok());
    assert_eq!(session, Some(pid), "{stat}");
}

/// The machine slept for an hour: the lease is asked for again and a handshake made, at once.
#[test]
fn a_machine_that_slept_is_noticed() {
    let system = System::start();
    let place = Place::new(&system);
    let warp = Warp::new();
    let mut start = place.command(&["agent", "start"]);
    warp.apply(&mut start);
    run(start, b"", LIMIT).ok();
    place.run(&["ping", "-c", "1", "web.internal"]).ok();
    warp.set(3600);
    let started = now();
    let output = place.run(&["ping", "-c", "1", "web.internal"]).ok();
    assert!(output.text().ends_with("1 answered"), "{output}");
    println!("a ping after sleep: {:.0} ms", milliseconds(started));
    let slept = || place.log().contains("this machine slept").then_some(());
    wait_for("the log", Duration::from_secs(20), slept);
}

/// Sends pieces through a session and counts the pauses between those that come back.
fn pauses(command: Command, seconds: u64, mut at: impl FnMut(u64)) -> Vec<Duration> {
    let mut command = command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut session = Background::start(command);
    let mut stdin = session.0.stdin.take().expect("piped");
    let mut stdout = session.0.stdout.take().expect("piped");
    let piece = noise(1)[..128 * 1024].to_vec();
    let expected = piece.len() * usize::try_from(seconds * 10).expect("a size");
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut total, mut buffer) = (0, vec![0; 65_536]);
            let (mut pauses, mut last) = (Vec::new(), None);
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                total += n;
                let now = now();
                pauses.extend(last.replace(now).map(|last| now - last));
            }
            (total, pauses)
        });
        let feeder = scope.spawn(move || {
            for _ in 0..seconds * 10 {
                stdin
                    .write_all(&piece)
                    .expect("the session takes its input");
                thread::sleep(Duration::from_millis(100));
            }
        });
        for second in 0..seconds {
            at(second);
            thread::sleep(Duration::from_secs(1));
        }
        feeder.join().expect("the feeder");
        let (total, mut pauses) = reader.join().expect("the reader");
        let status = session.0.wait().expect("a status");
        assert_eq!((total, status.code()), (expected, Some(7)));
        pauses.sort();
        pauses.reverse();
        pauses.truncate(3);
        pauses
    })
}

/// UDP is dropped in mid-session, and the client's network becomes another one: what goes through
/// the agent's tunnel goes on.
#[test]
fn sessions_outlive_changes_of_the_network() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let place = Place::new(&lab.system);
    let command = |arguments: &[&str]| {
        let mut command = lab.underpass(arguments);
        place.within(&mut command);
        command
    };
    let console = ["ssh", "console", "-a", "web", "-C", "cat; exit 7"];
    let longest = pauses(command(&console), 20, |second| match second {
        3 => lab.drops("udp"),
        13 => lab.opens(),
        _ => {}
    });
    println!("through the agent, UDP dropped for 10 s: longest pauses {longest:?}");
    assert!(place.log().contains("another path"), "{}", place.log());
    // Another address, and none of the old.
    let output = lab
        .client
        .run("ip", ["-o", "-4", "addr", "show", "scope", "global"], LIMIT)
        .ok();
    let interface = output
        .text()
        .split_whitespace()
        .nth(1)
        .expect("an interface")
        .to_owned();
    let longest = pauses(command(&console), 20, |second| {
        if second == 3 {
            lab.client
                .ip(["addr", "del", "10.99.7.2/24", "dev", &interface]);
            lab.client
                .ip(["addr", "add", "10.99.7.77/24", "dev", &interface]);
        }
    });
    println!("through the agent, another network: longest pauses {longest:?}");
}
