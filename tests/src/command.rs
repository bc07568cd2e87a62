//! Programs: run to their end within a time limit, or kept until dropped.

use std::{
    fmt,
    io::{Read, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use crate::clock;

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, as text.
    pub stderr: String,
}

impl Output {
    /// Its standard output as text, without the last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// The output of a program that had to succeed.
    ///
    /// # Panics
    /// With all that it said, when it did not.
    pub fn ok(self) -> Output {
        assert!(self.status.success(), "{self}");
        self
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        writeln!(f, "stdout: {}", String::from_utf8_lossy(&self.stdout))?;
        write!(f, "stderr: {}", self.stderr)
    }
}

/// Runs `command` to its end, `input` on its standard input.
///
/// # Panics
/// When it cannot be started, or has not ended within `limit` (it is killed then).
pub fn run(mut command: Command, input: &[u8], limit: Duration) -> Output {
    let shown: String = format!("{command:?}").chars().take(600).collect();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let input = input.to_vec();
    let feed = thread::spawn(move || {
        // A program that ends without reading its input is no fault.
        let _ = stdin.map(|mut stdin| stdin.write_all(&input));
    });
    let out = thread::spawn(move || drain(stdout));
    let err = thread::spawn(move || drain(stderr));
    let deadline = clock::now() + limit;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if clock::now() < deadline => thread::sleep(Duration::from_millis(10)),
            other => {
                let _ = child.kill();
                let _ = child.wait();
                let said = err.join().unwrap_or_default();
                panic!(
                    "{shown}: not ended within {} s ({other:?})\nstderr: {}",
                    limit.as_secs(),
                    String::from_utf8_lossy(&said)
                );
            }
        }
    };
    let _ = feed.join();
    Output {
        status,
        stdout: out.join().unwrap_or_default(),
        stderr: String::from_utf8_lossy(&err.join().unwrap_or_default()).into_owned(),
    }
}

fn drain(from: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // What was read before an error counts.
        let _ = from.read_to_end(&mut bytes);
    }
    bytes
}

/// A program that runs until it is dropped: it is asked to end, and killed after two seconds.
#[derive(Debug)]
pub struct Background(pub Child);

impl Background {
    /// Starts `command`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Background {
        let shown = format!("{command:?}");
        Background(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{shown}: {error}")),
        )
    }

    /// Asks it to end and waits.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        if let Ok(Some(status)) = self.0.try_wait() {
            return Some(status);
        }
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let deadline = clock::now() + Duration::from_secs(2);
        while clock::now() < deadline {
            if let Ok(Some(status)) = self.0.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        self.0.wait().ok()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a program has written to its standard error, as far as it is a megabyte.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<String>>);

impl Log {
    /// Collects it, and shows it beside the test's own.
    pub fn follow(mut from: impl Read + Send + 'static) -> Log {
        let log = Log::default();
        let text = Arc::clone(&log.0);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                let said = String::from_utf8_lossy(&chunk[..n]);
                eprint!("{said}");
                let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                if text.len() < 1 << 20 {
                    text.push_str(&said);
                }
            }
        });
        log
    }

    /// All of it until now.
    pub fn text(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until it says `what`.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub fn says(&self, what: &str, limit: Duration) {
        let says = || self.text().contains(what).then_some(());
        clock::wait_for(&format!("{what:?} in the log"), limit, says);
    }
}
