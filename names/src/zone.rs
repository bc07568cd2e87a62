//! The names of one network: labels in, what they hold out. Knows no DNS message.

use std::{collections::BTreeSet, net::Ipv6Addr};

use sixpn::Prefix;

use crate::view::{AppView, InstanceView, NetworkView};

/// What a name of the zone holds. A name that does not exist is `None` of this.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// AAAA records, at most [`MAX_ADDRESSES`].
    Addresses(Vec<Ipv6Addr>),
    /// TXT records, one per text.
    Texts(Vec<Text>),
    /// The name exists and holds neither.
    Nothing,
}

/// The text of one TXT record, of at most [`MAX_TEXT`] bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) text: String,
    /// The list was longer; it ends after a whole item.
    pub(crate) cut: bool,
}

/// The most addresses in one answer: 28 bytes each, so that one always fits in a TCP message.
const MAX_ADDRESSES: usize = 1024;

/// The most text in one answer: with a length byte per 255 it fits in a message of 65,535 bytes.
const MAX_TEXT: usize = 64_900;

/// Looks up a name below `internal`, its labels in lower case and from the right: `web.internal`
/// is `["web"]`. `source` says which region is nearest, and nothing else.
pub(crate) fn lookup(view: &NetworkView, source: Ipv6Addr, labels: &[&str]) -> Option<Found> {
    match labels {
        [] => Some(Found::Nothing),
        ["_apps"] => Some(list(view.apps.iter().map(|app| app.name.clone()), ",")),
        ["_peer"] => Some(list(view.peers.iter().map(|peer| peer.name.clone()), ",")),
        ["_instances"] => {
            let started = view
                .apps
                .iter()
                .flat_map(|app| started(app).map(move |instance| (app, instance)));
            let items = started.map(|(app, instance)| {
                format!(
                    "instance={},app={},ip={},region={}",
                    instance.id, app.name, instance.address, instance.region
                )
            });
            Some(list(items, ";"))
        }
        ["_orgcert"] => Some(keys(&view.user_cas)),
        ["_hostca"] => Some(keys(&view.host_cas)),
        ["_peer", name] => {
            let peer = view.peers.iter().find(|peer| same(&peer.name, name))?;
            Some(Found::Addresses(vec![peer.address]))
        }
        [app, below @ ..] => {
            let app = view
                .apps
                .iter()
                .find(|candidate| same(&candidate.name, app))?;
            below_app(view, app, source, below)
        }
    }
}

fn below_app(
    view: &NetworkView,
    app: &AppView,
    source: Ipv6Addr,
    labels: &[&str],
) -> Option<Found> {
    match labels {
        [] | ["global"] => Some(addresses(started(app))),
        ["regions"] => {
            let regions: BTreeSet<_> = started(app).map(|instance| &instance.region).collect();
            Some(list(regions.into_iter().cloned(), ","))
        }
        ["vms"] => {
            let items = started(app).map(|instance| format!("{} {}", instance.id, instance.region));
            Some(list(items, ","))
        }
        // Names that exist because others lie below them.
        ["vm"] | ["process"] | ["of"] | ["of", "nearest"] => Some(Found::Nothing),
        ["vm", id] => of_those(app, |instance| same(&instance.id, id)),
        ["process", group] => of_those(app, |instance| same(&instance.group, group)),
        ["of", "nearest", top] => {
            let digits = top.strip_prefix("top")?;
            if digits.starts_with('0') || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let n: u16 = digits.parse().ok()?;
            Some(Found::Addresses(nearest(view, app, source, n.into())))
        }
        [region] => of_those(app, |instance| same(&instance.region, region)),
        _ => None,
    }
}

/// The started ones among the instances chosen. When a stopped one is chosen its name exists and
/// has no address; when none is chosen there is no such name.
fn of_those(app: &AppView, chosen: impl Fn(&InstanceView) -> bool) -> Option<Found> {
    app.instances
        .iter()
        .any(&chosen)
        .then(|| addresses(started(app).filter(|instance| chosen(instance))))
}

/// The closest `n` started instances. Distance is known in two steps only: the region of the asker,
/// when the asker is itself an instance of this network, comes before every other; beyond that,
/// regions follow by name and instances by id.
fn nearest(view: &NetworkView, app: &AppView, source: Ipv6Addr, n: usize) -> Vec<Ipv6Addr> {
    let here = view
        .apps
        .iter()
        .flat_map(|app| &app.instances)
        .find(|instance| Prefix::new(instance.address, 112).contains(source))
        .map(|instance| instance.region.as_str());
    let mut instances: Vec<_> = started(app).collect();
    instances.sort_by_key(|instance| {
        let elsewhere = here != Some(instance.region.as_str());
        (elsewhere, &instance.region, &instance.id)
    });
    let closest = instances.into_iter().take(n.min(MAX_ADDRESSES));
    closest.map(|instance| instance.address).collect()
}

fn started(app: &AppView) -> impl Iterator<Item = &InstanceView> {
    app.instances.iter().filter(|instance| instance.started)
}

fn addresses<'a>(instances: impl Iterator<Item = &'a InstanceView>) -> Found {
    let addresses = instances.take(MAX_ADDRESSES);
    Found::Addresses(addresses.map(|instance| instance.address).collect())
}

/// One text of all items; no text at all when there are none.
fn list(items: impl Iterator<Item = String>, separator: &str) -> Found {
    let mut text = String::new();
    let mut cut = false;
    for item in items {
        if text.len() + separator.len() + item.len() > MAX_TEXT {
            cut = true;
            break;
        }
        if !text.is_empty() {
            text.push_str(separator);
        }
        text.push_str(&item);
    }
    if text.is_empty() {
        return Found::Texts(Vec::new());
    }
    Found::Texts(vec![Text { text, cut }])
}

/// One text per key.
fn keys(lines: &[String]) -> Found {
    let texts = lines.iter().map(|line| Text {
        text: line.trim().to_owned(),
        cut: false,
    });
    Found::Texts(texts.collect())
}

fn same(name: &str, label: &str) -> bool {
    name.eq_ignore_ascii_case(label)
}
