//! SFTP, in this process.
//!
//! Paths are text: a file whose name is not UTF-8 is listed with replacement characters and cannot
//! be opened. Requests are answered one after the other, so memory stays flat however many a
//! client sends ahead.

mod files;
mod stream;

use std::path::PathBuf;

use russh_sftp::server::{Config, run_with_config};
use tokio::sync::oneshot;

use self::files::Files;
use self::stream::Stream;
use crate::channel::{Exit, Inbox, Outbox};

/// Serves one channel until the client ends it.
pub(crate) async fn serve(inbox: Inbox, outbox: Outbox, home: PathBuf) {
    let (running, ended) = oneshot::channel();
    let stream = Stream::new(inbox, &outbox, running);
    run(stream, home).await;
    // The library's task holds the stream, and drops it at its end.
    let _: Result<(), _> = ended.await;
    outbox.finish(Exit::Code(0)).await;
}

/// Serves SFTP on standard input and output as the user of this process, relative to its `HOME`.
///
/// For a program that a server starts as another user: see [`Config::sftp_program`].
///
/// [`Config::sftp_program`]: crate::Config::sftp_program
pub async fn serve_stdio() {
    let home = std::env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from);
    let (running, ended) = oneshot::channel();
    let stream = stream::on_stdio(running);
    run(stream, home).await;
    let _: Result<(), _> = ended.await;
}

async fn run<S>(stream: S, home: PathBuf)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let config = Config {
        max_client_packet_len: MAX_PACKET,
    };
    run_with_config(stream, Files::new(home), config).await;
}

/// The largest request, and the largest answer: a little more than the largest read or write.
const MAX_PACKET: u32 = 256 * 1024;
