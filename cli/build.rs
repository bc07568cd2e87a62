//! The server roles are in the binary where the feature asks for them and the system has them: `cfg(server)`.
//!
//! The page is embedded from `www/dist`, which `cargo xtask web` builds. Without it the binary
//! still builds, and says at `/` how to get the page.

use std::{env, fs, path::Path};

fn main() -> std::io::Result<()> {
    println!("cargo::rustc-check-cfg=cfg(server)");
    let is = |name: &str| env::var_os(name).is_some();
    if !(is("CARGO_FEATURE_SERVER") && is("CARGO_CFG_UNIX")) {
        return Ok(());
    }
    println!("cargo::rustc-cfg=server");
    let root = env::var("CARGO_MANIFEST_DIR").map_err(std::io::Error::other)?;
    let dist = Path::new(&root).join("../www/dist");
    // rust-embed wants a folder, and cargo looks for changes only in one that exists.
    fs::create_dir_all(&dist)?;
    println!("cargo::rerun-if-changed={}", dist.display());
    Ok(())
}
