//! `login` and `logout` against a real `up`, from a home that knows nothing of it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
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
    fn start() -> Up {
        let home = tempfile::tempdir().expect("a directory");
        let mut child = command(home.path(), &["up", "--listen", "127.0.0.1:0", "--json"])
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
    let up = Up::start();
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
