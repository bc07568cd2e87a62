//! What many commands take: which system, which organisation, how to print.

use anyhow::{anyhow, bail};
use url::Url;

use crate::{
    api::{self, Api},
    client::{Org, list, ssh::target::choose},
    credentials::{Credentials, Login},
    data_dir::{DataDir, DataDirArg},
    settings::{self, Settings, Source},
};

/// Which system a command speaks to.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SystemArg {
    #[command(flatten)]
    pub(crate) data_dir: DataDirArg,
    /// Speak to the API at this URL, as `underpass login` logged in there [env: UNDERPASS_URL]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
}

/// A system that was found.
#[derive(Debug)]
pub(crate) enum System {
    /// It runs on this machine, and its data directory is ours.
    Local(DataDir),
    /// It is elsewhere, and somebody has logged in.
    Remote(Url, Login),
}

impl SystemArg {
    /// The one that is named: by flag, then by the environment. Otherwise the one that runs here,
    /// otherwise the one that was logged in to.
    pub(crate) fn find(&self) -> anyhow::Result<System> {
        let settings = Settings::load()?;
        if let Some(url) = &self.url {
            return remote(url, &settings);
        }
        if self.data_dir.is_given() {
            return Ok(System::Local(self.data_dir.find()?));
        }
        let configured = settings.url();
        match configured {
            Some((url, Source::Environment)) => remote(&url, &settings),
            Some((url, _)) => match self.data_dir.find() {
                Ok(dir) if dir.answers() => Ok(System::Local(dir)),
                _ => remote(&url, &settings),
            },
            None => Ok(System::Local(self.data_dir.find()?)),
        }
    }
}

impl System {
    /// The flags by which another process finds it.
    pub(crate) fn flags(&self) -> [String; 2] {
        match self {
            System::Local(dir) => ["--data-dir".into(), dir.path().display().to_string()],
            System::Remote(url, _) => ["--url".into(), api::origin(url)],
        }
    }
}

fn remote(url: &str, settings: &Settings) -> anyhow::Result<System> {
    let url = settings::origin(url).map_err(|hint| anyhow!("{url:?} is no API\nhint: {hint}"))?;
    match Credentials::load(settings)?.of(&url) {
        Some(login) => Ok(System::Remote(url, login.clone())),
        None => {
            let url = api::origin(&url);
            bail!("nobody is logged in to {url}\nhint: underpass login {url}")
        }
    }
}

/// `--org ORG`, for commands that work within one organisation.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct OrgArg {
    /// The organisation; may be left out where there is only one [env: UNDERPASS_ORG]
    #[arg(long, short, value_name = "ORG")]
    pub(crate) org: Option<String>,
}

/// A system and an organisation of it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Scope {
    #[command(flatten)]
    pub(crate) system: SystemArg,
    #[command(flatten)]
    pub(crate) org: OrgArg,
}

/// A scope, and `--json`: what most commands take.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Scope {
    /// The system, logged in, and the organisation meant.
    pub(crate) async fn open(&self) -> anyhow::Result<(Api, String)> {
        let api = Api::open(&self.system).await?;
        let org = self.org.choose(&api).await?;
        Ok((api, org))
    }
}

impl OrgArg {
    /// The organisation meant: the one named, or the only one.
    async fn choose(&self, api: &Api) -> anyhow::Result<String> {
        if let Some(org) = &self.org {
            return Ok(org.clone());
        }
        let orgs: Vec<Org> = list(api).await?;
        if orgs.is_empty() {
            bail!("there is no organisation yet\nhint: underpass orgs create NAME");
        }
        let chosen = choose("organisation", "--org", &orgs, |org| org.name.clone())?;
        Ok(chosen.name.clone())
    }
}
