//! A test that runs itself again in Linux namespaces of its own, so that it may mount and cut what it likes: nothing of the machine
//! changes, and all of it is gone with the process.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Set in the run that has namespaces of its own.
const INSIDE: &str = "TOLLWAY_INSIDE";

/// Runs the test of this name again in namespaces of its own, and fails as it fails. Blocks for as long as the test takes.
///
/// - `kinds`: arguments of `unshare(1)`, such as `--net`. Mounts are always the test's own.
/// - Returns whether this is that run. `false`: it has passed there, and there is nothing more to do.
///
/// Errors: the machine lets neither root nor us make namespaces.
pub fn enter(test: &str, kinds: &[&str]) -> Result<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    let mut command = Command::new("unshare");
    if !is_root()? {
        command.args(["--user", "--map-root-user"]);
    }
    let status = command
        .args(kinds)
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .context("`unshare` of util-linux cannot be run")?;
    ensure!(
        status.success(),
        "in namespaces of its own, for which it needs root or user namespaces, the test failed: {status}"
    );
    Ok(false)
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(ids.is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0")))
}

/// Runs a program to its end; what it complained about is in the error.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("`{program}` cannot be run"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
