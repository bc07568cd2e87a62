//! What `up` says when it is ready.

use std::{io::Write, path::PathBuf};

use control::GatewayInfo;
use serde::Serialize;
use serde_json::json;

use crate::up::demo::Demo;

/// Everything a person or a script needs to begin.
pub(crate) struct Report {
    pub(crate) json: bool,
    pub(crate) console_url: String,
    pub(crate) relay_url: String,
    pub(crate) gateway: GatewayInfo,
    /// What another relay verifies tokens with, in base64.
    pub(crate) relay_token_key: String,
    pub(crate) fingerprint: String,
    pub(crate) self_signed: bool,
    pub(crate) data_dir: PathBuf,
    pub(crate) demo: Option<Demo>,
}

/// An app of the demo.
#[derive(Serialize)]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) instances: Vec<Instance>,
}

/// An instance of the demo.
#[derive(Serialize)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) region: String,
    pub(crate) address: String,
}

impl Report {
    /// One line of JSON on stdout, or text for a person.
    pub(crate) fn print(&self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        let text = if self.json {
            self.as_json() + "\n"
        } else {
            self.as_text()
        };
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn as_json(&self) -> String {
        json!({
            "console_url": self.console_url,
            "relay_url": self.relay_url,
            "gateway": {
                "name": self.gateway.name,
                "endpoint": self.gateway.endpoint,
                "public_key": self.gateway.public_key,
            },
            "relay_token_key": self.relay_token_key,
            "fingerprint": self.fingerprint,
            "data_dir": self.data_dir,
            "org": self.demo.as_ref().map(|demo| &demo.org),
            "apps": self.demo.as_ref().map(|demo| &demo.apps),
        })
        .to_string()
    }

    fn as_text(&self) -> String {
        let signed = if self.self_signed {
            ", self-signed: your browser will ask once"
        } else {
            ""
        };
        let mut text = format!(
            "\nUnderpass is up.\n\n  \
             console   {}\n            works once, for ten minutes; `underpass console` prints another\n  \
             relay     {}\n  \
             gateway   {}/udp  {}\n  \
             TLS       SHA-256 {}{signed}\n  \
             data      {}\n",
            self.console_url,
            self.relay_url,
            self.gateway.endpoint,
            self.gateway.public_key,
            self.fingerprint,
            self.data_dir.display(),
        );
        if let Some(demo) = &self.demo {
            text += &demo.as_text();
        }
        text + "\nCtrl-C stops it.\n"
    }
}
