//! Our binaries as processes: started from the build folder, their output in files, ended by pid whatever happens.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Pause between two looks at whether a process has ended.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest wait for a frozen process to stand still.
const FREEZE_MAX: Duration = Duration::from_secs(5);

/// The path of one of our binaries, beside the running test in the same build folder.
///
/// Errors: it has not been built there; the text has the command that builds it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("the running test has a path")?;
    let folder = test
        .parent()
        .and_then(Path::parent)
        .context("a test runs from target/PROFILE/deps")?;
    let path = folder.join(name);
    if !path.is_file() {
        bail!(
            "`{}` is not there; build it first: cargo build --bin {name}",
            path.display()
        );
    }
    Ok(path)
}

/// A loopback port that was free a moment ago. Prefer port 0 where the process can tell which port it took.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// A process being prepared.
pub struct Launch {
    name: String,
    logs: PathBuf,
    command: Command,
}

impl Launch {
    /// Prepares `program` under the name its log files in folder `logs` get: `NAME.out` and `NAME.err`.
    pub fn new(name: &str, program: &Path, logs: &Path) -> Self {
        Self {
            name: name.to_owned(),
            logs: logs.to_owned(),
            command: Command::new(program),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it. Its output is appended, so a restart under the same name continues the files.
    pub fn start(mut self) -> Result<Process> {
        std::fs::create_dir_all(&self.logs)?;
        let stdout = self.logs.join(format!("{}.out", self.name));
        let stderr = self.logs.join(format!("{}.err", self.name));
        let open = |path: &Path| File::options().create(true).append(true).open(path);
        self.command
            .stdin(Stdio::null())
            .stdout(open(&stdout)?)
            .stderr(open(&stderr)?);
        let child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.name))?;
        Ok(Process {
            name: self.name,
            stdout,
            stderr,
            child,
        })
    }
}

/// A running process of ours; dropping it kills it.
pub struct Process {
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    child: Child,
}

impl Process {
    /// The name it was launched under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Whether it has not ended yet. A stopped process is running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`, and waits until it is gone: nothing of it runs when this returns.
    pub fn kill(&mut self) {
        // Both fail only when it has ended and been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM: asks it to end in order.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// SIGSTOP: freezes it, and waits until it stands still; its sockets stay open and nothing answers on them.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(libc::SIGSTOP)?;
        // The signal is taken up a little later, and others sent in between would be taken up first.
        let start = Instant::now();
        while !self.stands_still()? {
            if start.elapsed() > FREEZE_MAX {
                bail!("`{}` does not stop", self.name);
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn stands_still(&self) -> Result<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The state follows the command name, which stands in brackets and may hold anything.
        Ok(stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T')))
    }

    /// SIGCONT: lets a frozen one go on.
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    /// Waits until it has ended by itself. Blocks the thread.
    ///
    /// Errors: it still runs after `deadline`; the end of its standard error is in the text.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > deadline {
                bail!(
                    "`{}` still runs after {deadline:?}; its last words:\n{}",
                    self.name,
                    self.last_words()
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The last lines of its standard error, for messages.
    pub fn last_words(&self) -> String {
        const LINES: usize = 20;
        let stderr = self.stderr();
        let lines: Vec<_> = stderr.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    fn signal(&mut self, signal: libc::c_int) -> Result<()> {
        // While we have not waited for the child its pid cannot be given to another process.
        if !self.is_running() {
            bail!(
                "`{}` has ended; its last words:\n{}",
                self.name,
                self.last_words()
            );
        }
        let pid = libc::pid_t::try_from(self.pid()).context("a pid fits its own type")?;
        #[expect(
            unsafe_code,
            reason = "the standard library can only send SIGKILL; kill(2) touches no memory of ours"
        )]
        let sent = unsafe { libc::kill(pid, signal) };
        if sent != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("cannot signal `{}`", self.name));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn text(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(folder: &Path, script: &str) -> Process {
        Launch::new("shell", Path::new("/bin/sh"), folder)
            .args(["-c", script])
            .env("WORD", "hello")
            .start()
            .unwrap()
    }

    #[test]
    fn output_is_kept_in_files_and_the_exit_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell(folder.path(), "echo $WORD; echo trouble >&2; exit 3");
        assert_eq!(process.wait(SOON).unwrap().code(), Some(3));
        assert_eq!(
            (process.stdout().as_str(), process.stderr().as_str()),
            ("hello\n", "trouble\n")
        );
        assert!(!process.is_running());
        assert!(process.terminate().is_err());
    }

    #[test]
    fn a_frozen_process_runs_on_when_thawed_and_ends_on_sigterm() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell(folder.path(), "exec sleep 600");
        process.freeze().unwrap();
        process.terminate().unwrap();
        assert!(
            process.wait(Duration::from_millis(50)).is_err(),
            "a frozen process handles no signal"
        );
        process.thaw().unwrap();
        assert_eq!(process.wait(SOON).unwrap().code(), None);
    }

    #[test]
    fn a_dropped_process_is_dead() {
        let folder = tempfile::tempdir().unwrap();
        let process = shell(folder.path(), "exec sleep 600");
        let proc_entry = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(proc_entry.exists());
        drop(process);
        assert!(!proc_entry.exists());
    }

    #[test]
    fn a_binary_that_was_not_built_is_named_with_the_command_that_builds_it() {
        assert!(
            binary("tollway-nonesuch")
                .unwrap_err()
                .to_string()
                .contains("cargo build --bin tollway-nonesuch")
        );
    }
}
