//! `underpass instances`

use anyhow::bail;
use serde_json::json;

use crate::{
    client::{
        apps::{self, App},
        args::Common,
    },
    data_dir::DataDirArg,
    up,
};

/// List instances; start and stop those of a demo.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// List instances, of all apps or of one
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  underpass instances list\n  underpass instances list -a web --json"
    )]
    List(ListArgs),
    /// Stop an instance: its name is no longer answered, its SSH server ends
    #[command(after_help = "Example:\n  underpass instances stop 5ddb7031779c9b")]
    Stop(Args),
    /// Start a stopped instance
    #[command(after_help = "Example:\n  underpass instances start 5ddb7031779c9b")]
    Start(Args),
}

/// Arguments of `instances list`.
#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    /// Those of this app alone
    #[arg(long, short)]
    app: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Which one.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The instance's id, as `underpass apps` lists it
    id: String,
    #[command(flatten)]
    data_dir: DataDirArg,
}

/// Lists, or writes a wish to the store, which the demo that owns the instance follows within a
/// second.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    let (args, started) = match command {
        Command::List(args) => return list(args).await,
        Command::Stop(args) => (args, false),
        Command::Start(args) => (args, true),
    };
    up::set_instance_started(&args.data_dir.find()?, &args.id, started)?;
    println!(
        "{} is {}",
        args.id,
        if started { "started" } else { "stopped" }
    );
    Ok(())
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let (api, org) = args.common.scope.open().await?;
    let mut found = apps::list(&api, &org).await?;
    if let Some(name) = &args.app {
        found.retain(|app| app.name == *name);
        if found.is_empty() {
            bail!("there is no app {name:?} in {org}\nhint: underpass apps lists them");
        }
    }
    if !args.common.json {
        apps::print_instances(&found);
        return Ok(());
    }
    let of_app = |app: &App| {
        let name = app.name.clone();
        let line = move |instance: &apps::Instance| {
            json!({
                "app": name,
                "id": instance.id,
                "region": instance.region,
                "address": instance.address,
                "started": instance.started,
            })
        };
        app.instances.iter().map(line).collect::<Vec<_>>()
    };
    let instances: Vec<_> = found.iter().flat_map(of_app).collect();
    println!("{}", json!({ "instances": instances }));
    Ok(())
}
