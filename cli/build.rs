//! The page is embedded from `www/dist`, which `cargo xtask web` builds. Without it the binary
//! still builds, and says at `/` how to get the page.

use std::{env, fs, path::Path};

fn main() -> std::io::Result<()> {
    let root = env::var("CARGO_MANIFEST_DIR").map_err(std::io::Error::other)?;
    let dist = Path::new(&root).join("../www/dist");
    // rust-embed wants a folder, and cargo looks for changes only in one that exists.
    fs::create_dir_all(&dist)?;
    println!("cargo::rerun-if-changed={}", dist.display());
    Ok(())
}
