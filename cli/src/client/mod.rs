//! The commands that speak to a running system.

#[cfg_attr(not(unix), path = "no_agent.rs")]
pub(crate) mod agent;
pub(crate) mod apps;
pub(crate) mod args;
pub(crate) mod bridge;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod console;
pub(crate) mod dig;
pub(crate) mod doctor;
pub(crate) mod instances;
pub(crate) mod login;
pub(crate) mod network;
pub(crate) mod orgs;
pub(crate) mod ping;
pub(crate) mod proxy;
pub(crate) mod ssh;
pub(crate) mod stdio;
pub(crate) mod terminal;
pub(crate) mod wireguard;

use std::{io::Write, path::Path};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::{api::Api, platform};

/// An organisation, as control lists it.
#[derive(Debug, Deserialize, serde::Serialize)]
pub(crate) struct Org {
    /// Its name, a DNS label.
    pub(crate) name: String,
}

/// The organisations of the caller.
pub(crate) async fn list(api: &Api) -> anyhow::Result<Vec<Org>> {
    #[derive(Deserialize)]
    struct Orgs {
        orgs: Vec<Org>,
    }
    Ok(api.get::<Orgs>("/api/v1/orgs").await?.orgs)
}

/// Writes a new file that its owner alone can read (mode 0600); an old one stays unless told.
pub(crate) fn write_secret(path: &Path, text: &str, overwrite: bool) -> anyhow::Result<()> {
    let shown = path.display();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    if overwrite {
        // A file that others could read would stay readable: make the new one from nothing.
        if path.exists() {
            std::fs::remove_file(path).with_context(|| format!("cannot replace {shown}"))?;
        }
    } else if path.exists() {
        bail!("{shown} exists already\nhint: choose another name, or say --overwrite");
    }
    let mut file = platform::private(&mut options)
        .open(path)
        .with_context(|| format!("cannot write {shown}"))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("cannot write {shown}"))
}
