//! Which host a command means: an address, an app, one of its instances.

use std::io::{BufRead, Write};

use anyhow::bail;

use crate::client::{
    apps::{self, App, Instance},
    network::Network,
    terminal,
};

/// The choice of a host.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct TargetArgs {
    /// The app; may be left out where there is only one
    #[arg(long, short, value_name = "APP")]
    app: Option<String>,
    /// Choose the instance from a list
    #[arg(long, short)]
    select: bool,
    /// An instance in this region
    #[arg(long, short, value_name = "REGION")]
    region: Option<String>,
    /// Connect to this address or name, whatever app it belongs to
    #[arg(long, short = 'A', value_name = "ADDRESS", conflicts_with_all = ["app", "select", "region"])]
    address: Option<String>,
}

impl TargetArgs {
    /// The name or address to dial.
    pub(crate) async fn choose(&self, network: &Network) -> anyhow::Result<String> {
        if let Some(address) = &self.address {
            return Ok(address.clone());
        }
        let app = match &self.app {
            Some(app) if !self.select => app.clone(),
            Some(name) => {
                let apps = apps::list(network.api().await?, network.org()).await?;
                let Some(app) = apps.iter().find(|app| app.name == *name) else {
                    bail!("there is no app {name}\nhint: underpass apps lists them");
                };
                return self.instance(app);
            }
            None => {
                let apps = apps::list(network.api().await?, network.org()).await?;
                let app = choose("app", "-a", &apps, |app| app.name.clone())?;
                if self.select {
                    return self.instance(app);
                }
                app.name.clone()
            }
        };
        Ok(match &self.region {
            Some(region) => format!("{region}.{app}.internal"),
            None => format!("{app}.internal"),
        })
    }

    fn instance(&self, app: &App) -> anyhow::Result<String> {
        let here = |instance: &&Instance| {
            let region = self.region.as_ref();
            instance.started && region.is_none_or(|region| *region == instance.region)
        };
        let instances: Vec<&Instance> = app.instances.iter().filter(here).collect();
        let host = |instance: &&Instance| format!("{}.vm.{}.internal", instance.id, app.name);
        let chosen = choose("instance", "-A", &instances, |instance| {
            format!("{}  {}", host(instance), instance.region)
        })?;
        Ok(host(chosen))
    }
}

/// The only one of `items`, or the one that a person chooses.
pub(crate) fn choose<'a, T>(
    what: &str,
    flag: &str,
    items: &'a [T],
    label: impl Fn(&T) -> String,
) -> anyhow::Result<&'a T> {
    match items {
        [] => bail!("there is no {what} to connect to\nhint: underpass apps lists what there is"),
        [only] => return Ok(only),
        _ => {}
    }
    let labels: Vec<String> = items.iter().map(label).collect();
    if !terminal::is_interactive() {
        bail!(
            "which {what}?\nhint: {flag} with one of {}",
            labels.join(", ")
        );
    }
    let mut err = std::io::stderr().lock();
    for (number, label) in labels.iter().enumerate() {
        writeln!(err, "{:>3}  {label}", number + 1)?;
    }
    let mut line = String::new();
    loop {
        write!(err, "Which {what}? [1-{}] ", items.len())?;
        err.flush()?;
        line.clear();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            bail!("no {what} was chosen");
        }
        let chosen = line.trim().parse::<usize>().ok();
        if let Some(item) = chosen.and_then(|number| items.get(number.checked_sub(1)?)) {
            return Ok(item);
        }
    }
}
