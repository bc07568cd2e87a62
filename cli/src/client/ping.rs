//! `underpass ping`

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use serde_json::json;

use crate::client::{
    network::{Network, NetworkArgs, explain_at},
    terminal::ended_by_signal,
};

/// Arguments of `ping`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A `.internal` name or an address
    host: String,
    /// How many echo requests
    #[arg(long, short, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Print one line of JSON per answer
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArgs,
}

/// Between two echo requests.
const EVERY: Duration = Duration::from_secs(1);

/// Fails when nothing came back.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let network = Box::pin(Network::open(&args.network)).await?;
    let answered = tokio::select! {
        answered = within(&args, &network) => answered,
        _ = ended_by_signal() => Ok(0),
    };
    network.close().await;
    Ok(if answered? > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn within(args: &Args, network: &Network) -> anyhow::Result<u32> {
    network.ready().await?;
    let host = &args.host;
    let addresses = network.resolve(host).await;
    let addresses = addresses.map_err(|error| explain_at(host, &error))?;
    let address = *addresses.first().context("the name has no address")?;
    if !args.json {
        println!("PING {host} ({address}) over {}", network.transport());
    }
    let mut answered = 0;
    for number in 1..=args.count {
        if number > 1 {
            tokio::time::sleep(EVERY).await;
        }
        match (network.ping(address).await, args.json) {
            (Ok(echo), json) => {
                answered += 1;
                let ms = Duration::from_micros(echo.micros).as_secs_f64() * 1e3;
                if json {
                    println!(
                        "{}",
                        json!({ "seq": number, "address": address, "ms": ms, "transport": echo.transport })
                    );
                } else {
                    println!("from {address}: seq={number} time={ms:.2} ms");
                }
            }
            (Err(error), true) => {
                println!(
                    "{}",
                    json!({ "seq": number, "address": address, "error": error.code })
                );
            }
            (Err(error), false) => println!("seq={number} {} ({})", error.message, error.code),
        }
    }
    if !args.json {
        println!("{} sent, {answered} answered", args.count);
    }
    Ok(answered)
}
