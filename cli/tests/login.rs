//! `login` and `logout` against a real `up`, from a home that knows nothing of it.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

const BINARY: &str = env!("CARGO_BIN_EXE_underpass");

/// A system, and the home of whoever owns it.
struct Up {
    child: Child,
    home: tempfile::TempDir,
    ready: serde_json::Value,
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(words)
        .env_clear()
        .env("HOME", home)
        .env("UNDERPASS_AGENT", "off")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(home: &Path, words: &[&str]) -> Output {
    command(home, words).output().expect("runs")
}

fn run_with_input(home: &Path, words: &[&str], input: &str) -> Output {
    let mut child = command(home, words)
        .stdin(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut stdin = child.stdin.take().expect("piped");
    // One that refuses its words reads no input.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("ends")
}

fn out(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

impl Up {
    fn start(more: &[&str]) -> Up {
        let home = tempfile::tempdir().expect("a directory");
        let words = [&["up", "--listen", "127.0.0.1:0", "--json"], more].concat();
        let mut child = command(home.path(), &words)
            .stderr(Stdio::inherit())
            .spawn()
            .expect("runs");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("ready");
        Up {
            child,
            home,
            ready: serde_json::from_str(&line).expect("JSON"),
        }
    }

    fn console_url(&self) -> String {
        out(&run(self.home.path(), &["console"])).trim().to_owned()
    }

    fn fingerprint(&self) -> String {
        let bytes = self.ready["fingerprint"].as_str().expect("text");
        format!("SHA256:{bytes}")
    }

    /// What was said, without what is of this run.
    fn said(&self, output: &Output) -> String {
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let console = self.ready["console_url"].as_str().expect("text");
        let (origin, _) = console.split_once("/#").expect("a fragment");
        let text = text.replace(&self.fingerprint(), "[fingerprint]");
        text.replace(origin, "[origin]")
    }
}

#[test]
fn a_token_logs_in_once_and_a_logout_ends_the_session_there() {
    let up = Up::start(&[]);
    let laptop = tempfile::tempdir().expect("a directory");
    let laptop = laptop.path();
    let by_token = ["login", "--token", "-"];
    let url = up.console_url();
    let mut said = vec![
        up.said(&run(laptop, &["login"])),
        up.said(&run_with_input(laptop, &by_token, "")),
        up.said(&run_with_input(laptop, &by_token, &url)),
        up.said(&run(
            laptop,
            &["login", &url, "--cert-fingerprint", "AB:CD"],
        )),
    ];
    // A certificate that is not trusted hears no token: it is still good.
    let fingerprint = up.fingerprint();
    let pinned = [&by_token[..], &["--cert-fingerprint", &fingerprint]].concat();
    let output = out(&run_with_input(laptop, &pinned, &url));
    assert!(
        output.starts_with("logged in to https://127.0.0.1:"),
        "{output}"
    );
    said.push(up.said(&run_with_input(laptop, &by_token, &url)));

    let settings = laptop.join(".config/underpass");
    let kept = settings.join("credentials.toml");
    assert_eq!(
        fs::metadata(&kept).expect("kept").permissions().mode() & 0o777,
        0o600
    );
    let text = fs::read_to_string(settings.join("config.toml")).expect("settings");
    assert!(!text.contains("up"), "a secret among the settings: {text}");
    assert_eq!(out(&run(laptop, &["orgs", "list"])), "personal\n");
    // Another console address, from the session that there is now.
    let another = out(&run(laptop, &["console"]));
    let other = tempfile::tempdir().expect("a directory");
    out(&run_with_input(other.path(), &pinned, &another));

    let copy = fs::read(&kept).expect("kept");
    out(&run(laptop, &["logout"]));
    said.push(up.said(&run(laptop, &["logout", "https://up.example"])));
    assert!(!fs::read_to_string(&kept).expect("kept").contains("upss_"));
    // Whoever kept the file has nothing either.
    fs::write(&kept, copy).expect("written");
    let (origin, _) = url.split_once("/#").expect("a fragment");
    said.push(up.said(&run(laptop, &["orgs", "list", "--url", origin])));
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o644)).expect("changed");
    let open = up.said(&run(laptop, &["orgs", "list", "--url", origin]));
    said.push(open.replace(laptop.to_str().expect("text"), "[home]"));
    // The other session is another.
    assert_eq!(out(&run(other.path(), &["orgs", "list"])), "personal\n");
    insta::assert_snapshot!(said.join("\n"));
}

/// An HTTP proxy that wants a login, leads every name to this machine, and notes what is asked for.
struct Proxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

/// `me:secret`, as Basic writes it.
const LOGIN: &str = "Proxy-Authorization: Basic bWU6c2VjcmV0\r\n";

impl Proxy {
    fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        // It ends with the test.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let notes = Arc::clone(&notes);
                thread::spawn(move || carry(&client, &notes));
            }
        });
        Proxy { port, asked }
    }
}

fn carry(mut client: &TcpStream, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    let to = head.split(' ').nth(1).unwrap_or_default().to_owned();
    if !head.contains(LOGIN) {
        return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
    }
    let port = to.rsplit(':').next().unwrap_or_default();
    let server = TcpStream::connect(format!("127.0.0.1:{port}"))?;
    asked.lock().expect("no panic").push(to);
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from, mut into) = (server.try_clone()?, client.try_clone()?);
    let back = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut into);
        let _ = into.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut reader, &mut &server);
    let _ = server.shutdown(Shutdown::Write);
    let _ = back.join();
    Ok(())
}

/// A name that the proxy alone can resolve: whatever went past it would find nothing.
#[test]
fn behind_a_proxy_everything_goes_through_it() {
    let up = Up::start(&["--demo", "--host", "up.test"]);
    let proxy = Proxy::start();
    let laptop = tempfile::tempdir().expect("a directory");
    let variable = format!("http://me:secret@127.0.0.1:{}", proxy.port);
    let run = |words: &[&str], variable: &str| {
        let mut command = command(laptop.path(), words);
        command.env("HTTPS_PROXY", variable).output().expect("runs")
    };
    let url = up.console_url();
    let (origin, _) = url.split_once("/#").expect("a fragment");
    let host = origin.trim_start_matches("https://");
    let fingerprint = up.fingerprint();
    let login = ["login", &url, "--cert-fingerprint", &fingerprint];
    let refused = up.said(&run(&login, &variable.replace("secret", "wrong")));
    insta::assert_snapshot!(refused.replace(&proxy.port.to_string(), "[port]"));
    out(&run(&login, &variable));
    assert!(out(&run(&["apps"], &variable)).contains("worker"));
    let of_web = out(&run(
        &["instances", "list", "-a", "web", "--json"],
        &variable,
    ));
    assert!(of_web.contains(r#""app":"web""#) && !of_web.contains("worker"));
    let shell = [
        "ssh",
        "console",
        "-a",
        "worker",
        "--websockets",
        "-C",
        "echo through",
    ];
    assert_eq!(out(&run(&shell, &variable)), "through\n");
    let asked = proxy.asked.lock().expect("no panic").clone();
    assert!(
        asked.len() >= 3 && asked.iter().all(|to| to == host),
        "{asked:?}"
    );
}
