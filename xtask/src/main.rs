//! The project's own commands: `cargo xtask help` lists them.
//!
//! Each prints what it runs, installs what is missing, and says where the time went.

mod boundaries;
mod demo;
mod lint;
mod setup;
mod sh;
mod test;
mod web;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

/// Underpass' own commands.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = false
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need on a Debian 12 with rustup and Node
    Setup,
    /// Build the wasm client and the page into www/dist
    Web,
    /// Build everything, then become `underpass up --demo ARGS`
    ///
    /// Example: cargo xtask demo -- --listen 127.0.0.1:9443
    Demo {
        /// Passed on to `underpass up --demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Lint, build and run every test: what CI runs
    Test {
        /// Run these parts only, in this order
        #[arg(long, value_delimiter = ',', value_enum)]
        only: Vec<test::Part>,
    },
    /// rustfmt, clippy, cargo deny, prettier and tsc
    Lint,
    /// Prove that no room knows what it may not know
    Boundaries {
        /// The checkout to look at
        #[arg(long, default_value_os_t = root())]
        root: PathBuf,
    },
    /// Measure side by side against what a user would pick instead
    ///
    /// Example: cargo xtask bench client --json
    Bench {
        /// Which one: a binary of `bench/`
        name: String,
        /// One line of JSON per measurement on stdout
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let root = root();
    match Cli::parse().command {
        Command::Setup => setup::everything(&root),
        Command::Web => {
            setup::for_web(&root)?;
            web::run(&root)
        }
        Command::Demo { args } => demo::run(&root, &args),
        Command::Test { only } => test::run(&root, &only),
        Command::Lint => {
            setup::everything(&root)?;
            web::run(&root)?;
            lint::run(&root)
        }
        Command::Boundaries { root } => boundaries::run(&root),
        Command::Bench { name, json } => test::bench(&root, &name, json),
    }
}

/// The checkout this binary was built in.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .to_owned()
}
