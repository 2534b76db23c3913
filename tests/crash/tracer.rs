//! strace: which calls a thread makes, and a kill ahead of one of them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::phase::{Follower, Line, Phase};

/// Longest part of a call's data that a trace shows: all of a record.
const SHOWN_BYTES: &str = "8192";

/// A thread of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thread {
    /// Serves requests.
    Core,
    /// Makes the spool durable.
    Sync,
    /// Hands what is in the spool to the Kafka client.
    Ship,
    /// The Kafka client's connection to the broker.
    Broker,
    /// All of them, from the start of the process.
    All,
}

/// Those that are there while a node serves.
pub(crate) const THREADS: [Thread; 4] = [Thread::Core, Thread::Sync, Thread::Ship, Thread::Broker];

impl Thread {
    /// Its name in `/proc`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Core => "core-0",
            Self::Sync => "usage-sync",
            Self::Ship => "usage-ship",
            Self::Broker => "rdk:broker1",
            Self::All => "all",
        }
    }

    /// Its id in a process.
    pub(crate) fn id(self, pid: u32) -> Result<String> {
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = entry?.path();
            let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
            if name.trim() == self.name() {
                let id = task.file_name().and_then(|id| id.to_str());
                return id.map(str::to_owned).context("a thread's id is a number");
            }
        }
        bail!("the node has no thread `{}`", self.name())
    }
}

/// The `nth` time that a thread makes a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) thread: Thread,
    pub(crate) call: String,
    pub(crate) nth: usize,
    pub(crate) phase: Phase,
}

impl Point {
    fn injected(&self) -> String {
        format!("inject={}:signal=KILL:when={}", self.call, self.nth)
    }
}

/// What a process is started under, to die at a point of its start or to be traced there.
pub(crate) fn wrapper(point: Option<&Point>, calls: &str, trace: &Path) -> Vec<String> {
    // The tracer as a grandchild: the process stays our own child.
    let mut arguments = ["strace", "-D", "-f", "-qq", "-y", "-s", "0", "-e"]
        .map(str::to_owned)
        .to_vec();
    arguments.push(format!("trace={calls}"));
    arguments.extend(
        point
            .into_iter()
            .flat_map(|point| ["-e".to_owned(), point.injected()]),
    );
    arguments.extend(["-o".to_owned(), trace.display().to_string()]);
    arguments
}

/// A tracer on a thread. Dropping it lets the thread go.
pub(crate) struct Tracer(Child);

impl Tracer {
    /// Traces a thread into a file, and kills its process at the point.
    pub(crate) fn attach(id: &str, point: Option<&Point>, trace: &Path) -> Result<Self> {
        let mut command = Command::new("strace");
        command
            .args(["-yy", "-s", SHOWN_BYTES, "-p", id, "-o"])
            .arg(trace);
        if let Some(point) = point {
            command.args(["-e", "trace=all", "-e", &point.injected()]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("strace is installed")?;
        let mut said = String::new();
        let stderr = child.stderr.take().context("it is piped")?;
        BufReader::new(stderr).read_line(&mut said)?;
        let tracer = Self(child);
        if !said.contains("attached") {
            bail!("strace does not trace thread {id}: {said}");
        }
        Ok(tracer)
    }

    /// Lets the thread go, or waits for the tracer of a thread that has died, so that the trace is whole.
    pub(crate) fn ended(mut self) -> Result<()> {
        if self.0.try_wait()?.is_none() {
            let id = self.0.id().to_string();
            // Its own end: it detaches first.
            Command::new("kill").args(["-TERM", &id]).status()?;
            self.0.wait()?;
        }
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill(); // has ended already, as a rule
        let _ = self.0.wait();
    }
}

/// Calls that do nothing but wait.
const WAITS: [&str; 3] = ["futex", "poll", "restart_syscall"];

/// The calls of a thread's trace, each with its phase and how many of its kind there were by then.
pub(crate) fn calls(thread: Thread, trace: &str, providers: &[u16]) -> Vec<Point> {
    let mut follower = Follower::new(providers);
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    let mut points = Vec::new();
    for line in trace.lines().filter_map(Line::read) {
        let phase = match thread {
            Thread::Core => follower.take(&line),
            Thread::Sync => Phase::Sync,
            Thread::Ship => Phase::Produce,
            Thread::Broker if matches!(line.call, "sendmsg" | "sendto" | "write") => Phase::Produce,
            Thread::Broker => Phase::Ack,
            Thread::All if matches!(line.call, "unlink" | "unlinkat" | "rmdir") => Phase::Truncate,
            Thread::All => Phase::Recover,
        };
        let nth = counts.entry(line.call).or_default();
        *nth += 1;
        if thread != Thread::Core && WAITS.contains(&line.call) {
            continue; // behind the requests there is a lot of it, and nothing else has changed meanwhile
        }
        points.push(Point {
            thread,
            call: line.call.to_owned(),
            nth: *nth,
            phase,
        });
    }
    points
}
