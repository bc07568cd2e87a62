//! The person's ssh-agent: a certified key is put into it, and sessions ask it from afar.
//!
//! russh's own client of agents adds no certificates, so that message is written here.

use std::{io, time::Duration};

use anyhow::{Context, anyhow, bail};
use ssh::client::{Channel, Output};
use ssh_key::{Certificate, PrivateKey, private::KeypairData};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use zeroize::Zeroizing;

use crate::platform;

/// A connection to the agent.
pub(super) struct Connection<S>(S);

/// How long an agent may take; it may ask its person first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects, or says what to do.
pub(super) async fn connect() -> anyhow::Result<impl AsyncRead + AsyncWrite + Send + Unpin> {
    match platform::ssh_agent().await {
        Some(Ok(stream)) => Ok(stream),
        Some(Err(error)) => Err(anyhow!(
            "the ssh-agent does not answer: {error} (agent_unreachable)\nhint: is it still running? eval \"$(ssh-agent)\" starts one"
        )),
        None => {
            bail!("no ssh-agent is running (no_agent)\nhint: eval \"$(ssh-agent)\" starts one")
        }
    }
}

impl Connection<()> {
    /// See [`connect`].
    pub(super) async fn open()
    -> anyhow::Result<Connection<impl AsyncRead + AsyncWrite + Send + Unpin>> {
        Ok(Connection(connect().await?))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Adds a certified key, which the agent forgets by itself after `lifetime`.
    pub(super) async fn add(
        mut self,
        key: &PrivateKey,
        certificate: &Certificate,
        lifetime: Duration,
    ) -> anyhow::Result<()> {
        let message = add_message(key, certificate, lifetime)?;
        let exchange = async {
            let length = u32::try_from(message.len()).map_err(io::Error::other)?;
            self.0.write_all(&length.to_be_bytes()).await?;
            self.0.write_all(&message).await?;
            self.0.flush().await?;
            let length = self.0.read_u32().await?;
            if length == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.0.read_u8().await
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await;
        match answer.context("the ssh-agent does not answer")? {
            Ok(SUCCESS) => Ok(()),
            Ok(_) => bail!(
                "the ssh-agent refused the key (agent_refused)\nhint: is it locked (ssh-add -X), or one that takes no keys?"
            ),
            Err(error) => Err(anyhow!(
                "the ssh-agent broke off: {error} (agent_unreachable)\nhint: try again"
            )),
        }
    }
}

/// `SSH_AGENTC_ADD_ID_CONSTRAINED` with an ed25519 key and its certificate
/// (draft-ietf-sshm-ssh-agent, section 3.2, as OpenSSH writes it for certificates).
fn add_message(
    key: &PrivateKey,
    certificate: &Certificate,
    lifetime: Duration,
) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let KeypairData::Ed25519(pair) = key.key_data() else {
        bail!("only ed25519 keys are made here");
    };
    let seconds = u32::try_from(lifetime.as_secs())?;
    anyhow::ensure!(
        seconds > 0,
        "the certificate has ended already\nhint: compare the clock of this machine with the server's"
    );
    let secret = Zeroizing::new(pair.to_bytes());
    let mut message = Zeroizing::new(vec![ADD_CONSTRAINED]);
    for field in [
        certificate.algorithm().to_certificate_type().as_bytes(),
        &certificate.to_bytes()?,
        pair.public.as_ref(),
        secret.as_slice(),
        certificate.comment().as_bytes(),
    ] {
        message.extend_from_slice(&u32::try_from(field.len())?.to_be_bytes());
        message.extend_from_slice(field);
    }
    message.push(LIFETIME);
    message.extend_from_slice(&seconds.to_be_bytes());
    Ok(message)
}

const ADD_CONSTRAINED: u8 = 25;
const LIFETIME: u8 = 1;
const SUCCESS: u8 = 6;

/// Connections of the other side's programs at a time that wait to be taken.
pub(super) const WAITING: usize = 16;

/// Joins channels from the other side to the agent, each to a connection of its own, for as long as
/// there is a session.
pub(super) async fn serve(mut channels: mpsc::Receiver<Channel>) {
    while let Some(channel) = channels.recv().await {
        tokio::spawn(join(channel));
    }
}

async fn join(channel: Channel) {
    let (mut read, write) = channel.split();
    if let Ok(agent) = connect().await {
        let (mut from, mut to) = tokio::io::split(agent);
        let questions = async {
            while let Some(output) = read.next().await {
                match output {
                    Output::Stdout(bytes) => to.write_all(&bytes).await?,
                    Output::Eof => break,
                    Output::Stderr(_) | Output::Exit(_) => {}
                }
            }
            to.shutdown().await
        };
        let answers = async {
            let mut writer = write.writer();
            tokio::io::copy(&mut from, &mut writer).await?;
            writer.shutdown().await
        };
        // Either end may break off: what is left to do is to close the channel.
        let _ = tokio::try_join!(questions, answers);
    }
    let _ = write.close().await;
}
