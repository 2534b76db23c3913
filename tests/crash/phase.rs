//! Which part of a request's path a system call belongs to, read off a thread's trace.

use std::fmt;

/// A part of the path. A point belongs to the part whose next call is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Nothing is on disk: reading the request, refusing it.
    Admission,
    /// The intent's write, at the first endpoint or at the next.
    Intent,
    /// From the intent to the last byte of the request upstream.
    Connect,
    /// Until the provider's answer begins.
    FirstByte,
    /// While the answer comes and goes, with its records of progress.
    MidStream,
    /// The outcome's write and what is left to say to the caller.
    Settle,
    /// The group's fsync.
    Sync,
    /// From the spool to the broker.
    Produce,
    /// The broker's acknowledgements.
    Ack,
    /// The next life: reading the spool, closing what is open.
    Recover,
    /// Deleting what is delivered.
    Truncate,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Admission => "admission",
            Self::Intent => "intent",
            Self::Connect => "connect",
            Self::FirstByte => "first byte",
            Self::MidStream => "mid-stream",
            Self::Settle => "settle",
            Self::Sync => "sync",
            Self::Produce => "produce",
            Self::Ack => "ack",
            Self::Recover => "recover",
            Self::Truncate => "truncate",
        })
    }
}

/// The longest record of progress.
const PROGRESS_BYTES_MAX: usize = 200;

/// One line of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// The system call.
    pub(crate) call: &'a str,
    /// What is between its brackets, the first descriptor told by what it is.
    pub(crate) arguments: &'a str,
    /// What it returned, if it came to that.
    pub(crate) result: Option<i64>,
}

impl<'a> Line<'a> {
    /// Reads a line. `None` for what is no call.
    pub(crate) fn read(line: &'a str) -> Option<Self> {
        let (call, rest) = line.split_once('(')?;
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if call.is_empty() || !call.chars().all(is_name) {
            return None;
        }
        let (arguments, result) = rest.rsplit_once(" = ").unwrap_or((rest, "?"));
        let result = result
            .split_whitespace()
            .next()
            .and_then(|text| text.parse().ok());
        Some(Self {
            call,
            arguments,
            result,
        })
    }

    fn is_to(&self, port: u16) -> bool {
        self.descriptor().contains(&format!("->127.0.0.1:{port}]"))
    }

    fn is_spool(&self) -> bool {
        self.descriptor().contains("/spool/")
    }

    /// The first descriptor and what it is.
    fn descriptor(&self) -> &str {
        self.arguments.split_once(">,").map_or("", |(first, _)| first)
    }

    fn writes(&self) -> bool {
        matches!(self.call, "write" | "writev" | "sendto" | "sendmsg" | "send")
    }

    fn reads(&self) -> bool {
        matches!(self.call, "read" | "readv" | "recvfrom" | "recvmsg")
    }
}

/// Follows a serving thread through its requests.
#[derive(Debug)]
pub(crate) struct Follower<'a> {
    providers: &'a [u16],
    at: Phase,
}

impl<'a> Follower<'a> {
    /// - `providers`: their ports.
    pub(crate) fn new(providers: &'a [u16]) -> Self {
        Self {
            providers,
            at: Phase::Admission,
        }
    }

    /// The phase of the next line.
    pub(crate) fn take(&mut self, line: &Line<'_>) -> Phase {
        let upstream = self.providers.iter().any(|port| line.is_to(*port));
        let (of_line, next) = match self.at {
            Phase::Admission | Phase::Settle | Phase::FirstByte
                if line.is_record() && !line.is_progress() && !line.is_outcome() =>
            {
                (Phase::Intent, Phase::Connect)
            }
            _ if line.is_record() && line.is_outcome() => (Phase::Settle, Phase::Settle),
            Phase::Connect if upstream && line.writes() => (Phase::Connect, Phase::FirstByte),
            Phase::FirstByte if upstream && line.reads() && line.result > Some(0) && !line.is_refusal() => {
                (Phase::FirstByte, Phase::MidStream)
            }
            Phase::Settle if !upstream && line.reads() && line.arguments.contains("POST /v1") => {
                (Phase::Settle, Phase::Admission)
            }
            at => (at, at),
        };
        self.at = next;
        of_line
    }
}

impl Line<'_> {
    fn is_record(&self) -> bool {
        self.call == "write" && self.is_spool()
    }

    fn is_progress(&self) -> bool {
        let length = self
            .arguments
            .trim_end()
            .trim_end_matches(')')
            .rsplit(", ")
            .next();
        let length = length.and_then(|text| text.parse::<usize>().ok());
        length.is_some_and(|length| length <= PROGRESS_BYTES_MAX)
    }

    /// An outcome has the event as JSON in it.
    fn is_outcome(&self) -> bool {
        self.arguments.contains("\\\"request_id\\\":")
    }

    fn is_refusal(&self) -> bool {
        self.arguments.contains("\"HTTP/1.1 5")
    }
}

#[test]
fn a_trace_of_a_request_that_fails_over_goes_through_the_phases_in_their_order() {
    let trace = r#"
recvfrom(29<TCP:[127.0.0.1:80->127.0.0.1:50000]>, "POST /v1/chat"..., 8192, 0, NULL, NULL) = 900
write(17</d/spool/1/1.seg>, "TW\1\6intent", 850) = 850
connect(43<TCP:[47790]>, {sa_family=AF_INET, sin_port=htons(7)}, 16) = -1 EINPROGRESS (Operation now in progress)
writev(43<TCP:[127.0.0.1:50001->127.0.0.1:7]>, [{iov_base="POST /v1"}], 2) = 900
recvfrom(43<TCP:[127.0.0.1:50001->127.0.0.1:7]>, "HTTP/1.1 503 Service Unavailable", 8192, 0, NULL, NULL) = 200
write(17</d/spool/1/1.seg>, "TW\1\6intent", 850) = 850
writev(44<TCP:[127.0.0.1:50002->127.0.0.1:8]>, [{iov_base="POST /v1"}], 2) = 900
recvfrom(44<TCP:[127.0.0.1:50002->127.0.0.1:8]>, "HTTP/1.1 200 OK", 8192, 0, NULL, NULL) = 300
write(17</d/spool/1/1.seg>, "TW\1\6progress", 57) = 57
writev(29<TCP:[127.0.0.1:80->127.0.0.1:50000]>, [{iov_base="data: "}], 2) = 280
write(17</d/spool/1/1.seg>, "TW\1\6{\"request_id\":1", 1850) = 1850
writev(29<TCP:[127.0.0.1:80->127.0.0.1:50000]>, [{iov_base="data: [DONE]"}], 2) = ?
+++ killed by SIGKILL +++
"#;
    use Phase::{Admission, Connect, FirstByte, Intent, MidStream, Settle};
    let mut follower = Follower::new(&[7, 8]);
    let phases: Vec<_> = trace
        .lines()
        .filter_map(Line::read)
        .map(|line| follower.take(&line))
        .collect();
    let first = [Admission, Intent, Connect, Connect, FirstByte, Intent];
    let second = [Connect, FirstByte, MidStream, MidStream, Settle, Settle];
    assert_eq!(phases, [first, second].concat());
}
