//! Networks as their members see them, kept at hand: names are asked for with every packet of DNS.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::SystemTime,
};

use names::{AppView, InstanceView, NetworkView, PeerView};
use rusqlite::{Connection, OptionalExtension};
use sixpn::NetworkId;

use super::{OrgId, Store, keys, orgs, peers};
use crate::Error;

/// Networks whose view is kept; when there are more, all are made anew.
const MAX_VIEWS: usize = 256;

/// Views of one state of the file.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// Writes of other connections, and of the one that asks.
    state: (i64, u64),
    views: HashMap<NetworkId, Kept>,
}

#[derive(Debug)]
struct Kept {
    view: Option<Arc<NetworkView>>,
    made: SystemTime,
    /// When the next lease ends and the view with it.
    until: Option<SystemTime>,
}

impl Store {
    /// A network as it stands at `now`; none for a number that no organisation holds.
    ///
    /// # Errors
    /// When the store fails.
    pub fn network_view(
        &self,
        network: NetworkId,
        now: SystemTime,
    ) -> Result<Option<Arc<NetworkView>>, Error> {
        // One transaction, so that a view is of one state, and of the state it is kept for.
        self.look_up(|tx| {
            let others = tx.pragma_query_value(None, "data_version", |row| row.get(0))?;
            let state = (others, tx.total_changes());

            let mut cache = self.views.lock().unwrap_or_else(PoisonError::into_inner);
            if cache.state != state {
                cache.state = state;
                cache.views.clear();
            }
            if let Some(kept) = cache.views.get(&network)
                && kept.made <= now
                && kept.until.is_none_or(|until| now < until)
            {
                return Ok(kept.view.clone());
            }
            let (view, until) = make(tx, network, now)?.unzip();
            let view = view.map(Arc::new);
            if cache.views.len() >= MAX_VIEWS {
                cache.views.clear();
            }
            cache.views.insert(
                network,
                Kept {
                    view: view.clone(),
                    made: now,
                    until: until.flatten(),
                },
            );
            Ok(view)
        })
    }
}

fn make(
    connection: &Connection,
    network: NetworkId,
    now: SystemTime,
) -> Result<Option<(NetworkView, Option<SystemTime>)>, Error> {
    let sql = "SELECT organisation FROM networks WHERE id = ?1";
    let org = connection.query_row(sql, [network.get()], |row| row.get::<_, OrgId>(0));
    let Some(org) = org.optional()? else {
        return Ok(None);
    };
    let peers = peers::peers_of(connection, network, now)?;
    let until = peers.iter().filter_map(|peer| peer.expires).min();
    let apps = orgs::apps_of(connection, network)?;
    let view = NetworkView {
        apps: apps.into_iter().map(app_view).collect(),
        peers: peers
            .into_iter()
            .map(|peer| PeerView {
                name: peer.name,
                address: peer.address.address(),
            })
            .collect(),
        user_cas: keys::public_lines(connection, org, keys::AuthorityKind::User)?,
        host_cas: keys::public_lines(connection, org, keys::AuthorityKind::Host)?,
    };
    Ok(Some((view, until)))
}

fn app_view(app: orgs::AppRecord) -> AppView {
    let instances = app.instances.into_iter().map(|instance| InstanceView {
        id: instance.id,
        region: instance.region,
        address: instance.address.address(),
        started: instance.started,
        group: instance.group,
    });
    AppView {
        name: app.name,
        instances: instances.collect(),
    }
}
