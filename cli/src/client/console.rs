//! `underpass console`

use crate::{data_dir::DataDirArg, up};

/// Print a fresh URL of the browser console. It works once, for ten minutes.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    data_dir: DataDirArg,
    /// Print {"console_url": ...}
    #[arg(long)]
    json: bool,
}

/// Makes a login token and prints the URL that carries it in its fragment.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let dir = args.data_dir.find()?;
    let running = dir.running()?;
    let url = up::console_url(&running.url, &up::local_login_token(&dir)?);
    if args.json {
        println!("{}", serde_json::json!({ "console_url": url }));
    } else {
        println!("{url}");
    }
    Ok(())
}
