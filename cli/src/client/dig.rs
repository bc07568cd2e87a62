//! `underpass dig`

use anyhow::bail;
use serde_json::json;
use tunnel::{Answer, RecordKind};

use crate::client::network::{Network, NetworkArgs, explain_at};

/// Arguments of `dig`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// AAAA (where left out) or TXT, then the name
    #[arg(value_name = "[TYPE] NAME", required = true, num_args = 1..=2)]
    question: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArgs,
}

/// Asks the network's own name server and prints one record per line.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let (kind, name) = question(&args.question)?;
    let network = Box::pin(Network::open(&args.network)).await?;
    let answer = async {
        network.ready().await?;
        let answer = network.lookup(name, kind).await;
        answer.map_err(|error| explain_at(name, &error))
    };
    let answer = answer.await;
    network.close().await;
    let records: Vec<String> = match answer? {
        Answer::Aaaa(addresses) => addresses.iter().map(ToString::to_string).collect(),
        Answer::Txt(texts) => texts,
    };
    if args.json {
        let kind = if kind == RecordKind::Txt {
            "TXT"
        } else {
            "AAAA"
        };
        println!(
            "{}",
            json!({ "name": name, "type": kind, "records": records })
        );
    } else {
        records.iter().for_each(|record| println!("{record}"));
    }
    Ok(())
}

/// In either order, as dig takes it.
fn question(words: &[String]) -> anyhow::Result<(RecordKind, &str)> {
    let kind = |word: &String| match word.to_ascii_uppercase().as_str() {
        "AAAA" => Some(RecordKind::Aaaa),
        "TXT" => Some(RecordKind::Txt),
        _ => None,
    };
    match words {
        [name] => Ok((RecordKind::Aaaa, name)),
        [first, second] => match (kind(first), kind(second)) {
            (Some(kind), _) => Ok((kind, second)),
            (None, Some(kind)) => Ok((kind, first)),
            (None, None) => bail!(
                "{first} is no type that the network has\nhint: AAAA for addresses, TXT for lists such as _apps.internal"
            ),
        },
        _ => bail!("which name?\nhint: underpass dig [TYPE] NAME"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_and_name_in_either_order() {
        let ask = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            question(&words)
                .map(|(kind, name)| (kind, name.to_owned()))
                .ok()
        };
        let txt = Some((RecordKind::Txt, "_apps.internal".to_owned()));
        assert_eq!(ask(&["txt", "_apps.internal"]), txt);
        assert_eq!(ask(&["_apps.internal", "TXT"]), txt);
        assert_eq!(
            ask(&["web.internal"]),
            Some((RecordKind::Aaaa, "web.internal".to_owned()))
        );
        assert_eq!(ask(&["MX", "web.internal"]), None);
    }
}
