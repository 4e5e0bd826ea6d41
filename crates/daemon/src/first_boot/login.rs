//! The technician's account of a real machine. Secrets go over standard input, where no list of processes shows them.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use super::settings::Login;
use crate::files::write_private;

/// The account's name. The image has it, without a password.
const ACCOUNT: &str = "technician";

/// Changes the account; what failed, in words without secrets.
pub(super) fn apply(login: &Login) -> Result<(), String> {
    match login {
        Login::Hash(hash) => feed(&["-e"], hash.expose()),
        Login::Password(password) => feed(&[], password.expose()),
        Login::Key(line) => authorize(line),
        Login::Off => switch_off(),
    }
}

fn feed(arguments: &[&str], secret: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot run chpasswd for {ACCOUNT}: {error}");
    let mut child = Command::new("chpasswd").args(arguments).stdin(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(format!("{ACCOUNT}:{secret}\n").as_bytes()).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if status.success() { Ok(()) } else { Err(format!("chpasswd could not set the password of {ACCOUNT}: {status}")) }
}

fn authorize(line: &str) -> Result<(), String> {
    let account = Account::find()?;
    let folder = Path::new(&account.home).join(".ssh");
    let file = folder.join("authorized_keys");
    let write = || {
        if !folder.is_dir() {
            std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        }
        chown(&folder, Some(account.user), Some(account.group))?;
        write_private(&file, format!("{line}\n").as_bytes())?;
        chown(&file, Some(account.user), Some(account.group))
    };
    write().map_err(|error: std::io::Error| format!("cannot write {}: {error}", file.display()))
}

fn switch_off() -> Result<(), String> {
    let status = Command::new("usermod").args(["-L", ACCOUNT]).status();
    let status = status.map_err(|error| format!("cannot run usermod for {ACCOUNT}: {error}"))?;
    if !status.success() {
        return Err(format!("usermod could not lock {ACCOUNT}: {status}"));
    }
    let file = Path::new(&Account::find()?.home).join(".ssh/authorized_keys");
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("cannot remove {}: {error}", file.display())),
        _ => Ok(()),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Account {
    user: u32,
    group: u32,
    home: String,
}

impl Account {
    fn find() -> Result<Self, String> {
        let accounts = std::fs::read_to_string("/etc/passwd").map_err(|error| format!("cannot read /etc/passwd: {error}"))?;
        Self::parse(&accounts).ok_or_else(|| format!("this machine has no account {ACCOUNT}"))
    }

    fn parse(accounts: &str) -> Option<Self> {
        let line = accounts.lines().find_map(|line| line.strip_prefix(ACCOUNT)?.strip_prefix(':'))?;
        let mut fields = line.split(':').skip(1);
        let (user, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Self { user, group, home: fields.nth(1).filter(|home| home.starts_with('/'))?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_found_by_its_whole_name() {
        let accounts = "root:x:0:0:root:/root:/bin/bash\ntechnicians:x:5:5::/a:/b\ntechnician:x:1001:1002:T:/home/t:/bin/bash\n";
        let found = Account { user: 1001, group: 1002, home: "/home/t".into() };
        assert_eq!(Account::parse(accounts), Some(found));
        assert_eq!(Account::parse("root:x:0:0:root:/root:/bin/bash\n"), None);
    }
}
