//! `underpass instances`

use crate::{data_dir::DataDirArg, up};

/// Start and stop the instances of a demo.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Stop an instance: its name is no longer answered, its SSH server ends
    #[command(after_help = "Example:\n  underpass instances stop 5ddb7031779c9b")]
    Stop(Args),
    /// Start a stopped instance
    #[command(after_help = "Example:\n  underpass instances start 5ddb7031779c9b")]
    Start(Args),
}

/// Which one.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The instance's id, as `underpass apps` lists it
    id: String,
    #[command(flatten)]
    data_dir: DataDirArg,
}

/// Writes the wish to the store; the demo that owns the instance follows within a second.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    let (args, started) = match command {
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
