//! `underpass orgs`

use serde_json::json;

use crate::{
    api::Api,
    client::{self, args::SystemArg},
    up,
};

/// List and create organisations.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// List the organisations
    #[command(after_help = "Example:\n  underpass orgs list --json")]
    List(Args),
    /// Create an organisation, with a private network and SSH CAs of its own
    ///
    /// For the owner of the data directory: works where `underpass up` runs.
    #[command(after_help = "Example:\n  underpass orgs create acme")]
    Create {
        /// Its name: letters, digits and dashes
        name: String,
        #[command(flatten)]
        args: Args,
    },
}

/// What every `orgs` command takes.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    system: SystemArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of them.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List(args) => {
            let orgs = client::list(&Api::open(&args.system).await?).await?;
            if args.json {
                println!("{}", json!({ "orgs": orgs }));
            } else {
                orgs.iter().for_each(|org| println!("{}", org.name));
            }
        }
        Command::Create { name, args } => {
            let network = up::create_org(&args.system.data_dir.find()?, &name)?;
            if args.json {
                println!("{}", json!({ "name": name, "network": network }));
            } else {
                println!("{name} has the private network {network}");
            }
        }
    }
    Ok(())
}
