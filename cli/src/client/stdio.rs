//! `underpass stdio`

use std::{io, process::ExitCode};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::Class;

use crate::client::{
    network::{Network, NetworkArgs, explain_at},
    terminal::{self, ended_by_signal, exit_code_of_signal},
};

/// Arguments of `stdio`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A `.internal` name or an address
    host: String,
    /// The TCP port
    port: u16,
    #[command(flatten)]
    network: NetworkArgs,
}

/// Joins standard input and output to a port inside the network, each end on its own.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let network = Box::pin(Network::open(&args.network)).await?;
    let ended = tokio::select! {
        ended = within(&args, &network) => ended.map(|()| ExitCode::SUCCESS),
        signal = ended_by_signal() => Ok(ExitCode::from(exit_code_of_signal(signal))),
    };
    network.close().await;
    ended
}

async fn within(args: &Args, network: &Network) -> anyhow::Result<()> {
    network.ready().await?;
    let stream = network.connect(&args.host, args.port, Class::Bulk).await;
    let stream = stream.map_err(|error| explain_at(&args.host, &error))?;
    let (mut from, mut to) = tokio::io::split(stream);
    let feed = tokio::spawn(async move {
        let mut input = terminal::input();
        // A failure to write shows at the reading side too.
        while let Some(Ok(piece)) = input.recv().await {
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
    let mut stdout = tokio::io::stdout();
    let mut buffer = vec![0; 64 * 1024];
    let ended = loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => break Ok(()),
            Ok(n) => n,
            Err(error) => break Err(error).context("the connection was lost\nhint: connect again"),
        };
        let put = async {
            stdout.write_all(&buffer[..n]).await?;
            stdout.flush().await
        };
        match put.await {
            // Nobody reads any more, which is how programs end.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break Ok(()),
            put => put.context("the output cannot be written")?,
        }
    };
    feed.abort();
    ended
}
