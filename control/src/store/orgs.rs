//! Organisations, their networks, apps and instances.

use std::time::SystemTime;

use rusqlite::{
    Connection, OptionalExtension, Row, ToSql, Transaction, params,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};
use sixpn::{Interface, NetworkId};
use wire::PublicKey;

use super::{Store, keys, label, peers, unix};
use crate::{Error, secret::random};

/// The number of an organisation in one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrgId(pub(crate) i64);

/// An organisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Org {
    /// Its number.
    pub id: OrgId,
    /// Its name, a DNS label.
    pub name: String,
    /// Its first network, made with it. It may own others.
    pub network: NetworkId,
}

/// An app of a network, with every instance it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppRecord {
    /// A DNS label.
    pub name: String,
    /// Started or not.
    pub instances: Vec<Instance>,
}

/// An instance of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// A DNS label of 14 hexadecimal digits, unique in the store.
    pub id: String,
    /// The organisation it belongs to.
    pub org: OrgId,
    /// The network it is in.
    pub network: NetworkId,
    /// Its app's name.
    pub app: String,
    /// A DNS label.
    pub region: String,
    /// Its process group.
    pub group: String,
    /// Its WireGuard key.
    pub key: PublicKey,
    /// Its address, and the /112 it owns.
    pub address: Interface,
    /// Whether it answers under the app's names.
    pub started: bool,
}

/// Labels that have a meaning of their own below an app, where regions are labels too.
const RESERVED_BELOW_APP: [&str; 6] = ["global", "regions", "vms", "vm", "process", "of"];

/// Instances are numbered below this host, peers below another: no range is ever both.
const INSTANCES: u32 = 2;

/// The network that is made with its organisation.
const FIRST_NETWORK: &str = "default";

const SELECT_INSTANCE: &str = "SELECT instances.id, networks.organisation, networks.id, apps.name,
        instances.region, instances.process_group, instances.key, instances.address,
        instances.started
    FROM instances JOIN apps ON apps.id = instances.app JOIN networks ON networks.id = apps.network";

impl Store {
    /// Makes an organisation with a first network, a user CA and a host CA.
    ///
    /// # Errors
    /// When the name is no DNS label, or taken.
    pub fn create_org(&self, name: &str, now: SystemTime) -> Result<Org, Error> {
        label(name, "an organisation")?;
        self.write(|tx| {
            let inserted = tx.execute(
                "INSERT INTO organisations (name, created) VALUES (?1, ?2)
                 ON CONFLICT (name) DO NOTHING",
                params![name, unix(now)],
            )?;
            if inserted == 0 {
                return Err(Error::NameTaken("an organisation"));
            }
            let id = OrgId(tx.last_insert_rowid());
            keys::make_authorities(tx, id, now)?;
            let network = make_network(tx, id, FIRST_NETWORK, now)?;
            Ok(Org {
                id,
                name: name.to_owned(),
                network,
            })
        })
    }

    /// Makes another network of an organisation. Nothing passes between it and the others.
    ///
    /// # Errors
    /// When the name is no DNS label, or taken within the organisation.
    pub fn create_network(
        &self,
        org: OrgId,
        name: &str,
        now: SystemTime,
    ) -> Result<NetworkId, Error> {
        label(name, "a network")?;
        self.write(|tx| {
            name_of(tx, org)?;
            make_network(tx, org, name, now)
        })
    }

    /// The organisation of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn org(&self, name: &str) -> Result<Org, Error> {
        self.read(|tx| {
            let sql = format!("{SELECT_ORG} WHERE organisations.name = ?1");
            let org = tx.prepare_cached(&sql)?.query_row([name], org_row);
            org.optional()?.ok_or(Error::OrgUnknown)
        })
    }

    /// Every organisation, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn orgs(&self) -> Result<Vec<Org>, Error> {
        self.read(|tx| {
            let sql = format!("{SELECT_ORG} ORDER BY organisations.name");
            let mut statement = tx.prepare_cached(&sql)?;
            let orgs = statement.query_map([], org_row)?;
            Ok(orgs.collect::<Result<_, _>>()?)
        })
    }

    /// Makes an app in the organisation's first network.
    ///
    /// # Errors
    /// When the name is no DNS label, or taken in the network.
    pub fn create_app(&self, org: OrgId, name: &str, now: SystemTime) -> Result<(), Error> {
        let network = self.read(|tx| first_network(tx, org))?;
        self.create_app_in(network, name, now)
    }

    /// Makes an app in a network.
    ///
    /// # Errors
    /// When the name is no DNS label, or taken in the network.
    pub fn create_app_in(
        &self,
        network: NetworkId,
        name: &str,
        now: SystemTime,
    ) -> Result<(), Error> {
        label(name, "an app")?;
        self.write(|tx| {
            let inserted = tx.execute(
                "INSERT INTO apps (network, name, created) VALUES (?1, ?2, ?3)
                 ON CONFLICT (network, name) DO NOTHING",
                params![network.get(), name, unix(now)],
            )?;
            if inserted == 0 {
                return Err(Error::NameTaken("an app"));
            }
            Ok(())
        })
    }

    /// The apps of the organisation's first network, by name, with their instances.
    ///
    /// # Errors
    /// When there is no such organisation.
    pub fn apps(&self, org: OrgId) -> Result<Vec<AppRecord>, Error> {
        self.read(|tx| apps_of(tx, first_network(tx, org)?))
    }

    /// Adds an instance to an app of the organisation's first network, in process group `app`.
    ///
    /// # Errors
    /// When there is no such app, the region is no DNS label, or the key belongs to somebody or is no
    /// private key's.
    pub fn add_instance(
        &self,
        org: OrgId,
        app: &str,
        region: &str,
        key: PublicKey,
        started: bool,
        now: SystemTime,
    ) -> Result<Instance, Error> {
        let network = self.read(|tx| first_network(tx, org))?;
        self.add_instance_in(network, app, region, "app", key, started, now)
    }

    /// Adds an instance to an app of a network, in a process group.
    ///
    /// # Errors
    /// As [`Store::add_instance`], and when the group is no DNS label.
    #[expect(
        clippy::too_many_arguments,
        reason = "an instance is all of these at once"
    )]
    pub fn add_instance_in(
        &self,
        network: NetworkId,
        app: &str,
        region: &str,
        group: &str,
        key: PublicKey,
        started: bool,
        now: SystemTime,
    ) -> Result<Instance, Error> {
        label(region, "a region")?;
        label(group, "a process group")?;
        peers::refuse_low_order(key)?;
        if RESERVED_BELOW_APP.contains(&region) {
            return Err(Error::NameInvalid("a region"));
        }
        self.write(|tx| {
            let app: i64 = tx
                .query_row(
                    "SELECT id FROM apps WHERE network = ?1 AND name = ?2",
                    params![network.get(), app],
                    |row| row.get(0),
                )
                .optional()?
                .ok_or(Error::AppUnknown)?;
            peers::forget_expired(tx, now)?;
            peers::refuse_held_key(tx, key)?;
            let id = random_hex()?;
            let machine = peers::random_machine()?;
            let address = sixpn::instance_interface(network, INSTANCES, machine);
            tx.execute(
                "INSERT INTO instances
                    (id, app, region, process_group, key, address, started, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    app,
                    region,
                    group,
                    key.as_bytes(),
                    address.address().to_string(),
                    started,
                    unix(now)
                ],
            )?;
            instance_by_id(tx, &id)
        })
    }

    /// The instance of an id.
    ///
    /// # Errors
    /// When there is none.
    pub fn instance(&self, id: &str) -> Result<Instance, Error> {
        self.read(|tx| instance_by_id(tx, id))
    }

    /// Says whether an instance answers under its app's names.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn set_instance_started(&self, id: &str, started: bool) -> Result<(), Error> {
        self.write(|tx| {
            let sql = "UPDATE instances SET started = ?2 WHERE id = ?1";
            changed(tx.execute(sql, params![id, started])?)
        })
    }

    /// Gives an instance another WireGuard key; answers with the one it had, to be revoked.
    ///
    /// # Errors
    /// When there is no such instance, or the key belongs to somebody else or is no private key's.
    pub fn set_instance_key(
        &self,
        id: &str,
        key: PublicKey,
        now: SystemTime,
    ) -> Result<PublicKey, Error> {
        peers::refuse_low_order(key)?;
        self.write(|tx| {
            let instance = instance_by_id(tx, id)?;
            if instance.key != key {
                peers::forget_expired(tx, now)?;
                peers::refuse_held_key(tx, key)?;
                let sql = "UPDATE instances SET key = ?2 WHERE id = ?1";
                tx.execute(sql, params![id, key.as_bytes()])?;
            }
            Ok(instance.key)
        })
    }

    /// Removes an instance; answers with its key, to be revoked. Its address is not given away
    /// again on purpose: addresses are drawn from 2^32.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn remove_instance(&self, id: &str) -> Result<PublicKey, Error> {
        self.write(|tx| {
            let instance = instance_by_id(tx, id)?;
            tx.execute("DELETE FROM instances WHERE id = ?1", [id])?;
            Ok(instance.key)
        })
    }
}

const SELECT_ORG: &str = "SELECT organisations.id, organisations.name, networks.id
    FROM organisations
    JOIN networks ON networks.organisation = organisations.id AND networks.name = 'default'";

pub(super) fn first_network(tx: &Connection, org: OrgId) -> Result<NetworkId, Error> {
    let first = "SELECT id FROM networks WHERE organisation = ?1 AND name = ?2";
    tx.prepare_cached(first)?
        .query_row(params![org, FIRST_NETWORK], |row| network_at(row, 0))
        .optional()?
        .ok_or(Error::OrgUnknown)
}

pub(super) fn name_of(tx: &Connection, org: OrgId) -> Result<String, Error> {
    tx.prepare_cached("SELECT name FROM organisations WHERE id = ?1")?
        .query_row([org], |row| row.get(0))
        .optional()?
        .ok_or(Error::OrgUnknown)
}

pub(super) fn instance_by_id(tx: &Connection, id: &str) -> Result<Instance, Error> {
    tx.prepare_cached(&format!("{SELECT_INSTANCE} WHERE instances.id = ?1"))?
        .query_row([id], instance_row)
        .optional()?
        .ok_or(Error::InstanceUnknown)
}

pub(super) fn instance_by_key(tx: &Connection, key: PublicKey) -> Result<Option<Instance>, Error> {
    let sql = format!("{SELECT_INSTANCE} WHERE instances.key = ?1");
    let found = tx
        .prepare_cached(&sql)?
        .query_row([key.as_bytes()], instance_row);
    Ok(found.optional()?)
}

pub(super) fn apps_of(tx: &Connection, network: NetworkId) -> Result<Vec<AppRecord>, Error> {
    let mut statement =
        tx.prepare_cached("SELECT name FROM apps WHERE network = ?1 ORDER BY name")?;
    let names = statement.query_map([network.get()], |row| row.get(0))?;
    let mut apps: Vec<AppRecord> = Vec::new();
    for name in names {
        apps.push(AppRecord {
            name: name?,
            instances: Vec::new(),
        });
    }
    let sql = format!("{SELECT_INSTANCE} WHERE apps.network = ?1 ORDER BY apps.name, instances.id");
    let mut statement = tx.prepare_cached(&sql)?;
    for instance in statement.query_map([network.get()], instance_row)? {
        let instance = instance?;
        if let Ok(at) = apps.binary_search_by(|app| app.name.cmp(&instance.app)) {
            apps[at].instances.push(instance);
        }
    }
    Ok(apps)
}

fn make_network(
    tx: &Transaction<'_>,
    org: OrgId,
    name: &str,
    now: SystemTime,
) -> Result<NetworkId, Error> {
    loop {
        let Some(network) = NetworkId::new(u32::from_be_bytes(*random::<4>()?)) else {
            continue;
        };
        let held = "SELECT 1 FROM networks WHERE id = ?1";
        if tx
            .query_row(held, [network.get()], |_| Ok(()))
            .optional()?
            .is_some()
        {
            continue;
        }
        let inserted = tx.execute(
            "INSERT INTO networks (id, organisation, name, created) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (organisation, name) DO NOTHING",
            params![network.get(), org, name, unix(now)],
        )?;
        return if inserted == 0 {
            Err(Error::NameTaken("a network"))
        } else {
            Ok(network)
        };
    }
}

fn changed(rows: usize) -> Result<(), Error> {
    if rows == 0 {
        Err(Error::InstanceUnknown)
    } else {
        Ok(())
    }
}

fn random_hex() -> Result<String, Error> {
    let bytes = random::<7>()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn org_row(row: &Row<'_>) -> rusqlite::Result<Org> {
    Ok(Org {
        id: row.get(0)?,
        name: row.get(1)?,
        network: network_at(row, 2)?,
    })
}

fn instance_row(row: &Row<'_>) -> rusqlite::Result<Instance> {
    Ok(Instance {
        id: row.get(0)?,
        org: row.get(1)?,
        network: network_at(row, 2)?,
        app: row.get(3)?,
        region: row.get(4)?,
        group: row.get(5)?,
        key: PublicKey(row.get(6)?),
        address: address_at(row, 7, 112)?,
        started: row.get(8)?,
    })
}

pub(super) fn network_at(row: &Row<'_>, column: usize) -> rusqlite::Result<NetworkId> {
    let number: u32 = row.get(column)?;
    NetworkId::new(number).ok_or(rusqlite::Error::IntegralValueOutOfRange(
        column,
        number.into(),
    ))
}

pub(super) fn address_at(row: &Row<'_>, column: usize, len: u8) -> rusqlite::Result<Interface> {
    let text: String = row.get(column)?;
    let address = text.parse().map_err(|error| {
        let kind = rusqlite::types::Type::Text;
        rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(error))
    })?;
    Ok(Interface::new(address, len))
}

impl ToSql for OrgId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for OrgId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value
            .as_i64()
            .map(OrgId)
            .map_err(|_| FromSqlError::InvalidType)
    }
}
