//! Installing what is missing on a fresh Debian 12 with rustup and Node.
//!
//! As root nothing is asked; otherwise the one command to type is printed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::{lint, sh};

/// A program and the Debian package that holds it.
type Tool = (&'static str, &'static str);

/// Compiling: C for ring and SQLite.
const BUILD: &[Tool] = &[("cc", "build-essential"), ("git", "git")];

/// The web build: ring's C for wasm32, and its archiver.
const WEB: &[Tool] = &[("clang", "clang"), ("llvm-ar", "llvm"), ("patch", "patch")];

/// Checking the client for Windows: ring's C.
const WINDOWS: &[Tool] = &[("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64")];

/// Clients that nobody here wrote, and the network they are tried on.
const TEST: &[Tool] = &[
    ("chromium", "chromium"),
    ("curl", "curl"),
    ("dig", "dnsutils"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("less", "less"),
    ("nft", "nftables"),
    ("pebble", "pebble"),
    ("plink", "putty-tools"),
    ("pg_ctlcluster", "postgresql"),
    ("rsync", "rsync"),
    ("ssh", "openssh-client"),
    ("tmux", "tmux"),
    ("vi", "vim-tiny"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
];

/// The version of cargo-deny that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

/// The version that the figures of `docs/client.md` are of.
const ONETUN: &str = "0.3.10";

/// All that any command needs.
pub(crate) fn everything(root: &Path) -> anyhow::Result<()> {
    debian(root, &[BUILD, WEB, WINDOWS, TEST])?;
    rust(
        root,
        &[WASM, lint::WINDOWS, lint::MAC],
        &["clippy", "rustfmt"],
    )?;
    cargo_deny(root)?;
    npm(root)
}

/// What building the page needs.
pub(crate) fn for_web(root: &Path) -> anyhow::Result<()> {
    debian(root, &[BUILD, WEB])?;
    rust(root, &[WASM], &[])?;
    npm(root)
}

fn debian(root: &Path, groups: &[&[Tool]]) -> anyhow::Result<()> {
    let mut missing: Vec<&str> = groups
        .iter()
        .flat_map(|group| group.iter())
        .filter(|(program, _)| sh::which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root()? {
        bail!(
            "missing: {}\nhint: sudo apt-get update && sudo apt-get install --yes {}",
            missing.join(", "),
            missing.join(" ")
        );
    }
    let mut update = sh::line(root, "apt-get update --quiet=2");
    sh::run(update.env("DEBIAN_FRONTEND", "noninteractive"))?;
    let install = "apt-get install --yes --quiet=2 --no-install-recommends";
    let mut install = sh::line(root, install);
    sh::run(
        install
            .args(missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn is_root() -> anyhow::Result<bool> {
    Ok(sh::read(&mut sh::line(Path::new("/"), "id -u"))?.trim() == "0")
}

const WASM: &str = "wasm32-unknown-unknown";

fn rust(root: &Path, targets: &[&str], components: &[&str]) -> anyhow::Result<()> {
    let has = |kind: &str| {
        sh::read(&mut sh::line(
            root,
            &format!("rustup {kind} list --installed"),
        ))
    };
    let installed = has("target")?;
    for target in targets.iter().filter(|name| !installed.contains(**name)) {
        sh::run(&mut sh::line(root, &format!("rustup target add {target}")))?;
    }
    let installed = has("component")?;
    for component in components.iter().filter(|name| !installed.contains(**name)) {
        sh::run(&mut sh::line(
            root,
            &format!("rustup component add {component}"),
        ))?;
    }
    Ok(())
}

fn cargo_deny(root: &Path) -> anyhow::Result<()> {
    let version = sh::read(&mut sh::line(root, "cargo deny --version"));
    if version.is_ok_and(|text| text.contains(CARGO_DENY)) {
        return Ok(());
    }
    let install = format!("cargo install --locked --quiet cargo-deny@{CARGO_DENY}");
    sh::run(&mut sh::line(root, &install))
}

/// What the client is measured beside, installed where nothing else looks for it.
pub(crate) fn onetun(root: &Path) -> anyhow::Result<PathBuf> {
    let tools = root.join("target/bench-tools");
    let program = tools.join("bin/onetun");
    let version = sh::read(&mut sh::command(
        root,
        &[program.as_os_str(), "--version".as_ref()],
    ));
    if !version.is_ok_and(|text| text.contains(ONETUN)) {
        let package = format!("onetun@{ONETUN}");
        let install = [
            "cargo", "install", "--locked", "--quiet", "--force", &package, "--root",
        ];
        sh::run(sh::command(root, &install).arg(&tools))?;
    }
    Ok(program)
}

/// Installs the npm packages of each folder whose lock file is newer than what lies there.
fn npm(root: &Path) -> anyhow::Result<()> {
    if sh::which("node").is_none() || sh::which("npm").is_none() {
        bail!("Node is missing\nhint: install Node 20 or later, https://nodejs.org");
    }
    for folder in ["www", "web-client", "tests/browser"] {
        let dir = root.join(folder);
        let Ok(lock) = fs::read(dir.join("package-lock.json")) else {
            continue;
        };
        let stamp = dir.join("node_modules/.underpass-lock");
        if fs::read(&stamp).is_ok_and(|installed| installed == lock) {
            continue;
        }
        let install = "npm ci --no-audit --no-fund --loglevel=error";
        sh::run(&mut sh::line(&dir, install))?;
        fs::create_dir_all(dir.join("node_modules"))?;
        fs::write(&stamp, lock).with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    Ok(())
}
