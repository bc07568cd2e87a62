//! The sessions that `underpass login` keeps, one for each API, in a file that its owner alone can
//! read; one that others can read is refused, as ssh refuses such a key.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use carrier::Trust;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    platform::{self, Access},
    settings::{self, Settings},
};

/// What is kept of a login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    /// The bearer.
    pub(crate) session: String,
    /// Who logged in.
    pub(crate) user: String,
    /// Unix seconds.
    pub(crate) expires: u64,
    /// The SHA-256 of the one certificate that is trusted; the system's roots where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<String>,
}

impl Login {
    /// What the server's certificate has to pass.
    pub(crate) fn trust(&self) -> anyhow::Result<Trust> {
        Ok(match &self.fingerprint {
            Some(fingerprint) => Trust::fingerprint(fingerprint)?,
            None => Trust::System,
        })
    }
}

/// The session is a secret and is not shown.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// The file.
#[derive(Debug)]
pub(crate) struct Credentials {
    file: PathBuf,
    logins: BTreeMap<String, Login>,
}

impl Credentials {
    /// What lies beside the settings; a file that is not there holds nothing.
    pub(crate) fn load(settings: &Settings) -> anyhow::Result<Credentials> {
        Credentials::read(settings.file().with_file_name("credentials.toml"))
    }

    fn read(file: PathBuf) -> anyhow::Result<Credentials> {
        let logins = match settings::read_text(&file, Access::Read)? {
            // What the parser says would quote a line, and the line may be a secret.
            Some(text) => toml::from_str(&text).map_err(|_| {
                anyhow!(
                    "{} cannot be read\nhint: remove it, and log in again",
                    file.display()
                )
            })?,
            None => BTreeMap::new(),
        };
        Ok(Credentials { file, logins })
    }

    /// The file, which need not be there.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The login at an API.
    pub(crate) fn of(&self, url: &Url) -> Option<&Login> {
        self.logins.get(&name(url))
    }

    /// Keeps a login, in place of an older one.
    pub(crate) fn keep(&mut self, url: &Url, login: Login) -> anyhow::Result<()> {
        self.logins.insert(name(url), login);
        self.write()
    }

    /// Forgets a login.
    pub(crate) fn forget(&mut self, url: &Url) -> anyhow::Result<()> {
        self.logins.remove(&name(url));
        self.write()
    }

    fn write(&self) -> anyhow::Result<()> {
        if let Some(dir) = self.file.parent() {
            platform::make_private_dir(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let text = zeroize::Zeroizing::new(toml::to_string(&self.logins)?);
        platform::replace_private(&self.file, text.as_bytes())
    }
}

fn name(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn logins_are_kept_by_origin_in_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials.toml");
        let [one, two] = ["https://one.example/", "https://two.example:8443/"]
            .map(|url| Url::parse(url).unwrap());
        let login = Login {
            session: "upss_secret".into(),
            user: "ann".into(),
            expires: 7,
            fingerprint: None,
        };
        let mut credentials = Credentials::read(file.clone()).unwrap();
        credentials.keep(&one, login.clone()).unwrap();
        credentials.keep(&two, login.clone()).unwrap();
        credentials.forget(&one).unwrap();
        let credentials = Credentials::read(file.clone()).unwrap();
        assert_eq!(credentials.of(&one), None);
        assert_eq!(credentials.of(&two), Some(&login));
        assert!(!format!("{credentials:?}").contains("secret"));
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Credentials::read(file.clone()).unwrap_err().to_string();
        assert!(
            error.contains("it holds secrets\nhint: chmod 600 "),
            "{error}"
        );
    }

    #[test]
    fn a_broken_file_is_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials.toml");
        platform::replace_private(&file, b"upss_secret").unwrap();
        let error = format!("{:?}", Credentials::read(file).unwrap_err());
        assert!(!error.contains("upss_secret"), "{error}");
    }
}
