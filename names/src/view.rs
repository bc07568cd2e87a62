//! What one network looks like to its members: the only thing that answers are made of.

use std::{net::Ipv6Addr, sync::Arc};

use sixpn::NetworkId;

/// One network, whole: there is no way from a view to another network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkView {
    /// Apps of this network, with every instance they have, started or not.
    pub apps: Vec<AppView>,
    /// WireGuard peers that hold a lease.
    pub peers: Vec<PeerView>,
    /// The organisation's SSH user CAs, one `ssh-ed25519 AAAA...` line each; two during a rotation.
    pub user_cas: Vec<String>,
    /// The organisation's SSH host CAs, likewise.
    pub host_cas: Vec<String>,
}

/// An app and its instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppView {
    /// A DNS label.
    pub name: String,
    /// Every instance, started or not: names of stopped ones exist and have no address.
    pub instances: Vec<InstanceView>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// A DNS label.
    pub id: String,
    /// A DNS label.
    pub region: String,
    /// The address it listens on.
    pub address: Ipv6Addr,
    /// Whether it answers under the app's names.
    pub started: bool,
    /// Its process group, a DNS label.
    pub group: String,
}

/// One WireGuard peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// A DNS label.
    pub name: String,
    /// The peer's own address within its range.
    pub address: Ipv6Addr,
}

/// Where views come from. Called once per query, on the task that answers: keep views at hand
/// rather than making one each time.
pub trait Directory: Send + Sync + 'static {
    /// The network as it stands; none for a number that nobody holds.
    fn view(&self, network: NetworkId) -> Option<Arc<NetworkView>>;
}

impl<D: Directory + ?Sized> Directory for Arc<D> {
    fn view(&self, network: NetworkId) -> Option<Arc<NetworkView>> {
        (**self).view(network)
    }
}
