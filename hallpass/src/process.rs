//! From what a client asks for to a process.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, Pid, access};
use tokio::process::{Child, Command};

use crate::channel::Exit;
use crate::environment::Environment;
use crate::tty::{Slave, lead_session};
use crate::users::Account;

/// A process to start.
pub(crate) struct Plan {
    program: PathBuf,
    name: OsString,
    arguments: Vec<OsString>,
    environment: Environment,
    directory: PathBuf,
    account: Account,
}

impl Plan {
    /// A login shell, or the shell with a command.
    ///
    /// The error is for the client's standard error.
    pub(crate) fn shell(
        account: Account,
        environment: Environment,
        command: Option<Vec<u8>>,
    ) -> Result<Plan, String> {
        let program = account.shell().map_err(|missing| {
            format!("this image has no shell ({missing} is missing). Files can still be copied with sftp and scp.")
        })?;
        let base = program.file_name().unwrap_or_default().to_owned();
        let (name, arguments) = match command {
            Some(command) => (base, vec!["-c".into(), OsString::from_vec(command)]),
            None => {
                let mut name = OsString::from("-");
                name.push(base);
                (name, Vec::new())
            }
        };
        let mut plan = Plan {
            program,
            name,
            arguments,
            environment,
            directory: PathBuf::new(),
            account,
        };
        plan.settle();
        Ok(plan)
    }

    /// A program with its arguments; the list is not empty.
    pub(crate) fn program(
        account: Account,
        environment: Environment,
        argv: &[PathBuf],
    ) -> Option<Plan> {
        let (program, arguments) = argv.split_first()?;
        let mut plan = Plan {
            program: program.clone(),
            name: program.clone().into(),
            arguments: arguments.iter().map(Into::into).collect(),
            environment,
            directory: PathBuf::new(),
            account,
        };
        plan.settle();
        Some(plan)
    }

    /// The variables and the directory that come with the account.
    fn settle(&mut self) {
        let account = &self.account;
        self.environment.set("HOME", account.home.clone());
        self.environment.set("USER", account.name.clone());
        self.environment.set("LOGNAME", account.name.clone());
        if let Ok(shell) = account.shell() {
            self.environment.set("SHELL", shell);
        }
        self.environment.set_default("PATH", DEFAULT_PATH);
        if !self.environment.names_characters() {
            self.environment.set("LANG", DEFAULT_LANG);
        }
        let home = access(&account.home, AccessFlags::X_OK).is_ok() && account.home.is_dir();
        self.directory = if home {
            account.home.clone()
        } else {
            Path::new("/").into()
        };
    }

    /// Starts it with pipes.
    pub(crate) fn start(self) -> io::Result<(Child, Pid)> {
        let mut command = self.command(false);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        spawn(&mut command)
    }

    /// Starts it on a terminal, which it then has to itself.
    pub(crate) fn start_on(self, terminal: Slave) -> io::Result<(Child, Pid)> {
        if let Some(switch) = &self.account.switch {
            nix::unistd::fchown(&terminal.file, Some(switch.uid), None)?;
        }
        let mut command = self.command(true);
        command
            .stdin(terminal.file.try_clone()?)
            .stdout(terminal.file.try_clone()?)
            .stderr(terminal.file);
        spawn(&mut command)
    }

    fn command(self, terminal: bool) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg0(&self.name)
            .args(&self.arguments)
            .current_dir(&self.directory)
            .env_clear();
        command.envs(self.environment.iter());
        lead_session(&mut command, terminal, self.account.switch);
        command
    }
}

/// The command, which holds the descriptors that were passed on, ends here.
fn spawn(command: &mut Command) -> io::Result<(Child, Pid)> {
    let child = command.spawn()?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let id = id.ok_or_else(|| io::Error::other("the process has no number"))?;
    Ok((child, Pid::from_raw(id)))
}

/// What a client is told of how a process ended.
pub(crate) fn exit(status: &io::Result<ExitStatus>) -> Exit {
    let Ok(status) = status else {
        return Exit::Code(LOST);
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(u32::try_from(code).unwrap_or(LOST)),
        (None, signal) => {
            let signal = signal.and_then(|number| Signal::try_from(number).ok());
            let name = signal.map_or("KILL", |signal| {
                let name = signal.as_str();
                name.strip_prefix("SIG").unwrap_or(name)
            });
            Exit::Signal {
                name: name.to_owned(),
                core_dumped: status.core_dumped(),
            }
        }
    }
}

/// The signals that a client may send.
pub(crate) fn signal(name: &str) -> Option<Signal> {
    Some(match name {
        "ABRT" => Signal::SIGABRT,
        "ALRM" => Signal::SIGALRM,
        "CONT" => Signal::SIGCONT,
        "HUP" => Signal::SIGHUP,
        "INT" => Signal::SIGINT,
        "KILL" => Signal::SIGKILL,
        "PIPE" => Signal::SIGPIPE,
        "QUIT" => Signal::SIGQUIT,
        "STOP" => Signal::SIGSTOP,
        "TERM" => Signal::SIGTERM,
        "TSTP" => Signal::SIGTSTP,
        "USR1" => Signal::SIGUSR1,
        "USR2" => Signal::SIGUSR2,
        "WINCH" => Signal::SIGWINCH,
        _ => return None,
    })
}

/// Where nobody says what characters are: without it a shell takes the bytes of a letter that is
/// not ASCII for commands. glibc and musl have this one without any locale files.
const DEFAULT_LANG: &str = "C.UTF-8";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const LOST: u32 = 255;
