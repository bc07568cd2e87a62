//! Programs that know nothing of this, by `.internal` name through `stdio`: OpenSSH and what runs
//! over it, and PuTTY. Host certificates are verified, and another authority's are refused.

use std::{fs, process::Command, time::Duration};

use tempfile::TempDir;
use tests::{
    command::run,
    noise,
    system::{System, binary},
};

/// A system, a certified key, and the name of an instance.
struct Lab {
    system: System,
    host: String,
    files: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let system = System::start();
        let (app, instance) = system.instance();
        let host = format!("{}.vm.{}.internal", instance.id, app.name);
        let files = tempfile::tempdir().expect("a directory");
        let lab = Lab {
            system,
            host,
            files,
        };
        lab.system
            .underpass(&["ssh", "issue", &lab.path("id")])
            .ok();
        lab
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.files.path().join(name), text).expect("a file");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.files.path().join(name)).unwrap_or_default()
    }

    /// A new key that certifies nothing here.
    fn stranger(&self) -> String {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f", &self.path("other")]);
        run(command, b"", LIMIT).ok();
        fs::read_to_string(self.path("other.pub")).expect("a key")
    }
}

const LIMIT: Duration = Duration::from_secs(60);

/// ssh, scp, sftp, rsync and git, with the configuration that `ssh config` prints and no other.
#[test]
fn openssh_works_by_name() {
    let lab = Lab::new();
    let config = lab
        .system
        .underpass(&["ssh", "config", &lab.path("id")])
        .ok();
    let trust = "@cert-authority *.internal,fdaa:* ssh-ed25519 ";
    assert!(config.text().contains(trust), "{config}");
    lab.write("config", &config.stdout);
    let openssh = |program: &str, arguments: &[&str], input: &[u8]| {
        let mut command = Command::new(program);
        let config = lab.path("config");
        command.args(["-F", &config, "-o", "BatchMode=yes"]);
        command.args(["-o", "GlobalKnownHostsFile=/dev/null"]);
        command.args(arguments);
        run(command, input, LIMIT)
    };
    let host = &lab.host;

    let output = openssh("ssh", &[host, "echo hello; exit 7"], b"");
    assert_eq!(
        (output.status.code(), output.text().as_str()),
        (Some(7), "hello"),
        "{output}"
    );
    let bytes = noise(20);
    let output = openssh("ssh", &[host, "cat"], &bytes).ok();
    assert!(output.stdout == bytes, "ssh: {}", output.stdout.len());
    lab.write("sent", &bytes);
    let scp = |flags: &[&str], there: &str| {
        let there = format!("{host}:{}", lab.path(there));
        let sent = lab.path("sent");
        let arguments = [flags, &[sent.as_str(), there.as_str()]].concat();
        openssh("scp", &arguments, b"").ok()
    };
    scp(&[], "by-sftp");
    scp(&["-O"], "by-scp");
    assert!(lab.read("by-sftp") == bytes, "scp");
    assert!(lab.read("by-scp") == bytes, "scp -O");
    let batch = format!(
        "put {} {}\nchmod 600 {1}\nget {1} {}\nrename {1} {}\nls -l {}\n",
        lab.path("sent"),
        lab.path("put"),
        lab.path("got"),
        lab.path("renamed"),
        lab.files.path().display(),
    );
    let output = openssh("sftp", &["-b", "-", host], batch.as_bytes()).ok();
    assert!(lab.read("got") == bytes, "sftp get");
    assert!(lab.read("renamed") == bytes, "sftp put and rename");
    assert!(output.text().contains("renamed"), "{output}");
    let output = openssh("sftp", &["-b", "-", host], b"get /nothing/there\n");
    assert_eq!(output.status.code(), Some(1), "{output}");

    let shell = format!(
        "ssh -F {} -o BatchMode=yes -o GlobalKnownHostsFile=/dev/null",
        lab.path("config")
    );
    rsync(&lab, &shell);
    git(&lab, &shell);

    // Another organisation's authority: refused by ssh itself.
    lab.write(
        "id-known_hosts",
        format!("@cert-authority *.internal {}", lab.stranger()),
    );
    let output = openssh("ssh", &[host, "true"], b"");
    assert_eq!(output.status.code(), Some(255), "{output}");
    assert!(
        output.stderr.contains("Host key verification failed"),
        "{output}"
    );
}

/// A directory there, changed, and there again: the second time little is sent.
fn rsync(lab: &Lab, shell: &str) {
    let mut bytes = lab.read("sent");
    fs::create_dir_all(lab.path("tree/deep")).expect("a directory");
    lab.write("tree/deep/large", &bytes);
    lab.write("tree/small", "small");
    let sync = || {
        let mut command = Command::new("rsync");
        command.args(["--archive", "--checksum", "--stats", "-e", shell]);
        command.args([
            &lab.path("tree/"),
            &format!("{}:{}", lab.host, lab.path("copy/")),
        ]);
        run(command, b"", LIMIT).ok()
    };
    sync();
    assert!(lab.read("copy/deep/large") == bytes, "rsync");
    bytes[7_000_000] ^= 1;
    lab.write("tree/deep/large", &bytes);
    let again = sync().text();
    assert!(lab.read("copy/deep/large") == bytes, "rsync again");
    assert_eq!(lab.read("copy/small"), b"small");
    let sent = again.lines().find_map(|line| {
        let sent = line.strip_prefix("Total bytes sent: ")?;
        sent.replace(',', "").parse::<u64>().ok()
    });
    assert!(sent.is_some_and(|sent| sent < 1 << 20), "{again}");
}

/// A clone, a commit pushed back, and what was pushed fetched by the first.
fn git(lab: &Lab, shell: &str) {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        for setting in [
            "user.name=t",
            "user.email=t@t",
            "safe.directory=*",
            "init.defaultBranch=main",
        ] {
            command.args(["-c", setting]);
        }
        command.args(arguments).env("GIT_SSH_COMMAND", shell);
        run(command, b"", LIMIT).ok()
    };
    let (bare, first, second) = (lab.path("bare.git"), lab.path("first"), lab.path("second"));
    let remote = format!("ssh://{}{bare}", lab.host);
    git(&["init", "--quiet", "--bare", &bare]);
    git(&["clone", "--quiet", &remote, &first]);
    lab.write("first/large", noise(5));
    git(&["-C", &first, "add", "large"]);
    git(&["-C", &first, "commit", "--quiet", "-m", "large"]);
    git(&["-C", &first, "push", "--quiet", "origin", "HEAD:main"]);
    git(&["clone", "--quiet", "--branch", "main", &remote, &second]);
    assert!(lab.read("second/large") == noise(5), "git");
    let log = git(&["-C", &second, "log", "--format=%s"]);
    assert_eq!(log.text(), "large");
}

/// PuTTY's plink with a certificate of its own, believing the organisation's host authority and
/// nothing else.
#[test]
fn putty_works_by_name() {
    let lab = Lab::new();
    let puttygen = |arguments: &[&str]| {
        let mut command = Command::new("puttygen");
        command.args(arguments);
        run(command, b"", LIMIT).ok()
    };
    puttygen(&[
        &lab.path("id"),
        "-O",
        "private",
        "-o",
        &lab.path("plain.ppk"),
    ]);
    puttygen(&[
        &lab.path("plain.ppk"),
        "--certificate",
        &lab.path("id-cert.pub"),
        "-o",
        &lab.path("id.ppk"),
    ]);
    let trusted = fs::read_to_string(lab.path("id-known_hosts")).expect("known_hosts");
    let authority = trusted
        .split_whitespace()
        .nth(3)
        .expect("the key of the authority")
        .to_owned();
    fs::create_dir_all(lab.path("putty/sshhostcas")).expect("a directory");
    let believe = |key: &str| {
        let record = format!(
            "PublicKey={key}\nValidity=*.internal\nPermitRSASHA1=0\nPermitRSASHA256=1\nPermitRSASHA512=1\n"
        );
        lab.write("putty/sshhostcas/underpass", record);
    };
    let proxy = format!(
        "{} stdio --data-dir {} %host %port",
        binary().display(),
        lab.system.data_dir().display()
    );
    let plink = |more: &[&str], command: &str, input: &[u8]| {
        let mut plink = Command::new("plink");
        plink.args(["-batch", "-noagent", "-i", &lab.path("id.ppk")]);
        plink.args(["-proxycmd", &proxy]).args(more);
        plink.args([&format!("root@{}", lab.host), command]);
        plink.env("PUTTYDIR", lab.path("putty"));
        run(plink, input, LIMIT)
    };

    believe(&authority);
    let output = plink(&[], "echo hello; exit 7", b"");
    assert_eq!(
        (output.status.code(), output.text().as_str()),
        (Some(7), "hello"),
        "{output}"
    );
    let bytes = noise(5);
    let output = plink(&[], "cat", &bytes).ok();
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());

    // Nobody asks in a batch: what is not believed is refused.
    let stranger = lab.stranger();
    believe(stranger.split_whitespace().nth(1).expect("a key"));
    let output = plink(&[], "echo reached", b"");
    assert_eq!(
        (output.status.code(), output.text().as_str()),
        (Some(1), ""),
        "{output}"
    );
    assert!(output.stderr.contains("host key"), "{output}");
}
