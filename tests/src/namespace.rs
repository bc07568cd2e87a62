//! Network namespaces, made for one test and removed after it.

use std::{
    ffi::OsStr,
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::wait_for,
    command::{Output, run},
};

/// Long enough for `ip` on a busy machine.
const QUICK: Duration = Duration::from_secs(20);

/// Names begin with this and the process's id, so that those of a killed run can be told apart.
const PREFIX: &str = "underpass-";

/// A network namespace with its loopback up. Dropping it removes it and what is in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes an empty one.
    pub fn new() -> Namespace {
        static STALE: Once = Once::new();
        STALE.call_once(remove_stale);
        let name = format!("{PREFIX}{}-{}", std::process::id(), unique());
        ip(["netns", "add", &name]);
        let namespace = Namespace { name };
        namespace.ip(["link", "set", "lo", "up"]);
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program inside, to its end.
    pub fn run<const N: usize>(
        &self,
        program: &str,
        arguments: [&str; N],
        limit: Duration,
    ) -> Output {
        let mut command = self.command(program);
        command.args(arguments);
        run(command, b"", limit)
    }

    /// Waits until something listens on that TCP port inside.
    pub fn listens(&self, port: u16) {
        let port = format!(":{port} ");
        let listening = || {
            let output = self.run("ss", ["-Hltn"], QUICK);
            output.text().contains(&port).then_some(())
        };
        wait_for("a server", Duration::from_secs(60), listening);
    }

    /// `ip -n NAME ...`, which has to succeed.
    pub fn ip<const N: usize>(&self, arguments: [&str; N]) {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(arguments);
        run(command, b"", QUICK).ok();
    }

    /// Runs `work` on a thread whose sockets, and those of the threads that it starts, are inside.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or `work` panics.
    pub fn enter(&self, work: impl FnOnce() + Send) {
        let file =
            fs::File::open(PathBuf::from("/run/netns").join(&self.name)).expect("the namespace");
        let result = std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
                work();
            });
            inside.join()
        });
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    /// What `/etc/resolv.conf` is for programs started inside from now on.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn set_resolv_conf(&self, text: &str) {
        fs::create_dir_all(self.etc()).expect("/etc/netns");
        fs::write(self.etc().join("resolv.conf"), text).expect("resolv.conf");
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }
}

impl Default for Namespace {
    fn default() -> Namespace {
        Namespace::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Connects two namespaces: 10.99.`net`.1 in the first, 10.99.`net`.2 in the second.
pub fn connect(first: &Namespace, second: &Namespace, net: u8) -> (String, String) {
    let (a, b) = (interface("va"), interface("vb"));
    ip([
        "link",
        "add",
        &a,
        "netns",
        &first.name,
        "type",
        "veth",
        "peer",
        "name",
        &b,
        "netns",
        &second.name,
    ]);
    for (namespace, interface, host) in [(first, &a, 1), (second, &b, 2)] {
        namespace.ip([
            "addr",
            "add",
            &format!("10.99.{net}.{host}/24"),
            "dev",
            interface,
        ]);
        namespace.ip(["link", "set", interface, "up"]);
    }
    (format!("10.99.{net}.1"), format!("10.99.{net}.2"))
}

/// An interface name that nobody else has, at most 15 bytes.
pub fn interface(prefix: &str) -> String {
    format!("{prefix}{}x{}", std::process::id(), unique())
}

/// Runs `ip`, which has to succeed.
pub fn ip<const N: usize>(arguments: [&str; N]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    run(command, b"", QUICK).ok();
}

fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Removes the namespaces of processes that are gone.
fn remove_stale() {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !PathBuf::from("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    // Another run may remove it at the same moment: that it is gone is what counts.
    let _ = Command::new("ip").args(["netns", "del", name]).output();
    let _ = fs::remove_dir_all(PathBuf::from("/etc/netns").join(name));
}
