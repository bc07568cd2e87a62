//! How many forwarded queries wait at once: in all, and of one network.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sixpn::NetworkId;

/// Forwarded queries that wait at once, in all; each holds a socket.
const IN_ALL: usize = 256;
/// The same of one network: what one network asks leaves room for the others.
const OF_NETWORK: usize = 32;

/// Who waits.
#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<HashMap<NetworkId, usize>>);

/// Why there is no share.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Network,
    All,
}

/// A place among those that wait, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    network: NetworkId,
}

impl Shares {
    pub(crate) fn take(self: &Arc<Shares>, network: NetworkId) -> Result<Share, Full> {
        let mut waiting = self.waiting();
        let of_network = waiting.get(&network).copied().unwrap_or(0);
        if of_network >= OF_NETWORK {
            return Err(Full::Network);
        }
        // At most IN_ALL networks wait.
        if waiting.values().sum::<usize>() >= IN_ALL {
            return Err(Full::All);
        }
        waiting.insert(network, of_network + 1);
        Ok(Share {
            shares: self.clone(),
            network,
        })
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<NetworkId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut waiting = self.shares.waiting();
        if let Some(of_network) = waiting.get_mut(&self.network) {
            *of_network -= 1;
            if *of_network == 0 {
                waiting.remove(&self.network);
            }
        }
    }
}

/// A place is no part of what is asked.
impl PartialEq for Share {
    fn eq(&self, _: &Share) -> bool {
        true
    }
}

impl Eq for Share {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_share_and_all_have_an_end() {
        let shares = Arc::new(Shares::default());
        let take = |id| shares.take(NetworkId::new(id).unwrap());
        let mut held: Vec<_> = (0..32).map(|_| take(1).unwrap()).collect();
        assert_eq!(take(1), Err(Full::Network));
        for id in 2..=8 {
            held.extend((0..32).map(|_| take(id).unwrap()));
        }
        assert_eq!(take(9), Err(Full::All));
        held.pop();
        held.push(take(9).unwrap());
        assert_eq!(take(9), Err(Full::All));
        held.clear();
        assert!(shares.waiting().is_empty(), "nothing is remembered");
    }
}
