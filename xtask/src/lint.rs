//! `cargo xtask lint`: formats and rules, warnings denied.

use std::{fs, path::Path};

use crate::sh;

/// The native workspaces beside the root's own.
const OTHER_WORKSPACES: &[&str] = &["tests/sim", "bench", "fuzz"];

/// Systems that the client is for, too, and that nothing here runs on: it is compiled, not linked.
pub(crate) const WINDOWS: &str = "x86_64-pc-windows-gnu";
pub(crate) const MAC: &str = "aarch64-apple-darwin";

/// Runs every linter; the first that finds something ends it.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let run = |dir: &str, line: &str| sh::run(&mut sh::line(&root.join(dir), line));
    run(".", "cargo fmt --all --check")?;
    run(
        ".",
        "cargo clippy --workspace --all-targets --quiet -- -D warnings",
    )?;
    let client = |target: &str| {
        let line = format!("cargo clippy --quiet --package underpass --target {target}");
        sh::line(root, &(line + " --no-default-features -- -D warnings"))
    };
    sh::run(&mut client(WINDOWS))?;
    sh::run(client(MAC).envs(apple(root)?))?;
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

/// What ring's C includes of Apple's headers, as far as compiling it takes.
const HEADERS: &[(&str, &str)] = &[
    (
        "TargetConditionals.h",
        "#define TARGET_OS_MAC 1\n#define TARGET_OS_OSX 1\n#define TARGET_OS_IPHONE 0\n#define TARGET_OS_IOS 0\n",
    ),
    ("assert.h", "#define assert(x) ((void)(x))\n"),
    (
        "string.h",
        "#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t);\nvoid *memset(void *, int, size_t);\nvoid *memmove(void *, const void *, size_t);\nint memcmp(const void *, const void *, size_t);\n",
    ),
];

/// A compiler for macOS without its SDK, which nobody may hand on.
fn apple(root: &Path) -> anyhow::Result<[(&'static str, String); 4]> {
    let dir = root.join(".build/apple");
    fs::create_dir_all(&dir)?;
    for (name, text) in HEADERS {
        fs::write(dir.join(name), text)?;
    }
    let dir = dir.display();
    Ok([
        ("SDKROOT", dir.to_string()),
        ("CC_aarch64_apple_darwin", "clang".to_owned()),
        ("AR_aarch64_apple_darwin", "llvm-ar".to_owned()),
        (
            "CFLAGS_aarch64_apple_darwin",
            format!("-ffreestanding -I{dir}"),
        ),
    ])
}
