//! `underpass apps`

use serde::{Deserialize, Serialize};

use crate::{api::Api, client::args::Common};

/// List apps and their instances.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  underpass apps\n  underpass apps --org demo --json")]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
}

/// What control answers for an organisation's apps.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Apps {
    apps: Vec<App>,
}

/// An app.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) instances: Vec<Instance>,
}

/// An instance of an app.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) region: String,
    pub(crate) address: String,
    pub(crate) started: bool,
}

/// The apps of an organisation.
pub(crate) async fn list(api: &Api, org: &str) -> anyhow::Result<Vec<App>> {
    let apps: Apps = api.get(&format!("/api/v1/orgs/{org}/apps")).await?;
    Ok(apps.apps)
}

/// Prints one line per instance.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let (api, org) = args.common.scope.open().await?;
    let apps = Apps {
        apps: list(&api, &org).await?,
    };
    if args.common.json {
        println!("{}", serde_json::to_string(&apps)?);
        return Ok(());
    }
    print_instances(&apps.apps);
    Ok(())
}

/// A line per instance, below a line of titles.
pub(crate) fn print_instances<'a>(apps: impl IntoIterator<Item = &'a App>) {
    println!(
        "{:<16} {:<16} {:<8} {:<8} ADDRESS",
        "APP", "INSTANCE", "REGION", "STATE"
    );
    for app in apps {
        for instance in &app.instances {
            let state = if instance.started {
                "started"
            } else {
                "stopped"
            };
            println!(
                "{:<16} {:<16} {:<8} {state:<8} {}",
                app.name, instance.id, instance.region, instance.address
            );
        }
    }
}
