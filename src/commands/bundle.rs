//! `backhaul bundle`: upgrade bundles, for whoever makes them.

use std::path::{Path, PathBuf};

use api::format_bytes;
use clap::{Args, Subcommand};
use serde_json::json;
use signed::{Build, BundleManifest, PublicKey, SecretKey};

use super::cli::Common;
use super::failure::Failure;
use super::{license, output};
use crate::fleet::bundle::said;

/// `bundle …`.
#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Make the pair of keys that bundles and images are signed with: the secret one stays in the file, the public one goes
    /// into each backhauld.toml
    Keygen {
        /// File for the secret key; must not exist
        file: PathBuf,
    },
    /// Make a signed bundle of a program
    Pack(PackArgs),
    /// What a bundle holds, and by whom it is signed
    Show {
        /// The bundle
        file: PathBuf,
        /// Say whether this public key has signed it
        #[arg(long, value_name = "KEY")]
        trust: Option<PublicKey>,
    },
}

/// `bundle pack`.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// The backhauld to bring to the proxies
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// Secret key to sign with
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Its version, e.g. 0.2.0
    #[arg(long)]
    version: String,
    /// Which build of that version, e.g. a commit
    #[arg(long)]
    build: String,
    /// Release channel
    #[arg(long, default_value = "stable")]
    channel: String,
    /// Processor it runs on, e.g. x86_64, aarch64 [default: that of this machine]
    #[arg(long)]
    arch: Option<String>,
    /// Compression, from 1, quick, to 22, small
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// The bundle to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs it.
///
/// # Errors
/// [`Failure`].
pub fn run(common: &Common, command: BundleCommand) -> Result<(), Failure> {
    match command {
        BundleCommand::Keygen { file } => license::keygen(common, &file, "[upgrade]\nkeys"),
        BundleCommand::Pack(arguments) => pack(common, &arguments),
        BundleCommand::Show { file, trust } => show(common, &file, trust.as_ref()),
    }
}

fn pack(common: &Common, arguments: &PackArgs) -> Result<(), Failure> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| Failure::file("read", path, &error));
    let text = String::from_utf8(read(&arguments.key)?);
    let text = text.map_err(|_| Failure::usage(format!("{} holds no key", arguments.key.display())))?;
    let key: SecretKey = text.parse().map_err(|error| Failure::usage(format!("{}: {error}", arguments.key.display())))?;
    let program = read(&arguments.program)?;
    let build = Build {
        version: arguments.version.clone(),
        channel: arguments.channel.clone(),
        build: arguments.build.clone(),
        arch: arguments.arch.clone().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
    };
    let bundle = signed::pack_bundle_at(arguments.level, &program, &build, &key).map_err(|error| Failure::usage(said(&error)))?;
    std::fs::write(&arguments.output, &bundle).map_err(|error| Failure::file("write", &arguments.output, &error))?;
    show(common, &arguments.output, Some(&key.public()))
}

fn show(common: &Common, file: &Path, trust: Option<&PublicKey>) -> Result<(), Failure> {
    let bundle = std::fs::read(file).map_err(|error| Failure::file("read", file, &error))?;
    let refused = |error: signed::BundleError| Failure::refused("BUNDLE", format!("{}: {}", file.display(), said(&error)));
    let (manifest, signer) = BundleManifest::read_of_anyone(&mut bundle.as_slice()).map_err(refused)?;
    // Its signer is whoever it is; whether it is whole can be said all the same.
    signed::open_bundle(bundle.as_slice(), &[trust.unwrap_or(&signer).clone()]).map_err(refused)?;
    let build = &manifest.build;
    if common.json {
        return Ok(output::json(&json!({
            "version": build.version, "channel": build.channel, "build": build.build, "arch": build.arch,
            "bytes": bundle.len(), "programBytes": manifest.size, "sha256": manifest.sha256,
            "signer": signer.to_string(), "signerId": signer.id(), "trusted": trust.map(|trust| *trust == signer),
        }))?);
    }
    let verdict = if trust.is_some() { "the key that was given" } else { "not compared with any key: --trust KEY does" };
    let lines = [
        ("version", build.version.clone()),
        ("channel", build.channel.clone()),
        ("build", build.build.clone()),
        ("arch", build.arch.clone()),
        ("size", format!("{}, the program {}", format_bytes(bundle.len() as u64), format_bytes(manifest.size))),
        ("program", format!("SHA-256 {}", manifest.sha256)),
        ("signer", format!("{} ({verdict})", signer.id())),
    ];
    for (key, value) in lines {
        output::line(&format!("{key:<8} {}", output::printable(&value)))?;
    }
    Ok(())
}
