//! A running `underpass up --demo`, and the commands that find it.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    command::{Background, Log, Output, run},
    namespace::Namespace,
    warp::Warp,
};

/// How long `up` may take to be ready on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// The line that `up --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    /// With a login token in its fragment.
    pub console_url: String,
    /// `wss://host:port/v1/tunnel/GATEWAY`.
    pub relay_url: String,
    /// Where WireGuard goes.
    pub gateway: Gateway,
    /// Of the certificate that it presents, as `Trust::fingerprint` reads it.
    pub fingerprint: String,
    /// What another relay verifies tokens with.
    pub relay_token_key: String,
    /// Where the system keeps its store.
    pub data_dir: PathBuf,
    /// The demo's organisation.
    pub org: String,
    /// Its apps.
    pub apps: Vec<App>,
}

/// The gateway of a running system.
#[derive(Clone, Debug, Deserialize)]
pub struct Gateway {
    /// The last part of the relay's URL.
    pub name: String,
    /// `address:port`, UDP.
    pub endpoint: String,
    /// Base64.
    pub public_key: String,
}

/// An app of the demo.
#[derive(Clone, Debug, Deserialize)]
pub struct App {
    /// `<name>.internal`.
    pub name: String,
    /// Its instances.
    pub instances: Vec<Instance>,
}

/// An instance of the demo.
#[derive(Clone, Debug, Deserialize)]
pub struct Instance {
    /// `<id>.vm.<app>.internal`.
    pub id: String,
    /// Where it pretends to be.
    pub region: String,
    /// Its address in the private network.
    pub address: String,
}

/// A running system. Dropping it stops it and removes its data.
#[derive(Debug)]
pub struct System {
    /// What it said when it was ready.
    pub ready: Ready,
    namespace: Option<String>,
    process: Background,
    log: Log,
    data_dir: PathBuf,
    _directory: TempDir,
}

/// How a system is started. The default listens on loopback, on free ports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup<'a> {
    /// Runs there, reached by others at this address of it: TLS on 8443, UDP on 51820.
    pub namespace: Option<(&'a Namespace, &'a str)>,
    /// Lives by this clock.
    pub clock: Option<&'a Warp>,
    /// More arguments for `up`.
    pub arguments: &'a [&'a str],
}

impl Setup<'_> {
    /// Starts the system and waits until it is ready.
    ///
    /// # Panics
    /// With what it said, when it does not become ready.
    pub fn start(self) -> System {
        let directory = tempfile::tempdir().expect("a directory for the data");
        // Made by the system itself, so that it is as private as it has to be.
        let data_dir = directory.path().join("data");
        let mut command = program(self.namespace.map(|(namespace, _)| namespace.name()));
        command
            .args(["up", "--demo", "--json", "--data-dir"])
            .arg(&data_dir);
        match self.namespace {
            Some((_, address)) => {
                let listen = match address.contains(':') {
                    true => format!("[{address}]:8443"),
                    false => format!("{address}:8443"),
                };
                command.args(["--demo-expose", address, "--listen", &listen]);
            }
            None => {
                command.args(["--listen", "127.0.0.1:0"]);
            }
        }
        command.args(self.arguments);
        // Shells on the instances are this user's: they find an empty home, not his start-up files.
        command
            .env("HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(clock) = self.clock {
            clock.apply(&mut command);
        }
        let mut process = Background::start(command);
        let stdout = process.0.stdout.take().expect("piped");
        let stderr = process.0.stderr.take().expect("piped");
        let (to_us, line) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let _ = to_us.send(lines.next());
            // Read on, so that a second line, which there must not be, shows.
            for line in lines.map_while(Result::ok) {
                eprintln!("up --json printed more than one line: {line}");
            }
        });
        let log = Log::follow(stderr);
        let line = match line.recv_timeout(READY) {
            Ok(Some(Ok(line))) => line,
            other => {
                process.stop();
                panic!(
                    "`underpass up --demo` is not ready: {other:?}\nstderr: {}",
                    log.text()
                );
            }
        };
        let ready: Ready = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("up --json printed {line}: {error}"));
        let namespace = self
            .namespace
            .map(|(namespace, _)| namespace.name().to_owned());
        System {
            ready,
            namespace,
            process,
            log,
            data_dir,
            _directory: directory,
        }
    }
}

impl System {
    /// Starts one on loopback, on free ports.
    pub fn start() -> System {
        Setup::default().start()
    }

    /// Waits until the log says `what`.
    ///
    /// # Panics
    /// When it does not within ten seconds.
    pub fn logs(&self, what: &str) {
        self.log.says(what, Duration::from_secs(10));
    }

    /// A client command of the same machine.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(self.namespace.as_deref());
        command
            .args(arguments)
            .env("UNDERPASS_DATA_DIR", &self.data_dir);
        command
    }

    /// The same, run to its end.
    pub fn underpass(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments), b"", Duration::from_secs(30))
    }

    /// The certificate that the system presents.
    pub fn certificate(&self) -> PathBuf {
        self.data_dir.join("tls/cert.pem")
    }

    /// `https://host:port`.
    pub fn origin(&self) -> &str {
        let url = &self.ready.console_url;
        let after = url.find("://").map_or(0, |at| at + 3);
        let end = url[after..]
            .find(['/', '#', '?'])
            .map_or(url.len(), |at| after + at);
        &url[..end]
    }

    /// The login token of the console URL, or of a fresh one.
    pub fn login_token(&self, url: &str) -> String {
        let (_, fragment) = url.split_once('#').expect("a token in the fragment");
        fragment.rsplit('=').next().unwrap_or(fragment).to_owned()
    }

    /// A console URL with a fresh token.
    pub fn console(&self) -> String {
        self.underpass(&["console"]).ok().text()
    }

    /// Where it keeps its store.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The first instance of the first app.
    pub fn instance(&self) -> (&App, &Instance) {
        let app = &self.ready.apps[0];
        (app, &app.instances[0])
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.0.try_wait(), Ok(None))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Asks the process to end; its exit status.
    pub fn stop(&mut self) -> Option<std::process::ExitStatus> {
        self.process.stop()
    }

    /// Ends the process without a chance to say goodbye.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn kill(&mut self) {
        self.process.0.kill().expect("a process to kill");
        self.process.stop();
    }

    /// A request to the HTTP API by curl: the status and the JSON body.
    pub fn api(&self, method: &str, path: &str, bearer: Option<&str>, body: Option<&str>) -> Reply {
        self.api_with(method, path, bearer, body, &[])
    }

    /// The same, with more arguments for curl.
    pub fn api_with(
        &self,
        method: &str,
        path: &str,
        bearer: Option<&str>,
        body: Option<&str>,
        more: &[&str],
    ) -> Reply {
        let mut command = within(self.namespace.as_deref(), Path::new("curl"));
        command.args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--request",
            method,
        ]);
        command.args(["--write-out", "\n%{http_code}", "--config", "-", "--cacert"]);
        command.arg(self.certificate()).args(more);
        // Bodies may be large, tokens are secret: neither is an argument.
        let file = body.map(|body| {
            let mut file = tempfile::NamedTempFile::new().expect("a file");
            std::io::Write::write_all(&mut file, body.as_bytes()).expect("a body");
            file
        });
        if let Some(file) = &file {
            command.args([
                "--header",
                "Content-Type: application/json",
                "--data-binary",
            ]);
            command.arg(format!("@{}", file.path().display()));
        }
        command.arg(format!("{}{path}", self.origin()));
        let header = bearer.map(|token| format!("header = \"Authorization: Bearer {token}\"\n"));
        let output = run(
            command,
            header.unwrap_or_default().as_bytes(),
            Duration::from_secs(30),
        )
        .ok();
        let text = output.text();
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
        let json = serde_json::from_str(body).unwrap_or(serde_json::Value::Null);
        Reply {
            status: status.parse().expect("an HTTP status"),
            body: body.to_owned(),
            json,
        }
    }

    /// Logs in with a fresh token.
    pub fn session(&self) -> String {
        let token = self.login_token(&self.console());
        let body = serde_json::json!({ "token": token }).to_string();
        let reply = self.api("POST", "/api/v1/login", None, Some(&body));
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json["session"]
            .as_str()
            .expect("a session")
            .to_owned()
    }
}

/// What the HTTP API answered.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The body as it came.
    pub body: String,
    /// The body, when it is JSON.
    pub json: serde_json::Value,
}

impl Reply {
    /// Asserts an error of the API: its status, its code, and that it says what to do.
    ///
    /// # Panics
    /// When it is another.
    pub fn refuses(&self, status: u16, code: &str) {
        let error = &self.json["error"];
        assert_eq!(
            (self.status, error["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.body
        );
        for field in ["message", "hint"] {
            assert!(
                error[field].as_str().is_some_and(|text| text.len() > 5),
                "{field}: {}",
                self.body
            );
        }
    }
}

/// The binary under test: `UNDERPASS_BIN`, or what cargo built beside this test.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    let path = match std::env::var_os("UNDERPASS_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            // target/debug/deps/<this test> -> target/debug/underpass
            let here = std::env::current_exe().expect("the path of this test");
            let debug = here.parent().and_then(Path::parent).expect("target/debug");
            debug.join("underpass")
        }
    };
    assert!(
        path.exists(),
        "{} is not built\ntype: cargo build -p underpass",
        path.display()
    );
    path
}

fn program(namespace: Option<&str>) -> Command {
    within(namespace, &binary())
}

fn within(namespace: Option<&str>, program: &Path) -> Command {
    match namespace {
        None => Command::new(program),
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(program);
            command
        }
    }
}
