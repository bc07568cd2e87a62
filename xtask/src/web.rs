//! `cargo xtask web`: from published sources to a `.wasm` under its budget, and the page.
//!
//! Four steps, each skipped when what it reads has not changed: dependencies patched for the
//! browser, the wasm package, wasm-bindgen's glue and wasm-opt, the page.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use wasm_bindgen_cli_support::Bindgen;

use crate::sh;

/// `wasm-pack.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    build: Build,
    budget: Budget,
}

#[derive(Deserialize, Hash)]
#[serde(deny_unknown_fields)]
struct Build {
    #[serde(rename = "crate")]
    package: PathBuf,
    target: String,
    profile: String,
    out_dir: PathBuf,
    out_name: String,
    wasm_opt: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    wasm_gzip: u64,
}

/// What one `.wasm` weighs.
#[derive(Serialize, Deserialize)]
struct Sizes {
    raw: u64,
    gzip: u64,
    brotli: u64,
}

/// What the files in the output folder were made from.
#[derive(Serialize, Deserialize)]
struct Stamp {
    inputs: u64,
    sizes: Sizes,
}

/// Builds the wasm package into its output folder, checks its size, and builds the page.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let text =
        fs::read_to_string(root.join("wasm-pack.toml")).context("cannot read wasm-pack.toml")?;
    let settings: Settings = toml::from_str(&text).context("wasm-pack.toml")?;
    prepare(root)?;
    same_wasm_bindgen(root, &settings.build)?;
    let wasm = compile(root, &settings.build)?;
    let sizes = bind(root, &settings.build, &wasm)?;
    let limit = settings.budget.wasm_gzip;
    eprintln!(
        "{}_bg.wasm: {} bytes, {} gzip -9 ({} % of the budget of {limit}), {} brotli",
        settings.build.out_name,
        sizes.raw,
        sizes.gzip,
        sizes.gzip * 100 / limit.max(1),
        sizes.brotli,
    );
    if sizes.gzip > limit {
        bail!(
            "the .wasm is {} bytes over its budget\nhint: `cargo tree -e features` in {} shows what \
             came in; the budget is in wasm-pack.toml",
            sizes.gzip - limit,
            settings.build.package.display(),
        );
    }
    page(root)
}

/// Lays out, in the folders that web-client's `[patch.crates-io]` names, the published source of
/// each crate named there, with `web-client/patches/NAME-wasm.patch` applied.
fn prepare(root: &Path) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Manifest {
        patch: BTreeMap<String, BTreeMap<String, Patched>>,
    }
    #[derive(Deserialize)]
    struct Patched {
        path: PathBuf,
    }

    let manifest = fs::read_to_string(root.join("web-client/Cargo.toml"))?;
    let manifest: Manifest = toml::from_str(&manifest).context("web-client/Cargo.toml")?;
    let published = published(root)?;
    for (name, Patched { path }) in manifest.patch.into_values().flatten() {
        let Some((version, source)) = published.get(&name) else {
            bail!("web-client/Cargo.toml patches {name}, which Cargo.lock does not name");
        };
        let folder = format!("{name}-{version}");
        if path != Path::new("../.build").join(&folder) {
            bail!(
                "web-client/Cargo.toml patches {}, the native workspace uses {folder}\n\
                 hint: write ../.build/{folder} there and see whether its patch still fits",
                path.display(),
            );
        }
        let patch = root.join(format!("web-client/patches/{name}-wasm.patch"));
        lay_out(source, &patch, &root.join(".build").join(folder))?;
    }
    Ok(())
}

fn lay_out(published: &Path, patch: &Path, patched: &Path) -> anyhow::Result<()> {
    let wanted = hash(&(fs::read(patch)?, published)).to_string();
    let stamp = patched.join(".patched");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if patched.exists() {
        fs::remove_dir_all(patched)?;
    }
    copy_dir(published, patched)?;
    // Outside any repository of git's, so that paths are those of the patch.
    let mut apply = sh::command(patched, &["git", "apply", "--whitespace=nowarn"]);
    apply.arg(patch).env(
        "GIT_CEILING_DIRECTORIES",
        patched.parent().unwrap_or(patched),
    );
    sh::run(&mut apply).with_context(|| {
        format!(
            "{} does not apply to {}\nhint: look at what changed there and write the patch anew",
            patch.display(),
            published.display(),
        )
    })?;
    fs::write(stamp, wanted)?;
    Ok(())
}

/// The crates of the native lock file: version, and where cargo unpacked the source.
fn published(root: &Path) -> anyhow::Result<BTreeMap<String, (String, PathBuf)>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        manifest_path: PathBuf,
    }

    let words = ["cargo", "metadata", "--format-version=1"];
    let text = sh::read(&mut sh::command(root, &words))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata")?;
    let sources = metadata.packages.into_iter().map(|package| {
        let source = package.manifest_path.with_file_name("");
        (package.name, (package.version, source))
    });
    Ok(sources.collect())
}

/// The glue generator in xtask and the crate in the wasm speak one version's private format.
fn same_wasm_bindgen(root: &Path, build: &Build) -> anyhow::Result<()> {
    let cli = locked(&root.join("Cargo.lock"), "wasm-bindgen-cli-support")?;
    let krate = locked(
        &root.join(&build.package).join("Cargo.lock"),
        "wasm-bindgen",
    )?;
    if cli != krate {
        bail!(
            "wasm-bindgen is {krate} in {0}/Cargo.lock, and its generator {cli} in Cargo.lock\n\
             hint: cargo update -p wasm-bindgen --precise {cli} in {0}",
            build.package.display(),
        );
    }
    Ok(())
}

fn locked(lock: &Path, name: &str) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<BTreeMap<String, toml::Value>>,
    }
    let text =
        fs::read_to_string(lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let lock: Lock = toml::from_str(&text)?;
    lock.package
        .iter()
        .find(|package| package.get("name").and_then(toml::Value::as_str) == Some(name))
        .and_then(|package| package.get("version")?.as_str().map(str::to_owned))
        .with_context(|| format!("no {name} in the lock file"))
}

/// Compiles the package; cargo knows by itself what has not changed.
fn compile(root: &Path, build: &Build) -> anyhow::Result<PathBuf> {
    let dir = root.join(&build.package);
    let target = dir.join("target");
    let mut cargo = sh::command(&dir, &["cargo", "build", "--lib", "--quiet"]);
    cargo.args(["--profile", &build.profile]);
    cargo
        .arg("--target=wasm32-unknown-unknown")
        .arg("--target-dir")
        .arg(&target);
    // The paths of this machine are of no use in a browser's panic message. The table in
    // .cargo/config.toml is joined with this one; a RUSTFLAGS variable would replace both.
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME"))
        .unwrap_or_default();
    let remap = [(home.as_str(), "~"), (&root.display().to_string(), ".")]
        .map(|(from, to)| format!("\"--remap-path-prefix={from}={to}\""));
    cargo.arg("--config").arg(format!(
        "target.wasm32-unknown-unknown.rustflags=[{}]",
        remap.join(", ")
    ));
    cargo
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    sh::run(&mut cargo)?;

    let manifest: toml::Table = toml::from_str(&fs::read_to_string(dir.join("Cargo.toml"))?)?;
    let name = manifest
        .get("package")
        .and_then(|package| package.get("name")?.as_str())
        .context("web-client/Cargo.toml has no package name")?;
    let profile = if build.profile == "dev" {
        "debug"
    } else {
        &build.profile
    };
    let file = format!("{}.wasm", name.replace('-', "_"));
    Ok(target
        .join("wasm32-unknown-unknown")
        .join(profile)
        .join(file))
}

/// Glue, types and the shrunk `.wasm` into the output folder.
fn bind(root: &Path, build: &Build, wasm: &Path) -> anyhow::Result<Sizes> {
    let out = root.join(&build.out_dir);
    let tools = root.join(&build.package).join("package-lock.json");
    let cli = locked(&root.join("Cargo.lock"), "wasm-bindgen-cli-support")?;
    let inputs = hash(&(build, fs::read(wasm)?, fs::read(tools)?, cli));
    let stamp = out.join(".stamp");
    let module = format!("{}_bg.wasm", build.out_name);
    if let Ok(text) = fs::read_to_string(&stamp)
        && let Ok(Stamp {
            inputs: found,
            sizes,
        }) = serde_json::from_str(&text)
        && found == inputs
        && fs::metadata(out.join(&module)).is_ok_and(|file| file.len() == sizes.raw)
    {
        return Ok(sizes);
    }

    if build.target != "web" {
        bail!(
            "wasm-pack.toml: target is \"{}\", this build makes \"web\" alone",
            build.target
        );
    }
    let bound = root.join(".build/web");
    eprintln!(
        "$ wasm-bindgen --target web --out-dir {} {}",
        bound.display(),
        wasm.display()
    );
    let mut bindgen = Bindgen::new();
    bindgen
        .input_path(wasm)
        .out_name(&build.out_name)
        .typescript(true)
        .web(true)?;
    bindgen
        .remove_name_section(true)
        .remove_producers_section(true);
    bindgen.generate(&bound).context("wasm-bindgen")?;

    let small = bound.join("small.wasm");
    let wasm_opt = root.join(&build.package).join("node_modules/.bin/wasm-opt");
    let mut command = sh::command(root, &[&wasm_opt]);
    command
        .arg(bound.join(&module))
        .args(&build.wasm_opt)
        .arg("-o")
        .arg(&small);
    sh::run(&mut command).context("hint: `cargo xtask setup` installs wasm-opt")?;

    let sizes = measure(root, &small)?;
    fs::create_dir_all(&out)?;
    for entry in fs::read_dir(&bound)? {
        let entry = entry?;
        let name = entry.file_name();
        let from = if name == *module {
            small.clone()
        } else {
            entry.path()
        };
        if entry.path() != small {
            fs::copy(from, out.join(name))?;
        }
    }
    fs::write(
        stamp,
        serde_json::to_string(&Stamp {
            inputs,
            sizes: Sizes { ..sizes },
        })?,
    )?;
    fs::remove_dir_all(bound)?;
    Ok(sizes)
}

/// Node is needed for wasm-opt anyway, and has both compressors.
fn measure(root: &Path, wasm: &Path) -> anyhow::Result<Sizes> {
    let script = "const z = require('zlib'), b = require('fs').readFileSync(process.argv[1]);\
        console.log(JSON.stringify({ raw: b.length, gzip: z.gzipSync(b, { level: 9 }).length, \
        brotli: z.brotliCompressSync(b).length }))";
    let mut node = sh::command(root, &["node", "-e", script]);
    node.arg(wasm);
    serde_json::from_str(&sh::read(&mut node)?).context("sizes")
}

/// The page, when anything it is made of has changed.
fn page(root: &Path) -> anyhow::Result<()> {
    let www = root.join("www");
    if !www.join("package.json").exists() {
        return Ok(());
    }
    let mut hasher = DefaultHasher::new();
    hash_dir(&www, &mut hasher)?;
    let wanted = hasher.finish().to_string();
    let stamp = root.join(".build/page");
    let built = www.join("dist/index.html").exists();
    if built && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    sh::run(&mut sh::command(&www, &["npm", "run", "build", "--silent"]))?;
    fs::write(stamp, wanted)?;
    Ok(())
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Names and contents of a folder's files, but for what is made from them.
fn hash_dir(dir: &Path, hasher: &mut DefaultHasher) -> anyhow::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        if name == "node_modules" || name.to_string_lossy().starts_with("dist") {
            continue;
        }
        name.hash(hasher);
        if entry.file_type()?.is_dir() {
            hash_dir(&entry.path(), hasher)?;
        } else {
            fs::read(entry.path())?.hash(hasher);
        }
    }
    Ok(())
}

fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
