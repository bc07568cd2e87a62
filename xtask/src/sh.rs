//! Running other programs: each is printed before it runs.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

/// A command in a folder, from its words.
pub(crate) fn command<S: AsRef<OsStr>>(dir: &Path, words: &[S]) -> Command {
    let mut words = words.iter();
    let program = words.next().map_or(OsStr::new("true"), AsRef::as_ref);
    let mut command = Command::new(program);
    command.args(words).current_dir(dir);
    command
}

/// A command in a folder, from a line of words without quotes.
pub(crate) fn line(dir: &Path, line: &str) -> Command {
    command(dir, &line.split_whitespace().collect::<Vec<_>>())
}

/// Prints a command, runs it, and fails when it does. What it says goes to stderr: our own stdout
/// is for results.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    run_with_output(command.stdout(std::io::stderr()))
}

/// The same, of a command whose stdout is a result.
pub(crate) fn run_with_output(command: &mut Command) -> anyhow::Result<()> {
    let shown = words(command);
    eprintln!("$ {shown}");
    let status = command
        .status()
        .with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// What a command prints on stdout; fails when it does.
pub(crate) fn read(command: &mut Command) -> anyhow::Result<String> {
    let shown = words(command);
    let output = command
        .output()
        .with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        bail!(
            "`{shown}` failed: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The path of a program, looked for on `PATH` and where Debian keeps those of root.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
