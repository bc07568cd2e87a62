//! Whether the instance of a session is still there.
//!
//! Silence on a session says nothing of where it comes from, and a path that is cut for a while is
//! waited out. But where the gateway answers and the instance does not, it is the instance that is
//! gone, and that is said after seconds.

use std::{net::Ipv6Addr, time::Duration};

use anyhow::anyhow;
use sixpn::NetworkId;
use tokio::time::{sleep, timeout};

use crate::client::network::Network;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many looks in a row, and an instance is gone.
const MISSES: u32 = 3;
/// Instances behind one name that are asked. While any of them answers, none is called gone.
const MOST: usize = 8;

/// Ends when the instances behind `host` do not answer any more, and their gateway does.
pub(super) async fn gone(network: &Network, host: &str) -> anyhow::Error {
    let mut addresses = network.resolve(host).await.unwrap_or_default();
    addresses.truncate(MOST);
    let gateway = addresses.first().and_then(|first| NetworkId::of(*first));
    let Some(gateway) = gateway.map(NetworkId::dns) else {
        // What cannot be asked is not judged.
        return std::future::pending().await;
    };
    let mut judge = Judge::default();
    loop {
        sleep(EVERY).await;
        let asked = addresses.iter().map(|address| answers(network, *address));
        let (hosts, gateway) = tokio::join!(
            futures_util::future::join_all(asked),
            answers(network, gateway)
        );
        if judge.is_gone(hosts.contains(&true), gateway) {
            return anyhow!(
                "{host} does not answer any more, and its gateway does (instance_silent)\n\
                 hint: underpass instances list shows which run"
            );
        }
    }
}

async fn answers(network: &Network, address: Ipv6Addr) -> bool {
    let answer = timeout(PATIENCE, network.ping(address)).await;
    answer.is_ok_and(|echo| echo.is_ok())
}

#[derive(Default)]
struct Judge {
    /// It has answered once: what never does may be behind a filter.
    answered: bool,
    misses: u32,
}

impl Judge {
    fn is_gone(&mut self, instance: bool, gateway: bool) -> bool {
        self.answered |= instance;
        self.misses = match (instance, gateway) {
            (false, true) if self.answered => self.misses + 1,
            _ => 0,
        };
        self.misses >= MISSES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_gone_when_its_gateway_alone_answers() {
        let mut judge = Judge::default();
        for _ in 0..100 {
            assert!(!judge.is_gone(false, true), "it may be behind a filter");
        }
        assert!(!judge.is_gone(true, true));
        for _ in 0..100 {
            assert!(!judge.is_gone(false, false), "the path is cut");
        }
        assert!(!judge.is_gone(false, true));
        assert!(!judge.is_gone(false, true));
        assert!(!judge.is_gone(true, true), "it was late");
        assert!(!judge.is_gone(false, true));
        assert!(!judge.is_gone(false, true));
        assert!(judge.is_gone(false, true));
    }
}
