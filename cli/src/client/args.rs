//! What many commands take: which system, which organisation, how to print.

use anyhow::bail;

use crate::{
    api::Api,
    client::{Org, list},
    data_dir::DataDirArg,
};

/// Which system a command speaks to.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SystemArg {
    #[command(flatten)]
    pub(crate) data_dir: DataDirArg,
}

/// `--org ORG`, for commands that work within one organisation.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct OrgArg {
    /// The organisation; may be left out where there is only one
    #[arg(
        long,
        short,
        value_name = "ORG",
        env = "UNDERPASS_ORG",
        hide_env_values = true
    )]
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
        let mut names: Vec<String> = orgs.into_iter().map(|org| org.name).collect();
        match names.len() {
            0 => bail!("there is no organisation yet\nhint: underpass orgs create NAME"),
            1 => Ok(names.remove(0)),
            _ => bail!(
                "which organisation?\nhint: --org with one of {}",
                names.join(", ")
            ),
        }
    }
}
