//! `underpass ssh sftp shell`: a line, a deed.

use std::{
    io::{self, BufRead, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow, bail, ensure};
use russh_sftp::{client::SftpSession, protocol::FileAttributes};
use rustyline::{DefaultEditor, error::ReadlineError};
use ssh::client::Session;
use tokio::sync::mpsc;

use super::{Transfer, destination, explain, ls, own_name, printable};
use crate::client::terminal::{ended_by_signal, exit_code_of_signal};

const HELP: &str = "\
cd [PATH]                       go to a directory there
chmod MODE PATH                 change who may do what there, MODE as in 644
get [-R] [-f] REMOTE [LOCAL]    fetch a file; -R a directory, -f over one that exists
reget [-R] REMOTE [LOCAL]       go on with one that was not fetched whole
put [-R] LOCAL [REMOTE]         send a file; -R a directory
reput [-R] LOCAL [REMOTE]       go on with one that was not sent whole
ls [PATH]                       list a directory there
lcd [PATH], lls [PATH], lpwd    the same for this side
mkdir PATH, rmdir PATH          make and remove a directory there
pwd                             where we are there
rename OLD NEW                  rename there
rm PATH                         remove a file there
exit                            leave; so does Ctrl-D
Words with spaces stand in quotes, or have a backslash before each.";

/// The longest line that is read.
const MAX_LINE: usize = 16 * 1024;

/// SIGINT, as every system with it numbers it.
const INTERRUPT: i32 = 2;

/// Runs until the input ends, somebody leaves, or a line of a script fails.
pub(super) async fn run(
    sftp: &SftpSession,
    session: &Session,
    host: &str,
) -> anyhow::Result<ExitCode> {
    let here = std::env::current_dir().context("this directory is gone")?;
    let there = sftp
        .canonicalize(".")
        .await
        .map_err(|error| explain(".", &error))?;
    let mut shell = Shell { sftp, here, there };
    let is_person = io::stdin().is_terminal() && io::stdout().is_terminal();
    let mut lines = if is_person {
        eprintln!("connected to {host}; help lists what can be said");
        Lines::of_person()
    } else {
        Lines::of_script()
    };
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            signal = ended_by_signal() => return Ok(ExitCode::from(exit_code_of_signal(signal))),
        };
        let Some(line) = line else {
            return Ok(ExitCode::SUCCESS);
        };
        let (line, may_fail) = match line.trim().strip_prefix('-') {
            Some(rest) => (rest, true),
            None => (line.trim(), false),
        };
        let done = tokio::select! {
            done = Box::pin(shell.obey(line)) => done,
            signal = ended_by_signal() => match signal {
                INTERRUPT if is_person => Err(anyhow!("interrupted\nhint: reget and reput go on with it")),
                signal => return Ok(ExitCode::from(exit_code_of_signal(signal))),
            },
        };
        match done {
            Ok(Next::Go) => {}
            Ok(Next::Leave) => return Ok(ExitCode::SUCCESS),
            Err(error) if session.is_closed() => return Err(error),
            Err(error) if is_person || may_fail => {
                eprintln!("{}", crate::output::explained(&error));
            }
            Err(error) => return Err(error.context(format!("stopped at: {}", printable(line)))),
        }
    }
}

enum Next {
    Go,
    Leave,
}

/// Where we are, on both sides.
struct Shell<'a> {
    sftp: &'a SftpSession,
    here: PathBuf,
    there: String,
}

impl Shell<'_> {
    async fn obey(&mut self, line: &str) -> anyhow::Result<Next> {
        let words = words(line)?;
        let Some((verb, words)) = words.split_first() else {
            return Ok(Next::Go);
        };
        let mut flags = Flags::default();
        let rest: Vec<&str> = words
            .iter()
            .map(String::as_str)
            .filter(|word| !flags.take(verb, word))
            .collect();
        match (verb.as_str(), rest.as_slice()) {
            ("exit" | "quit" | "bye", []) => return Ok(Next::Leave),
            ("help" | "?", []) => println!("{HELP}"),
            ("pwd", []) => println!("{}", printable(&self.there)),
            ("lpwd", []) => println!("{}", self.here.display()),
            ("cd", []) => self.there = self.canonical(".").await?,
            ("cd", [path]) => self.go(path).await?,
            ("lcd", []) => self.here = home()?,
            ("lcd", [path]) => {
                let path = self.local(path);
                let path = path.canonicalize();
                let path = path.with_context(|| format!("cannot go to {}", rest[0]))?;
                ensure!(path.is_dir(), "{} is no directory", path.display());
                self.here = path;
            }
            ("ls" | "dir", []) => ls(self.sftp, &self.there, false).await?,
            ("ls" | "dir", [path]) => ls(self.sftp, &self.remote(path), false).await?,
            ("lls", []) => list_here(&self.here)?,
            ("lls", [path]) => list_here(&self.local(path))?,
            ("get" | "reget", [remote, local @ ..]) if local.len() < 2 => {
                let remote = self.remote(remote);
                let local = match local.first() {
                    Some(local) if flags.recursive => self.local(local),
                    local => destination(&remote, Some(&self.local(local.unwrap_or(&"."))))?,
                };
                Transfer::new(self.sftp, verb == "reget", flags.force)
                    .get(&remote, &local, flags.recursive)
                    .await?;
            }
            ("put" | "reput", [local, remote @ ..]) if remote.len() < 2 => {
                let local = self.local(local);
                let remote = match remote {
                    [remote, ..] => self.remote(remote),
                    [] => self.remote(&own_name(&local)?),
                };
                Transfer::new(self.sftp, verb == "reput", true)
                    .put(&local, &remote, flags.recursive)
                    .await?;
            }
            ("mkdir", [path]) => self.deed(path, self.sftp.create_dir(self.remote(path)).await)?,
            ("rmdir", [path]) => self.deed(path, self.sftp.remove_dir(self.remote(path)).await)?,
            ("rm", [path]) => self.deed(path, self.sftp.remove_file(self.remote(path)).await)?,
            ("rename" | "mv", [old, new]) => {
                let renamed = self.sftp.rename(self.remote(old), self.remote(new)).await;
                self.deed(old, renamed)?;
            }
            ("chmod", [mode, path]) => {
                let bits = u32::from_str_radix(mode, 8).ok();
                let bits = bits.filter(|bits| *bits <= 0o7777);
                let attributes = FileAttributes {
                    permissions: Some(bits.with_context(|| {
                        format!(
                            "{mode} is no mode\nhint: three or four digits from 0 to 7, as in 644"
                        )
                    })?),
                    ..FileAttributes::empty()
                };
                let set = self.sftp.set_metadata(self.remote(path), attributes).await;
                self.deed(path, set)?;
            }
            _ => bail!(
                "{} cannot be done like that\nhint: help lists what can be said",
                printable(line)
            ),
        }
        Ok(Next::Go)
    }

    fn deed<T>(
        &self,
        path: &str,
        done: Result<T, russh_sftp::client::error::Error>,
    ) -> anyhow::Result<()> {
        done.map(drop)
            .map_err(|error| explain(&self.remote(path), &error))
    }

    async fn go(&mut self, path: &str) -> anyhow::Result<()> {
        let path = self.canonical(&self.remote(path)).await?;
        let meta = self.sftp.metadata(&path).await;
        let meta = meta.map_err(|error| explain(&path, &error))?;
        ensure!(
            meta.file_type().is_dir(),
            "{} is no directory",
            printable(&path)
        );
        self.there = path;
        Ok(())
    }

    async fn canonical(&self, path: &str) -> anyhow::Result<String> {
        let path_there = self.sftp.canonicalize(path).await;
        path_there.map_err(|error| explain(path, &error))
    }

    fn remote(&self, path: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        format!("{}/{path}", self.there.trim_end_matches('/'))
    }

    fn local(&self, path: &str) -> PathBuf {
        self.here.join(path)
    }
}

#[derive(Default)]
struct Flags {
    recursive: bool,
    force: bool,
}

impl Flags {
    /// Takes a word that is a flag of this verb.
    fn take(&mut self, verb: &str, word: &str) -> bool {
        match (verb, word) {
            ("get" | "reget" | "put" | "reput", "-R" | "-r") => self.recursive = true,
            ("get", "-f") => self.force = true,
            _ => return false,
        }
        true
    }
}

fn home() -> anyhow::Result<PathBuf> {
    std::env::home_dir().context("there is no home directory\nhint: lcd PATH")
}

fn list_here(path: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(path);
    let entries = entries.with_context(|| format!("cannot read {}", path.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .map(|entry| {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    names
        .iter()
        .for_each(|name| println!("{}", printable(name)));
    Ok(())
}

/// The words of a line: quotes of both kinds, backslashes outside single ones, a comment after `#`
/// at the beginning.
fn words(line: &str) -> anyhow::Result<Vec<String>> {
    if line.starts_with('#') {
        return Ok(Vec::new());
    }
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some('\''), _) => word.get_or_insert_default().push(letter),
            (_, '\\') => {
                let next = letters.next();
                let next = next.context("a backslash at the end\nhint: two make one")?;
                word.get_or_insert_default().push(next);
            }
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    ensure!(quote.is_none(), "a quote is not closed");
    words.extend(word);
    Ok(words)
}

/// Lines, read by a thread that nobody waits for. The next one is read when the one before is done.
struct Lines {
    asks: mpsc::Sender<()>,
    lines: mpsc::Receiver<anyhow::Result<String>>,
}

impl Lines {
    fn of_person() -> Lines {
        Lines::start(|| {
            let mut editor = DefaultEditor::new()
                .map_err(|error| anyhow!("the terminal cannot be used: {error}"))?;
            Ok(move || {
                loop {
                    match editor.readline("sftp> ") {
                        Ok(line) => {
                            // Where it cannot be remembered, it can still be obeyed.
                            let _ = editor.add_history_entry(line.as_str());
                            return Some(Ok(line));
                        }
                        // Ctrl-C gives up the line.
                        Err(ReadlineError::Interrupted) => {}
                        Err(ReadlineError::Eof) => return None,
                        Err(error) => {
                            return Some(Err(anyhow!("the terminal cannot be read: {error}")));
                        }
                    }
                }
            })
        })
    }

    fn of_script() -> Lines {
        Lines::start(|| {
            let mut stdin = io::stdin().lock();
            Ok(move || {
                let mut line = Vec::new();
                let mut limited = io::Read::take(&mut stdin, MAX_LINE as u64 + 1);
                match limited.read_until(b'\n', &mut line) {
                    Ok(0) => None,
                    Ok(_) if line.len() > MAX_LINE => {
                        Some(Err(anyhow!("a line has more than {MAX_LINE} bytes")))
                    }
                    Ok(_) => {
                        let line = String::from_utf8(line);
                        Some(line.context("a line is no UTF-8"))
                    }
                    Err(error) => Some(Err(error.into())),
                }
            })
        })
    }

    fn start<R>(make: impl FnOnce() -> anyhow::Result<R> + Send + 'static) -> Lines
    where
        R: FnMut() -> Option<anyhow::Result<String>>,
    {
        let (asks, mut asked) = mpsc::channel(1);
        let (answers, lines) = mpsc::channel(1);
        std::thread::spawn(move || {
            let mut read = match make() {
                Ok(read) => read,
                Err(error) => {
                    let _nobody = answers.blocking_send(Err(error));
                    return;
                }
            };
            while asked.blocking_recv().is_some() {
                let Some(line) = read() else {
                    return;
                };
                if answers.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Lines { asks, lines }
    }

    /// None when there are no more.
    async fn next(&mut self) -> anyhow::Result<Option<String>> {
        // A thread that has ended has left what it had to say.
        let _gone = self.asks.send(()).await;
        self.lines.recv().await.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_line() {
        let words = |line: &str| words(line).ok();
        let is = |line: &str, expected: &[&str]| {
            let expected: Vec<String> = expected.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(words(line), Some(expected), "{line}");
        };
        is("", &[]);
        is("  get  a\tb ", &["get", "a", "b"]);
        is(r#"put "a b" 'c"d' e\ f"#, &["put", "a b", "c\"d", "e f"]);
        is(r#"rm "" 'x\y' "x\"y""#, &["rm", "", r"x\y", "x\"y"]);
        is(r#"rm a"b"c"#, &["rm", "abc"]);
        is("# a comment", &[]);
        is("rm \u{fc}#1", &["rm", "\u{fc}#1"]);
        for bad in ["rm \"a", "rm 'a", "rm a\\"] {
            assert_eq!(words(bad), None, "{bad}");
        }
    }
}
