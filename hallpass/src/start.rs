//! From a request for a program to the program.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use bytes::Bytes;
use tracing::warn;

use crate::environment::Environment;
use crate::process::Plan;
use crate::program::Running;
use crate::sftp;
use crate::tty::{Master, Slave};
use crate::users::Account;

/// What a client asks for.
pub(crate) enum Request {
    Shell,
    Command(Vec<u8>),
    Sftp,
}

/// A terminal that was asked for before the program.
pub(crate) struct Terminal {
    pub(crate) master: Master,
    pub(crate) slave: Slave,
    pub(crate) term: String,
}

/// A program that is about to start.
pub(crate) struct Start {
    pub(crate) running: Running,
    pub(crate) request: Request,
    /// What the certificate says has to run instead.
    pub(crate) forced: Option<String>,
    pub(crate) environment: Environment,
    pub(crate) account: Account,
    pub(crate) terminal: Option<Terminal>,
    /// Why there is no terminal although one was asked for.
    pub(crate) no_terminal: Option<String>,
    pub(crate) sftp_program: Vec<PathBuf>,
}

impl Request {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Request::Shell => "shell",
            Request::Command(_) => "command",
            Request::Sftp => "sftp",
        }
    }

    /// What the certificate says, and what was asked for as a variable.
    fn forced(self, command: String, environment: &mut Environment) -> Request {
        match self {
            Request::Shell => {}
            Request::Command(asked) => {
                environment.set("SSH_ORIGINAL_COMMAND", OsString::from_vec(asked));
            }
            Request::Sftp => environment.set("SSH_ORIGINAL_COMMAND", INTERNAL_SFTP),
        }
        if command == INTERNAL_SFTP {
            Request::Sftp
        } else {
            Request::Command(command.into())
        }
    }
}

impl Start {
    /// Runs the program to its end, or says why it cannot run.
    pub(crate) async fn run(self) {
        let Start {
            running,
            account,
            mut environment,
            terminal,
            ..
        } = self;
        if let Some(reason) = self.no_terminal {
            let line = Bytes::from(format!("hallpass: {reason}\r\n"));
            // A client that is gone is noticed below.
            let _ = running.outbox.stderr(line).await;
        }
        let request = match self.forced {
            Some(command) => self.request.forced(command, &mut environment),
            None => self.request,
        };
        let plan = match request {
            Request::Sftp if account.switch.is_none() => {
                let Running { inbox, outbox, .. } = running;
                return sftp::serve(inbox, outbox, account.home).await;
            }
            Request::Sftp => Plan::program(account, environment, &self.sftp_program)
                .ok_or_else(|| "this server copies files as its own user alone".to_owned()),
            Request::Shell => Plan::shell(account, environment, None),
            Request::Command(command) => Plan::shell(account, environment, Some(command)),
        };
        match (plan, terminal) {
            (Ok(plan), Some(Terminal { master, slave, .. })) => {
                running.on_terminal(plan, master, slave).await;
            }
            (Ok(plan), None) => running.on_pipes(plan).await,
            (Err(reason), _) => {
                warn!("a program did not start: {reason}");
                running.fail(&reason, NOT_FOUND).await;
            }
        }
    }
}

const INTERNAL_SFTP: &str = "internal-sftp";
const NOT_FOUND: u32 = 127;
