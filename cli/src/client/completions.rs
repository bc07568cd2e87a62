//! `underpass completions`

use clap_complete::Shell;

/// Arguments of `completions`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script for the whole of `command`.
pub(crate) fn run(args: &Args, command: &mut clap::Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "underpass", &mut script);
    print!("{}", String::from_utf8(script)?);
    Ok(())
}
