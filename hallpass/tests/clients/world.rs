//! A server with its authorities, and the files a client needs.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ssh_key::certificate::{Builder, CertType};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{Certificate, LineEnding, PrivateKey};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};
use underpass_hallpass::{self as hallpass, Config, Counters, FileTrust, HostIdentity, Users};

pub(crate) const USER_CA: u8 = 1;
pub(crate) const HOST_CA: u8 = 2;
pub(crate) const HOST: u8 = 3;
pub(crate) const USER: u8 = 4;
pub(crate) const STRANGER: u8 = 5;

pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) counters: Arc<Counters>,
    _stop: DropGuard,
}

pub(crate) fn key(seed: u8) -> PrivateKey {
    let pair = Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::new(KeypairData::Ed25519(pair), "test").unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "real clients judge by the real clock"
)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

pub(crate) fn seconds() -> u64 {
    now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What a certificate says; the default is a good one.
pub(crate) struct Says {
    pub(crate) kind: CertType,
    pub(crate) ca: u8,
    pub(crate) key: u8,
    pub(crate) principals: Vec<&'static str>,
    pub(crate) valid: Range<u64>,
    pub(crate) critical: Vec<(&'static str, String)>,
    pub(crate) extensions: Vec<&'static str>,
}

impl Default for Says {
    fn default() -> Says {
        Says {
            kind: CertType::User,
            ca: USER_CA,
            key: USER,
            principals: vec!["root", "fly"],
            valid: seconds() - 60..seconds() + 3600,
            critical: Vec::new(),
            extensions: vec!["permit-pty"],
        }
    }
}

impl Says {
    pub(crate) fn sign(&self) -> Certificate {
        let public = key(self.key).public_key().key_data().clone();
        let mut builder =
            Builder::new(vec![1; 16], public, self.valid.start, self.valid.end).unwrap();
        builder
            .cert_type(self.kind)
            .unwrap()
            .key_id("org=acme;user=mia")
            .unwrap();
        if self.principals.is_empty() {
            builder.all_principals_valid().unwrap();
        }
        for principal in &self.principals {
            builder.valid_principal(*principal).unwrap();
        }
        for (name, value) in &self.critical {
            builder.critical_option(*name, value.as_str()).unwrap();
        }
        for name in &self.extensions {
            builder.extension(*name, "").unwrap();
        }
        builder.sign(&key(self.ca)).unwrap()
    }
}

pub(crate) fn host_certificate() -> Certificate {
    let says = Says {
        kind: CertType::Host,
        ca: HOST_CA,
        key: HOST,
        principals: vec!["web.internal", "127.0.0.1"],
        extensions: vec![],
        ..Says::default()
    };
    says.sign()
}

/// A socket with small buffers.
pub(crate) fn narrow_socket() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(32 * 1024).unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    socket
}

impl World {
    pub(crate) async fn new() -> World {
        World::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> World {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        World::over(listener, change)
    }

    /// A server whose connections hold next to nothing on their way.
    pub(crate) fn narrow() -> World {
        let socket = narrow_socket();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        World::over(socket.listen(16).unwrap(), |_| {})
    }

    fn over(listener: TcpListener, change: impl FnOnce(&mut Config)) -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(
            HostIdentity::new(key(HOST), host_certificate()).unwrap(),
            Users::Current,
        );
        config.environment = vec![
            ("PATH".to_owned(), std::env::var("PATH").unwrap()),
            ("FROM_ENTRY_POINT".to_owned(), "yes".to_owned()),
            ("LD_PRELOAD".to_owned(), "/nowhere.so".to_owned()),
        ];
        change(&mut config);
        let counters = Arc::clone(&config.counters);
        let address = listener.local_addr().unwrap();
        let authorities = dir.path().join("user-ca");
        std::fs::write(
            &authorities,
            key(USER_CA).public_key().to_openssh().unwrap(),
        )
        .unwrap();
        let stop = CancellationToken::new();
        let trust = Arc::new(FileTrust::new(authorities));
        tokio::spawn(hallpass::serve(
            Arc::new(config),
            trust,
            listener,
            stop.clone(),
        ));
        let world = World {
            dir,
            address,
            counters,
            _stop: stop.drop_guard(),
        };
        let host_ca = key(HOST_CA).public_key().to_openssh().unwrap();
        world.write("known_hosts", format!("@cert-authority * {host_ca}\n"));
        world.identity("id", &Says::default());
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Writes a private key and its certificate as files that OpenSSH reads.
    pub(crate) fn identity(&self, name: &str, says: &Says) {
        self.write(name, key(says.key).to_openssh(LineEnding::LF).unwrap());
        std::fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
        self.write(
            &format!("{name}-cert.pub"),
            says.sign().to_openssh().unwrap(),
        );
    }

    /// The options that `ssh`, `scp` and `sftp` share.
    pub(crate) fn options(&self, identity: &str) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let options = [
            "BatchMode=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            "LogLevel=ERROR".to_owned(),
            format!("UserKnownHostsFile={}", path("known_hosts")),
            format!("IdentityFile={}", path(identity)),
            format!("Port={}", self.address.port()),
        ];
        let options = options
            .into_iter()
            .flat_map(|option| ["-o".to_owned(), option]);
        ["-F".to_owned(), "none".to_owned()]
            .into_iter()
            .chain(options)
            .collect()
    }

    pub(crate) fn tool(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .args(self.options("id"))
            .env_remove("SSH_AUTH_SOCK")
            .env("LC_ALL", "C.UTF-8");
        command.current_dir(self.dir.path());
        command
    }

    /// `ssh root@127.0.0.1 COMMAND`.
    pub(crate) fn ssh(&self, command_line: &[&str]) -> Command {
        let mut command = self.tool("ssh");
        command.arg("root@127.0.0.1").args(command_line);
        command
    }
}

/// Runs to the end with this on standard input, within a time limit.
pub(crate) async fn run_with(mut command: Command, input: impl AsRef<[u8]>) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.as_ref().to_vec();
    tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let output = tokio::time::timeout(Duration::from_secs(40), child.wait_with_output()).await;
    output.expect("the client hangs").unwrap()
}

pub(crate) async fn run(command: Command) -> Output {
    run_with(command, "").await
}

pub(crate) async fn tool_runs(
    tool: &str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Output {
    let mut command = Command::new(tool);
    command.args(arguments);
    run(command).await
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
pub(crate) fn ok(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{:?}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Bytes that do not compress and repeat late.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Waits for something that is about to be.
pub(crate) async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..200 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never: {what}");
}
