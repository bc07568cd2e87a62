//! `cargo xtask lint`: formats and rules, warnings denied.

use std::path::Path;

use crate::sh;

/// The workspaces beside the root's own.
pub const OTHER_WORKSPACES: &[&str] = &["tests/sim", "fuzz", "bench"];

/// Runs every linter; the first that finds something ends it.
pub fn run(root: &Path) -> anyhow::Result<()> {
    sh::run(&mut sh::command(
        root,
        &["cargo", "fmt", "--all", "--check"],
    ))?;
    let clippy = [
        "cargo",
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    sh::run(&mut sh::command(root, &clippy))?;
    for workspace in OTHER_WORKSPACES.iter().map(|name| root.join(name)) {
        if workspace.join("Cargo.toml").exists() {
            sh::run(&mut sh::command(
                &workspace,
                &["cargo", "fmt", "--all", "--check"],
            ))?;
            let clippy = [
                "cargo",
                "clippy",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ];
            sh::run(&mut sh::command(&workspace, &clippy))?;
        }
    }
    sh::run(&mut sh::command(
        &root.join("web-client"),
        &["cargo", "fmt", "--all", "--check"],
    ))?;
    let wasm = [
        "cargo",
        "clippy",
        "--quiet",
        "--release",
        "--target",
        "wasm32-unknown-unknown",
        "--",
        "-D",
        "warnings",
    ];
    sh::run(&mut sh::command(&root.join("web-client"), &wasm))?;
    for manifest in ["Cargo.toml", "web-client/Cargo.toml"] {
        let deny = [
            "cargo",
            "deny",
            "--manifest-path",
            manifest,
            "check",
            "--config",
            "deny.toml",
            "bans",
            "licenses",
            "sources",
        ];
        let config = root.join("deny.toml");
        let words: Vec<&std::ffi::OsStr> = deny
            .iter()
            .map(|word| {
                if *word == "deny.toml" {
                    config.as_os_str()
                } else {
                    std::ffi::OsStr::new(word)
                }
            })
            .collect();
        sh::run(&mut sh::command(root, &words))?;
    }
    sh::run(&mut sh::command(
        &root.join("www"),
        &["npm", "run", "--silent", "lint"],
    ))
}
