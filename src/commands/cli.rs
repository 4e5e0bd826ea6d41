//! The command line: one definition for parsing, `--help` and the documentation.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::bundle::BundleCommand;
use super::deploy::{DeployArgs, ReconfigureArgs, RedeployArgs};
use super::doctor::{DoctorArgs, SupportArgs};
use super::license::LicenseCommand;
use super::maintain::{CertificateCommand, SetArgs, Switch, TokenCommand};
use super::ssh::UndeployArgs;
use super::upgrade::UpgradeArgs;

/// The console over a fleet of backup proxies; without a command, its screen.
#[derive(Debug, Parser)]
#[command(name = "backhaul", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Settings for all commands.
    #[command(flatten)]
    pub common: Common,
    /// How the screen looks.
    #[command(flatten)]
    pub screen: Screen,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 proxy unreachable, 4 refused.";

/// Settings that every command understands.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// Configuration folder of the console [default: the user's]
    #[arg(long, value_name = "DIR", global = true)]
    pub config: Option<PathBuf>,
    /// Ask only this proxy
    #[arg(long, value_name = "NAME", global = true)]
    pub proxy: Option<String>,
    /// Answer in JSON: lists as one array, watches as one event a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Refuse everything that changes anything on a proxy
    #[arg(long, global = true)]
    pub read_only: bool,
}

/// How the screen looks.
#[derive(Debug, Clone, Default, Args)]
pub struct Screen {
    /// Draw with seven-bit characters only
    #[arg(long)]
    pub ascii: bool,
    /// A built-in theme by name, or a theme file by path
    #[arg(long, value_name = "THEME")]
    pub theme: Option<String>,
    /// Number of colours [default: what the terminal can]
    #[arg(long, value_name = "COLOURS", value_enum)]
    pub colors: Option<Colors>,
}

/// Numbers of colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Colors {
    /// None.
    None,
    /// The terminal's own sixteen.
    #[value(name = "16")]
    Sixteen,
    /// The usual palette.
    #[value(name = "256")]
    Palette,
    /// All.
    True,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check everything that proxies depend on, and say what to do about what is wrong
    Doctor(DoctorArgs),
    /// Fetch a text about a proxy for whoever is asked for help, its secrets taken out
    Support(SupportArgs),
    /// Run a few simulated sites: pools with VMs, proxies, remotes, and the console on them
    Lab(Lab),
    /// The proxies this console knows
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// Licences: issue, import, bind
    #[command(subcommand)]
    License(LicenseCommand),
    /// Upgrade bundles: make, look at
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// The pools a proxy reads from and restores to
    #[command(subcommand)]
    Pool(PoolCommand),
    /// The VMs of the pools
    #[command(subcommand)]
    Vm(VmCommand),
    /// The storage repositories of the pools
    #[command(subcommand)]
    Sr(SrCommand),
    /// The remotes: where backups are kept
    #[command(subcommand)]
    Remote(RemoteCommand),
    /// The backup jobs
    #[command(subcommand)]
    Job(JobCommand),
    /// The runs: executions of jobs, restores, verifications
    #[command(subcommand)]
    Run(RunCommand),
    /// The restore points
    #[command(subcommand)]
    Backup(BackupCommand),
}

/// `lab`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Lab {
    /// Run without a screen until SIGTERM or ctrl-C, and keep everything in --dir
    #[arg(long, requires = "dir")]
    pub serve: bool,
    /// Folder of the lab, kept afterwards [default: a temporary one that goes with it]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Small disks: quick to build, for tests
    #[arg(long)]
    pub small: bool,
    /// MiB a second that each connection to a pool carries; 0 for no limit [default: 10 with a screen, so that there is
    /// something to watch; 0 with --serve]
    #[arg(long, value_name = "MIB")]
    pub line: Option<u32>,
    /// Ask for licences: the issuer's key is made in the folder
    #[arg(long)]
    pub licensed: bool,
    /// KiB a second that each running VM writes to its first disk
    #[arg(long, value_name = "KIB", default_value_t = 0)]
    pub writes: u32,
    /// Something done to a running lab.
    #[command(subcommand)]
    pub command: Option<LabCommand>,
}

/// `lab …`.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Change a share of the blocks of a VM's disks, as its guest would
    Mutate {
        /// Folder of the lab
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The VM, by name or UUID
        #[arg(long, value_name = "NAME")]
        vm: String,
        /// Share of the blocks, in percent
        #[arg(long, value_name = "N", value_parser = percent)]
        percent: f64,
    },
    /// Become a program that ends when its parent does
    #[command(hide = true)]
    Guard {
        /// Process id of the parent
        parent: i32,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
}

fn percent(text: &str) -> Result<f64, String> {
    let expected = "expected a number above 0, at most 100".to_owned();
    text.parse().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0).ok_or(expected)
}

/// A time such as `90s`, `30m`, `12h`, `7d`, or `0`.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let expected = || "expected a number with s, m, h or d behind it, e.g. 12h".to_owned();
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "" if number == "0" => 1,
        _ => return Err(expected()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(expected)
}

/// `proxy …`.
#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// All proxies of the configuration, with their state
    List,
    /// One proxy
    Show {
        /// Its name
        name: String,
    },
    /// Get to know a proxy: its certificate is shown and pinned, its token checked and stored
    Add {
        /// https://HOST[:PORT], after what to call it [default: what it calls itself]
        #[arg(value_name = "[NAME] URL", num_args = 1..=2, required = true)]
        place: Vec<String>,
        /// Where the token comes from.
        #[command(flatten)]
        token: TokenSource,
        /// SHA-256 of its certificate, as `backhauld fingerprint` prints it on its host; anything else is refused
        #[arg(long, value_name = "FP")]
        fingerprint: Option<String>,
        /// Pin whatever certificate it shows now, without asking
        #[arg(long, conflicts_with = "fingerprint")]
        accept_fingerprint: bool,
    },
    /// Accept the changed certificate of a proxy: the pinned one and the new one are shown, then asked about
    Trust {
        /// Its name
        name: String,
        /// SHA-256 of the new certificate, as `backhauld fingerprint` prints it on its host; anything else is refused
        #[arg(long, value_name = "FP")]
        fingerprint: Option<String>,
    },
    /// Forget a proxy; nothing changes on it
    Remove {
        /// Its name
        name: String,
    },
    /// Deploy a new proxy into a pool, or with --ssh onto any Linux: the plan is shown first, and nothing is touched before
    /// it is accepted
    Deploy(Box<DeployArgs>),
    /// Remove a proxy that was deployed with --ssh from its host
    Undeploy(UndeployArgs),
    /// The proxies that have been deployed, and by whom
    Deployed,
    /// Get to know a deployed proxy: its address, certificate and token come from the proxy that deployed it
    Claim {
        /// Its name or id
        name: String,
    },
    /// Tell the proxy that deployed this one how it is called and reached now, as this console knows it
    Adopt {
        /// Its name
        name: String,
    },
    /// The certificate of a proxy
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Hold new runs of a proxy back, or let them start again
    Drain {
        /// Its name
        name: String,
        /// On: nothing new starts, and what runs goes on
        #[arg(value_enum)]
        switch: Switch,
    },
    /// Change address or resources of a deployed proxy; its VM is restarted
    Reconfigure(ReconfigureArgs),
    /// Make a deployed proxy anew from an image; jobs, remotes and identity stay
    Redeploy(RedeployArgs),
    /// Change name, site or HTTP proxy of a proxy
    Set(SetArgs),
    /// The token of a proxy
    #[command(subcommand)]
    Token(TokenCommand),
    /// Upgrade proxies to a signed bundle, one after the other, and stop at the first that fails
    Upgrade(UpgradeArgs),
    /// Destroy a deployed proxy with its VM; its licence is free again
    Destroy {
        /// Its name or id
        name: String,
        /// Its name once more, instead of typing it when asked
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
        /// Let the backups go that lie on the proxy's own disk
        #[arg(long)]
        discard_local_backups: bool,
    },
    /// Forget a deployed proxy and free its licence; its VM stays
    Forget {
        /// Its name or id
        name: String,
    },
}

/// Where a token comes from: never from the command line, which others can see.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct TokenSource {
    /// Read the token from this file
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Read the token from standard input
    #[arg(long)]
    pub token_stdin: bool,
}

/// `pool …`.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// The pools
    List,
    /// Connect a pool; the password comes from a file, a variable or standard input
    Add {
        /// https://HOST[:PORT] of its master
        url: String,
        /// User
        #[arg(long, default_value = "root")]
        username: String,
        /// What to call it [default: its own name]
        #[arg(long)]
        name: Option<String>,
        /// Where the password comes from.
        #[command(flatten)]
        password: PasswordSource,
        /// SHA-256 of the master's certificate; without it, what is shown now is pinned and told
        #[arg(long, value_name = "FP")]
        fingerprint: Option<String>,
    },
    /// Forget a pool; nothing changes on it
    Remove {
        /// Its name or id
        pool: String,
    },
}

/// Where a password comes from; default: standard input.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct PasswordSource {
    /// Read the password from this file
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Read the password from this environment variable
    #[arg(long, value_name = "VARIABLE")]
    pub password_env: Option<String>,
}

/// `vm …`.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// The VMs
    List {
        /// Of this pool only, by name or id
        #[arg(long)]
        pool: Option<String>,
    },
}

/// `sr …`.
#[derive(Debug, Subcommand)]
pub enum SrCommand {
    /// The storage repositories
    List {
        /// Of this pool only, by name or id
        #[arg(long)]
        pool: Option<String>,
    },
}

/// `remote …`.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// The remotes
    List,
    /// Open a remote and remember it
    Add {
        /// What to call it
        name: String,
        /// E.g. file:///srv/backups or file:///srv/backups?useVhdDirectory=true; `-` reads it from standard input, for
        /// one that holds a password
        url: String,
    },
    /// Write, read back and compare 10 MiB
    Test {
        /// Its name or id
        remote: String,
    },
    /// Forget a remote; its files stay
    Remove {
        /// Its name or id
        remote: String,
    },
}

/// `job …`.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// The jobs
    List,
    /// One job
    Show {
        /// Its name or id
        job: String,
    },
    /// Create a job
    Add(JobAdd),
    /// Follow its schedule
    Enable {
        /// Its name or id
        job: String,
    },
    /// Do not follow its schedule
    Disable {
        /// Its name or id
        job: String,
    },
    /// Remove a job; its restore points stay
    Remove {
        /// Its name or id
        job: String,
    },
    /// Start a job now
    Run {
        /// Its name or id
        job: String,
        /// Follow the run to its end; the exit code is then the run's
        #[arg(long)]
        watch: bool,
    },
}

/// `job add`.
#[derive(Debug, Args)]
pub struct JobAdd {
    /// What to call it
    #[arg(long)]
    pub name: String,
    /// Incremental (a key, then deltas), or a whole XVA each time
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// The VMs, by name or UUID
    #[arg(long = "vm", value_name = "NAME|UUID", required = true, num_args = 1..)]
    pub vms: Vec<String>,
    /// The remotes, by name or id
    #[arg(long = "remote", value_name = "NAME", required = true, num_args = 1..)]
    pub remotes: Vec<String>,
    /// When, in five cron fields, e.g. "0 2 * * *" [default: only by hand]
    #[arg(long, value_name = "CRON")]
    pub schedule: Option<String>,
    /// Time zone of the schedule, e.g. Europe/Paris [default: this machine's]
    #[arg(long, value_name = "TZ", requires = "schedule")]
    pub timezone: Option<String>,
    /// How many restore points to keep of each VM
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub retention: u32,
    /// Compression of full backups
    #[arg(long, value_enum, default_value_t = Compress::Zstd)]
    pub compression: Compress,
    /// VMs at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub concurrency: u32,
    /// A key disk every so many runs; 0: never forced
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub full_interval: u32,
    /// Do not read disks over NBD even where the pool offers it
    #[arg(long)]
    pub no_nbd: bool,
    /// Bytes per second for the whole job; 0: unlimited
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub max_rate: u64,
    /// Do not follow the schedule yet
    #[arg(long)]
    pub disabled: bool,
}

/// Kinds of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Incremental.
    Delta,
    /// Whole.
    Full,
}

/// Compressions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// As it is.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// `run …`.
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// The runs, newest first
    List {
        /// Of this job only, by name or id
        #[arg(long)]
        job: Option<String>,
        /// At most so many of each proxy
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// One run with its tasks and log
    Show {
        /// Its id
        run: String,
    },
    /// Every event of a run until its end; the exit code is then the run's
    Watch {
        /// Its id
        run: String,
        /// Only events after this cursor
        #[arg(long, value_name = "CURSOR", default_value_t = 0)]
        from: u64,
    },
    /// Ask a run to stop
    Cancel {
        /// Its id
        run: String,
    },
}

/// `backup …`.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// The restore points, newest first
    List {
        /// Of this VM only, by name or UUID
        #[arg(long)]
        vm: Option<String>,
        /// On this remote only, by name or id
        #[arg(long)]
        remote: Option<String>,
    },
    /// Restore into a new VM
    Restore {
        /// Id of the restore point
        backup: String,
        /// The storage repository to restore to, by name or UUID
        #[arg(long, value_name = "NAME|UUID")]
        sr: String,
        /// Name of the new VM
        #[arg(long, value_name = "NEW")]
        name: Option<String>,
        /// Follow the run to its end; the exit code is then the run's
        #[arg(long)]
        watch: bool,
    },
    /// Read back and check
    Verify {
        /// Id of the restore point
        backup: String,
        /// Follow the run to its end; the exit code is then the run's
        #[arg(long)]
        watch: bool,
    },
    /// Remove
    Remove {
        /// Id of the restore point
        backup: String,
        /// Follow the run to its end; the exit code is then the run's
        #[arg(long)]
        watch: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_have_a_unit() {
        let good = [("0", 0), ("0s", 0), ("90s", 90), ("30m", 1800), ("12h", 43_200), ("30d", 2_592_000)];
        for (text, wanted) in good {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for bad in ["", "h", "10", "1 d", "-1h", "1w", "1.5h", "99999999999999999999d", "9999999999999999999d"] {
            seconds(bad).unwrap_err();
        }
    }
}
