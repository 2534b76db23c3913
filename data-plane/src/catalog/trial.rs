//! Which revision a process may not have survived: one that was new when the process died, twice in a row, is not started with a
//! third time, as long as an older one is known to be good.
//!
//! Three small files beside the snapshots: `trial` (the revision in use that has not yet lasted, and how many deaths it has seen),
//! `proven` (the newest revision that has lasted), `quarantine` (the revision that is refused until the next one).
//! They are hints: an unreadable one counts as absent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tollway_shared::ids::Revision;

/// A revision that was in use this long has lasted.
pub const LASTED: Duration = Duration::from_secs(60);
/// Deaths in a row on one new revision before it is quarantined.
const DEATHS_MAX: u64 = 2;

/// The hints of one data folder.
#[derive(Debug)]
pub struct Trial {
    folder: PathBuf,
    deaths: u64,
    of: Option<Revision>,
    quarantined: Option<Revision>,
}

impl Trial {
    /// Reads the hints at start; `on_disk` are the revisions that could be started with.
    pub fn open(folder: &Path, on_disk: &[Revision]) -> Self {
        let mut trial = Self {
            folder: folder.to_owned(),
            deaths: 0,
            of: None,
            quarantined: None,
        };
        trial.quarantined = trial
            .numbers("quarantine")
            .map(|(revision, _)| Revision(revision));
        if let Some((revision, deaths)) = trial.numbers("trial") {
            trial.of = Some(Revision(revision));
            trial.deaths = deaths + 1;
        }
        let proven = trial.numbers("proven").map(|(revision, _)| Revision(revision));
        if let Some(suspect) = trial.of.filter(|_| trial.deaths >= DEATHS_MAX) {
            let fallback = on_disk
                .iter()
                .any(|revision| Some(*revision) <= proven && *revision < suspect);
            if fallback {
                tracing::error!(revision = %suspect, deaths = trial.deaths, "this revision is quarantined");
                trial.quarantined = Some(suspect);
                trial.note("quarantine", &suspect.to_string());
            }
        }
        trial
    }

    /// The revision that must not be used.
    pub fn quarantined(&self) -> Option<Revision> {
        self.quarantined
    }

    /// A revision is about to be used.
    pub fn begin(&mut self, revision: Revision) {
        if self.of != Some(revision) {
            self.deaths = 0;
        }
        self.of = Some(revision);
        self.note("trial", &format!("{revision} {}", self.deaths));
    }

    /// The revision in use has lasted.
    pub fn lasted(&mut self) {
        if let Some(revision) = self.of {
            self.note("proven", &revision.to_string());
        }
        self.end();
    }

    /// The process stops on purpose: that is no death.
    pub fn end(&mut self) {
        self.deaths = 0;
        match std::fs::remove_file(self.folder.join("trial")) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%fault, "the trial file cannot be removed");
            }
            _ => {}
        }
    }

    fn note(&self, name: &str, text: &str) {
        if let Err(fault) = std::fs::write(self.folder.join(name), text) {
            tracing::warn!(%fault, file = name, "a hint about revisions cannot be written");
        }
    }

    /// The one or two numbers of a file.
    fn numbers(&self, name: &str) -> Option<(u64, u64)> {
        let text = std::fs::read_to_string(self.folder.join(name)).ok()?;
        let mut words = text.split_whitespace();
        let first = words.next()?.parse().ok()?;
        Some((
            first,
            words.next().and_then(|word| word.parse().ok()).unwrap_or(0),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Revision; 2] = [Revision(8), Revision(7)];

    #[test]
    fn a_revision_that_two_processes_died_on_is_not_started_with_again() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Trial::open(folder.path(), &BOTH);
        let mut first = open();
        first.begin(Revision(7));
        first.lasted();
        first.begin(Revision(8)); // and dies
        let mut second = open();
        assert_eq!(second.quarantined(), None);
        second.begin(Revision(8)); // and dies
        let mut third = open();
        assert_eq!(third.quarantined(), Some(Revision(8)));
        third.begin(Revision(7));
        third.end();
        assert_eq!(open().quarantined(), Some(Revision(8)), "for good");
    }

    #[test]
    fn nothing_is_quarantined_without_something_better_or_after_orderly_stops() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..4 {
            let mut trial = Trial::open(folder.path(), &BOTH);
            assert_eq!(trial.quarantined(), None, "no revision has ever lasted");
            trial.begin(Revision(8));
        }
        let mut trial = Trial::open(folder.path(), &BOTH);
        trial.begin(Revision(7));
        trial.lasted();
        for _ in 0..4 {
            let mut trial = Trial::open(folder.path(), &BOTH);
            assert_eq!(trial.quarantined(), None, "every process stopped on purpose");
            trial.begin(Revision(8));
            trial.end();
        }
    }
}
