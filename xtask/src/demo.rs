//! `cargo xtask demo`: from a fresh clone to a console URL.

use std::{os::unix::process::CommandExt, path::Path};

use anyhow::Context;

use crate::{setup, sh, web};

/// Builds the page and the binary, then becomes `underpass up --demo ARGS`: the same process, so
/// that Ctrl-C and a supervisor's signals reach it and nothing else is left behind.
pub(crate) fn run(root: &Path, args: &[String]) -> anyhow::Result<()> {
    setup::for_web(root)?;
    web::run(root)?;
    sh::run(&mut sh::line(root, "cargo build --package underpass"))?;
    let binary = root.join("target/debug/underpass");
    eprintln!("$ {} up --demo {}", binary.display(), args.join(" "));
    let error = std::process::Command::new(&binary)
        .args(["up", "--demo"])
        .args(args)
        .exec();
    Err(error).with_context(|| format!("cannot become {}", binary.display()))
}
