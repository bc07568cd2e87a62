//! `cargo xtask boundaries`: what a room may not know, proven from the dependency graph and the
//! sources.
//!
//! A rule is an absence with the sentence that a breach of it breaks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::sh;

/// A package that no path of dependencies may lead to.
struct NoPackage {
    room: &'static str,
    packages: &'static [&'static str],
    because: &'static str,
}

/// A text that no source file of a room may contain, but for the files excepted.
struct NoText {
    dir: &'static str,
    texts: &'static [&'static str],
    except: &'static [&'static str],
    because: &'static str,
}

const NO_PACKAGE: &[NoPackage] = &[
    NoPackage {
        room: "sixpn",
        packages: &["tokio", "boringtun", "smoltcp", "serde", "getrandom"],
        because: "sixpn is arithmetic on addresses",
    },
    NoPackage {
        room: "underpass-wire",
        packages: &[
            "tokio",
            "tungstenite",
            "boringtun",
            "smoltcp",
            "web-sys",
            "x25519-dalek",
        ],
        because: "wire knows bytes: no sockets, no clocks, no private keys",
    },
    NoPackage {
        room: "underpass-tunnel",
        packages: &[
            "tokio",
            "tungstenite",
            "rustls",
            "web-sys",
            "web-time",
            "hyper",
            "russh",
        ],
        because: "tunnel does not know who carries its datagrams",
    },
    NoPackage {
        room: "underpass-carrier",
        packages: &[
            "russh",
            "ssh-key",
            "hickory-proto",
            "underpass-names",
            "underpass-ssh",
            "rusqlite",
        ],
        because: "carrier moves datagrams: no SSH, no zone",
    },
    NoPackage {
        room: "underpass-ssh",
        packages: &[
            "underpass-tunnel",
            "underpass-carrier",
            "boringtun",
            "smoltcp",
            "tungstenite",
            "rustls",
        ],
        because: "ssh runs over any byte stream: no transports",
    },
    NoPackage {
        room: "underpass-relay",
        packages: &[
            "underpass-tunnel",
            "underpass-names",
            "underpass-ssh",
            "sixpn",
            "boringtun",
            "smoltcp",
            "russh",
            "ssh-key",
            "hickory-proto",
            "rusqlite",
        ],
        because: "the relay sees ciphertext: no IP, no DNS, no SSH, no WireGuard private keys",
    },
    NoPackage {
        room: "underpass-gateway",
        packages: &[
            "axum",
            "hyper",
            "tungstenite",
            "russh",
            "ssh-key",
            "underpass-control",
            "rusqlite",
        ],
        because: "the gateway routes packets: no HTTP, no SSH, no store",
    },
    NoPackage {
        room: "underpass-names",
        packages: &[
            "boringtun",
            "smoltcp",
            "underpass-tunnel",
            "russh",
            "ssh-key",
            "axum",
        ],
        because: "names answers questions: no WireGuard, no SSH",
    },
    NoPackage {
        room: "underpass-control",
        packages: &[
            "boringtun",
            "smoltcp",
            "underpass-tunnel",
            "russh",
            "tungstenite",
            "underpass-relay",
        ],
        because: "control does not know how packets move",
    },
    NoPackage {
        room: "underpass-hallpass",
        packages: &["underpass-control", "rusqlite", "underpass-gateway", "axum"],
        because: "hallpass never meets a CA's private key nor the control store",
    },
    NoPackage {
        room: "tests",
        packages: &[
            "underpass-control",
            "underpass-gateway",
            "underpass-relay",
            "underpass-names",
        ],
        because: "end to end tests see what a user sees: no internals",
    },
];

const NO_TEXT: &[NoText] = &[
    NoText {
        dir: "tunnel/src",
        texts: &["boringtun"],
        except: &["tunnel/src/peer.rs", "tunnel/src/peer/"],
        because: "module `peer` alone names boringtun",
    },
    NoText {
        dir: "tunnel/src",
        texts: &["smoltcp"],
        except: &["tunnel/src/stack.rs", "tunnel/src/stack/"],
        because: "module `stack` alone names smoltcp",
    },
    NoText {
        dir: "gateway/src",
        texts: &["boringtun", "smoltcp"],
        except: &[],
        because: "the engines have one door each, in tunnel",
    },
    NoText {
        dir: "web-client/src",
        texts: &["boringtun", "smoltcp"],
        except: &[],
        because: "the engines have one door each, in tunnel",
    },
    NoText {
        dir: "tunnel/src",
        texts: &["Instant::now", "SystemTime", "getrandom", "thread_rng"],
        except: &[],
        because: "time and randomness are arguments of a pure core",
    },
    NoText {
        dir: "wire/src",
        texts: &["Instant::now", "SystemTime", "getrandom", "std::net"],
        except: &[],
        because: "wire knows no sockets and no clocks",
    },
    NoText {
        dir: "cli/src",
        texts: &["wire::record", "wire::control"],
        except: &[],
        because: "the cli knows no frame bytes",
    },
    NoText {
        dir: "web-client/src",
        texts: &["\"xterm\"", "@xterm", "xterm_js"],
        except: &[],
        because: "the page makes the terminal; the client only attaches to one",
    },
    NoText {
        dir: "www/src",
        texts: &["WebSocket(", "chacha", "curve25519"],
        except: &["www/src/wasm/"],
        because: "the page knows no packets and no ciphers",
    },
];

/// Reads the graph and the sources below `root`, prints every breach and fails if there is one.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let graph = Graph::read(root)?;
    let breaches: Vec<String> = broken_packages(&graph, NO_PACKAGE)
        .chain(broken_texts(&sources(root, NO_TEXT)?, NO_TEXT))
        .collect();
    for breach in &breaches {
        eprintln!("{breach}");
    }
    if !breaches.is_empty() {
        bail!(
            "{} broken\nhint: ARCHITECTURE.md says what each room is for",
            breaches.len()
        );
    }
    eprintln!(
        "boundaries: {} rules hold",
        NO_PACKAGE.len() + NO_TEXT.len()
    );
    Ok(())
}

/// Packages by name, each with the names of what it depends on; no dev dependencies.
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn read(root: &Path) -> anyhow::Result<Graph> {
        let words = [
            "cargo",
            "metadata",
            "--format-version=1",
            "--filter-platform=x86_64-unknown-linux-gnu",
        ];
        Graph::parse(&sh::read(&mut sh::command(root, &words))?)
    }

    fn parse(metadata: &str) -> anyhow::Result<Graph> {
        let metadata: Metadata = serde_json::from_str(metadata).context("cargo metadata")?;
        let names: BTreeMap<&str, &str> = metadata
            .packages
            .iter()
            .map(|p| (p.id.as_str(), p.name.as_str()))
            .collect();
        let name = |id: &str| names.get(id).map(|name| (*name).to_owned());
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in &metadata.resolve.nodes {
            let Some(package) = name(&node.id) else {
                continue;
            };
            let used = node
                .deps
                .iter()
                .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            graph
                .entry(package)
                .or_default()
                .extend(used.filter_map(|dep| name(&dep.pkg)));
        }
        Ok(Graph(graph))
    }

    /// The shortest path of dependencies from one package to another.
    fn path(&self, from: &str, to: &str) -> Option<Vec<&str>> {
        let (start, _) = self.0.get_key_value(from)?;
        let mut seen = BTreeSet::from([start.as_str()]);
        let mut paths = std::collections::VecDeque::from([vec![start.as_str()]]);
        while let Some(path) = paths.pop_front() {
            let last = path.last().copied().unwrap_or_default();
            if last == to {
                return Some(path);
            }
            for next in self.0.get(last).into_iter().flatten() {
                if seen.insert(next) {
                    paths.push_back(path.iter().copied().chain([next.as_str()]).collect());
                }
            }
        }
        None
    }
}

fn broken_packages<'a>(
    graph: &'a Graph,
    rules: &'a [NoPackage],
) -> impl Iterator<Item = String> + 'a {
    rules.iter().flat_map(move |rule| {
        let paths = rule
            .packages
            .iter()
            .filter_map(|package| graph.path(rule.room, package));
        paths.map(|path| format!("{}: {}", path.join(" -> "), rule.because))
    })
}

fn broken_texts<'a>(
    sources: &'a [(String, String)],
    rules: &'a [NoText],
) -> impl Iterator<Item = String> + 'a {
    rules.iter().flat_map(move |rule| {
        let inside = sources.iter().filter(|(path, _)| {
            path.starts_with(rule.dir) && !rule.except.iter().any(|except| path.starts_with(except))
        });
        inside.flat_map(move |(path, source)| {
            let lines = source
                .lines()
                .enumerate()
                .filter(|(_, line)| !is_comment(line));
            lines.flat_map(move |(number, line)| {
                let found = rule.texts.iter().filter(|text| line.contains(**text));
                found.map(move |text| format!("{path}:{}: `{text}`: {}", number + 1, rule.because))
            })
        })
    })
}

fn is_comment(line: &str) -> bool {
    let line = line.trim_start();
    ["//", "/*", "* "].iter().any(|mark| line.starts_with(mark))
}

/// The files of every folder that a rule names: path from the root, and text.
fn sources(root: &Path, rules: &[NoText]) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut dirs: Vec<PathBuf> = rules
        .iter()
        .map(|rule| rule.dir)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|dir| root.join(dir))
        .collect();
    while let Some(dir) = dirs.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path
                .extension()
                .is_some_and(|end| end == "rs" || end == "ts")
            {
                let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path)?));
            }
        }
    }
    Ok(found)
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dep>,
}

#[derive(Deserialize)]
struct Dep {
    pkg: String,
    dep_kinds: Vec<DepKind>,
}

#[derive(Deserialize)]
struct DepKind {
    kind: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap()
            .to_owned()
    }

    /// Adding one line to a room's manifest is what a breach looks like in a review.
    #[test]
    fn each_forbidden_package_is_found_when_it_is_added() {
        let real = Graph::read(&checkout()).unwrap();
        assert_eq!(
            broken_packages(&real, NO_PACKAGE).collect::<Vec<_>>(),
            Vec::<String>::new()
        );
        for rule in NO_PACKAGE {
            for package in rule.packages {
                let mut broken = Graph(real.0.clone());
                let middle = "a-crate-in-between".to_owned();
                broken
                    .0
                    .entry(rule.room.to_owned())
                    .or_default()
                    .insert(middle.clone());
                broken
                    .0
                    .entry(middle)
                    .or_default()
                    .insert((*package).to_owned());
                broken.0.entry((*package).to_owned()).or_default();
                let found: Vec<String> = broken_packages(&broken, NO_PACKAGE).collect();
                let path = format!(
                    "{} -> a-crate-in-between -> {package}: {}",
                    rule.room, rule.because
                );
                assert!(found.contains(&path), "{path} not among {found:?}");
            }
        }
    }

    #[test]
    fn every_room_of_a_rule_exists() {
        let graph = Graph::read(&checkout()).unwrap();
        for rule in NO_PACKAGE {
            assert!(graph.0.contains_key(rule.room), "{}", rule.room);
        }
        for rule in NO_TEXT {
            assert!(checkout().join(rule.dir).is_dir(), "{}", rule.dir);
        }
    }

    #[test]
    fn each_forbidden_import_is_found_when_it_is_added() {
        for rule in NO_TEXT {
            for text in rule.texts {
                let line = format!("use nothing;\nuse {text};\n");
                let inside = vec![(format!("{}/added.rs", rule.dir), line.clone())];
                assert_eq!(
                    broken_texts(&inside, std::slice::from_ref(rule)).collect::<Vec<_>>(),
                    [format!(
                        "{}/added.rs:2: `{text}`: {}",
                        rule.dir, rule.because
                    )]
                );
                let excepted = rule
                    .except
                    .iter()
                    .map(|path| ((*path).to_owned(), line.clone()));
                let elsewhere = vec![("elsewhere/src/added.rs".to_owned(), line.clone())];
                let fine: Vec<_> = excepted.chain(elsewhere).collect();
                assert_eq!(broken_texts(&fine, std::slice::from_ref(rule)).count(), 0);
            }
        }
    }

    /// The whole command, on a copy of the checkout whose relay has learned of IP.
    #[test]
    fn the_command_fails_on_a_checkout_that_breaks_a_rule() {
        let copy = tempfile::tempdir().unwrap();
        let words = [
            "git",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ];
        let files = sh::read(&mut sh::command(&checkout(), &words)).unwrap();
        for file in files.split_terminator('\0') {
            let from = checkout().join(file);
            if from.is_file() {
                let to = copy.path().join(file);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(from, to).unwrap();
            }
        }
        assert!(run(copy.path()).is_ok());
        let manifest = copy.path().join("relay/Cargo.toml");
        let text = fs::read_to_string(&manifest).unwrap();
        let broken = text.replace(
            "[dependencies]\n",
            "[dependencies]\ntunnel.workspace = true\n",
        );
        fs::write(&manifest, broken).unwrap();
        let error = run(copy.path()).unwrap_err().to_string();
        assert!(error.contains("broken"), "{error}");
        fs::write(&manifest, text).unwrap();
        let source = copy.path().join("wire/src/lib.rs");
        let text = fs::read_to_string(&source).unwrap();
        fs::write(&source, text + "\nuse std::time::SystemTime;\n").unwrap();
        assert!(run(copy.path()).is_err());
    }
}
