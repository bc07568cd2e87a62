//! `cargo xtask lint`: formats and rules, warnings denied.

use std::path::Path;

use crate::sh;

/// The native workspaces beside the root's own.
const OTHER_WORKSPACES: &[&str] = &["tests/sim", "bench"];

/// Runs every linter; the first that finds something ends it.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let run = |dir: &str, line: &str| sh::run(&mut sh::line(&root.join(dir), line));
    run(".", "cargo fmt --all --check")?;
    run(
        ".",
        "cargo clippy --workspace --all-targets --quiet -- -D warnings",
    )?;
    for dir in OTHER_WORKSPACES {
        run(dir, "cargo fmt --all --check")?;
        run(dir, "cargo clippy --all-targets --quiet -- -D warnings")?;
    }
    run("web-client", "cargo fmt --all --check")?;
    run(
        "web-client",
        "cargo clippy --quiet --release --target wasm32-unknown-unknown -- -D warnings",
    )?;
    for manifest in ["Cargo.toml", "web-client/Cargo.toml"] {
        let deny = format!("cargo deny --manifest-path {manifest} --config deny.toml check");
        run(
            ".",
            &format!("{deny} --hide-inclusion-graph bans licenses sources"),
        )?;
    }
    run("www", "npm run --silent lint")
}
