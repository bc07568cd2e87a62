//! `cargo xtask test`: every part of the proof, with the time each one took.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::{boundaries, lint, setup, sh, web};

/// A part of the whole run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The wasm client and the page, within their size
    Web,
    /// rustfmt, clippy, cargo deny, prettier, tsc
    Lint,
    /// No room knows what it may not know
    Boundaries,
    /// The crates' own tests, and end to end with network namespaces
    Rust,
    /// The simulated network in virtual time
    Sim,
    /// Hundreds of clients come and go at a relay, and leave nothing behind
    Soak,
    /// The page in headless Chromium
    Browser,
}

/// Runs the parts asked for, or all of them, and fails at the first that fails.
pub(crate) fn run(root: &Path, only: &[Part]) -> anyhow::Result<()> {
    let mut times = Vec::new();
    let all = || Part::value_variants().to_vec();
    let parts = if only.is_empty() {
        all()
    } else {
        only.to_vec()
    };
    timed(&mut times, "setup", || setup::everything(root))?;
    let mut outcome = Ok(());
    for part in &parts {
        let name = part
            .to_possible_value()
            .map_or_else(String::new, |v| v.get_name().to_owned());
        eprintln!("\n== {name}");
        outcome =
            timed(&mut times, &name, || part.run(root)).with_context(|| format!("{name} failed"));
        if outcome.is_err() {
            break;
        }
    }
    eprintln!("\nwhere the time went");
    for (name, took) in &times {
        eprintln!("{:>8.1} s  {name}", took.as_secs_f64());
    }
    outcome?;
    println!("{} passed, 0 failed", parts.len());
    Ok(())
}

impl Part {
    fn run(self, root: &Path) -> anyhow::Result<()> {
        match self {
            Part::Lint => lint::run(root),
            Part::Boundaries => boundaries::run(root),
            Part::Web => {
                web::run(root)?;
                sh::run_with_output(&mut sh::line(root, "node --test web-client/tests/"))
            }
            Part::Rust => {
                build(root)?;
                let test = "cargo test --quiet --workspace --no-fail-fast --exclude tests";
                sh::run_with_output(&mut sh::line(root, test))?;
                // Each of these is a whole system with its peers: one at a time.
                let test = "cargo test --quiet --package tests --no-fail-fast -- --test-threads=1 --nocapture";
                sh::run_with_output(sh::line(root, test).env(BINARY, binary(root)))
            }
            Part::Sim => {
                let dir = root.join("tests/sim");
                sh::run_with_output(&mut sh::line(&dir, "cargo test --quiet"))
            }
            // In the profile of the other tests: building `bench/`, and the product optimised, takes
            // longer than all of it.
            Part::Soak => {
                build(root)?;
                let run = "cargo run --quiet --package tests --bin relay-soak";
                sh::run_with_output(sh::line(root, run).env(BINARY, binary(root)))
            }
            Part::Browser => {
                build(root)?;
                let dir = root.join("tests/browser");
                sh::run_with_output(sh::line(&dir, "npm test --silent").env(BINARY, binary(root)))
            }
        }
    }
}

/// Builds the binary that the end to end tests drive.
fn build(root: &Path) -> anyhow::Result<()> {
    sh::run(&mut sh::line(
        root,
        "cargo build --quiet --package underpass",
    ))
}

/// Runs a measurement of `bench/`, optimised, and with it the programs that it measures.
pub(crate) fn bench(root: &Path, name: &str, json: bool) -> anyhow::Result<()> {
    let dir = root.join("bench");
    let source = dir.join("src/bin").join(format!("{name}.rs"));
    if !source.exists() {
        let mut known: Vec<String> = std::fs::read_dir(dir.join("src/bin"))
            .map(|entries| {
                entries
                    .flatten()
                    .filter_map(|e| e.path().file_stem()?.to_str().map(str::to_owned))
                    .collect()
            })
            .unwrap_or_default();
        known.sort();
        bail!(
            "there is no bench `{name}`\nhint: one of {}",
            known.join(", ")
        );
    }
    let json = if json { "--json" } else { "" };
    let run = format!("cargo run --quiet --release --bin {name} -- {json}");
    let mut run = sh::line(&dir, &run);
    if !WITHOUT_THE_BINARY.contains(&name) {
        let build = "cargo build --quiet --release --package underpass";
        sh::run(&mut sh::line(root, build))?;
        run.env(BINARY, root.join("target/release/underpass"));
    }
    if name == "client" {
        run.env("ONETUN", setup::onetun(root)?);
    }
    sh::run_with_output(&mut run)
}

/// Measurements that serve by a library of the product, in a process of their own.
const WITHOUT_THE_BINARY: &[&str] = &["relay", "relay-idle"];

/// Where the tests look for the binary they drive.
const BINARY: &str = "UNDERPASS_BIN";

fn binary(root: &Path) -> std::path::PathBuf {
    root.join("target/debug/underpass")
}

#[expect(
    clippy::disallowed_methods,
    reason = "the clock on the wall of the person waiting"
)]
fn timed<T>(
    times: &mut Vec<(String, Duration)>,
    name: &str,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let result = work();
    times.push((name.to_owned(), start.elapsed()));
    result
}
