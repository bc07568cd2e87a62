//! Where there is no agent, commands have tunnels of their own: nothing here can be had.

use std::{net::Ipv6Addr, time::Duration};

use ssh::client::Identity;
use tunnel::{Answer, Class, RecordKind};

use crate::{
    api::Api,
    client::{
        args::Scope,
        network::{Echo, Failure, Stream, Way},
    },
};

/// Whether this system has one.
pub(crate) const AVAILABLE: bool = false;

/// A tunnel of an agent that is not there.
pub(crate) enum Borrowed {}

/// Why there is none.
pub(crate) enum Refused {
    /// A tunnel of one's own can be had.
    Unusable(anyhow::Error),
    /// Nothing can.
    #[expect(dead_code, reason = "where there is an agent, it may say so")]
    Failed(anyhow::Error),
}

impl Borrowed {
    pub(crate) async fn open(_: &Scope, _: Way) -> Result<Borrowed, Refused> {
        Err(Refused::Unusable(anyhow::anyhow!("this system has none")))
    }

    pub(crate) fn org(&self) -> &str {
        match *self {}
    }

    pub(crate) async fn api(&self) -> anyhow::Result<&Api> {
        match *self {}
    }

    pub(crate) fn host_cas(&self) -> Vec<String> {
        match *self {}
    }

    pub(crate) fn transport(&self) -> String {
        match *self {}
    }

    pub(crate) async fn ready(&self) -> Result<Duration, Failure> {
        match *self {}
    }

    pub(crate) async fn identity(&self, _: &str) -> anyhow::Result<Identity> {
        match *self {}
    }

    pub(crate) async fn connect(&self, _: &str, _: u16, _: Class) -> Result<Stream, Failure> {
        match *self {}
    }

    pub(crate) async fn lookup(&self, _: &str, _: RecordKind) -> Result<Answer, Failure> {
        match *self {}
    }

    pub(crate) async fn ping(&self, _: Ipv6Addr) -> Result<Echo, Failure> {
        match *self {}
    }
}
