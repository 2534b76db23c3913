//! What a machine can check of the house's rules: arrows between crates, pure folders, file heads, file sizes, and that
//! the README's tables are the code's.
//!
//! `UPDATE_README=1 cargo test -p tollway-tests --test tidy -- --test-threads=1` rewrites the tables instead of
//! comparing them.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tollway_shared::fault::Fault;
use tollway_shared::settings::Number;

/// Lines above which a file needs a reason here.
const LINES_MAX: usize = 500;
/// Files that are longer, and why.
const LONG: &[(&str, &str)] = &[];
/// Folders and files that decide and do nothing else.
const PURE: &[&str] = &[
    "shared/src",
    "control-plane/src/state",
    "control-plane/src/ledger/rollup.rs",
    "control-plane/src/report",
    "data-plane/src/routing",
    "data-plane/src/dialects",
];
/// What they must not name, and why.
const BARRED: &[(&str, &str)] = &[
    ("SystemTime::now", "time is an argument"),
    ("Instant::now", "time is an argument"),
    ("Timestamp::now", "time is an argument"),
    ("rand::", "randomness is a passed seed"),
    ("getrandom::", "randomness is a passed seed"),
    ("HashMap", "its order differs between processes"),
    ("HashSet", "its order differs between processes"),
    ("tokio::", "pure code does not wait"),
    ("std::fs", "pure code reads no disk"),
    ("std::net", "pure code opens no connection"),
    ("std::env", "settings are arguments"),
];
/// Exceptions, and why.
const ALLOWED: &[(&str, &str, &str)] = &[
    (
        "shared/src/snapshot/mod.rs",
        "HashMap",
        "looked up by key digest on every request, and never iterated",
    ),
    (
        "shared/src/lease/holder.rs",
        "HashMap",
        "a node's slices, looked up on every request; what is made by iterating is sorted",
    ),
    (
        "control-plane/src/state/measure.rs",
        "Instant::now",
        "a measurement, built with the tests only",
    ),
];
/// Which of our crates each crate may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("shared", &[]),
    ("proto", &["tollway-shared"]),
    ("control-plane", &["tollway-shared", "tollway-proto"]),
    ("data-plane", &["tollway-shared", "tollway-proto"]),
];
/// Top folders of paths that exist on one machine only.
const MACHINE_FOLDERS: &[&str] = &["work", "root", "home", "Users"];
/// Folders that are not ours.
const SKIPPED: &[&str] = &["target", ".git", "node_modules", "__pycache__"];

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ stands in the workspace").to_owned()
}

/// Every file of the tree below `at`, with its path from the root.
fn files(at: &Path) -> Vec<(String, PathBuf)> {
    let mut out = Vec::new();
    let mut open = vec![at.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if !SKIPPED.contains(&name.as_str()) {
                open.extend(
                    std::fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            }
        } else if path.is_file() {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            out.push((name, path));
        }
    }
    out.sort();
    out
}

fn rust_files() -> Vec<(String, String)> {
    let rust = files(&root())
        .into_iter()
        .filter(|(name, _)| name.ends_with(".rs"));
    rust.map(|(name, path)| (name, std::fs::read_to_string(path).unwrap()))
        .collect()
}

fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn arrows_between_crates_point_down() {
    let mut findings = Vec::new();
    for (krate, allowed) in ARROWS {
        let manifest = std::fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = toml::from_str(&manifest).unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let names = manifest
                .get(section)
                .and_then(toml::Value::as_table)
                .into_iter()
                .flatten();
            for (name, _) in names.filter(|(name, _)| name.starts_with("tollway")) {
                // The scripted provider names none of our crates: an instrument, which tests of any crate may use.
                let instrument = section == "dev-dependencies" && name == "tollway-provider";
                if !allowed.contains(&name.as_str()) && !instrument {
                    findings.push(format!("{krate}: [{section}] {name}; it may name {allowed:?}"));
                }
            }
        }
    }
    none(findings);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = |(_, text): &(String, String)| !text.starts_with("//!");
    let findings = rust_files().into_iter().filter(silent);
    none(
        findings
            .map(|(name, _)| format!("{name}: its first line is no `//!`"))
            .collect(),
    );
}

#[test]
fn pure_code_names_no_clock_no_randomness_and_no_input() {
    let mut findings = Vec::new();
    for place in PURE {
        let found = files(&root().join(place));
        assert!(!found.is_empty(), "{place} is not there; change the list");
        for (name, path) in found
            .iter()
            .filter(|(name, _)| name.ends_with(".rs") && !name.ends_with("tests.rs"))
        {
            let text = std::fs::read_to_string(path).unwrap();
            // Tests may count as they like.
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap_or_default();
                let allowed = |word| {
                    ALLOWED
                        .iter()
                        .any(|(file, what, _)| file == name && *what == word)
                };
                for (word, reason) in BARRED
                    .iter()
                    .filter(|(word, _)| line.contains(word) && !allowed(*word))
                {
                    findings.push(format!("{name}:{}: `{word}`: {reason}", number + 1));
                }
            }
        }
    }
    none(findings);
}

#[test]
fn long_files_have_a_reason() {
    let reasons: BTreeMap<_, _> = LONG.iter().copied().collect();
    let mut findings = Vec::new();
    let mut long = BTreeSet::new();
    for (name, text) in rust_files() {
        let lines = text.lines().count();
        if lines <= LINES_MAX {
            continue;
        }
        if !reasons.contains_key(name.as_str()) {
            findings.push(format!(
                "{name}: {lines} lines; split it, or say in tests/tidy.rs why not"
            ));
        }
        long.insert(name);
    }
    let stale = reasons.keys().filter(|name| !long.contains(**name));
    findings.extend(stale.map(|name| format!("{name}: is not long any more; take it off the list")));
    none(findings);
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let endings = [
        ".rs", ".toml", ".md", ".sh", ".py", ".yaml", ".yml", ".json", ".service", ".proto", ".cjs",
    ];
    let mut findings = Vec::new();
    for (name, path) in files(&root()) {
        let script = !name.rsplit('/').next().unwrap_or_default().contains('.');
        if name == "tests/tidy.rs" || !(script || endings.iter().any(|ending| name.ends_with(ending))) {
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        for (number, line) in text.lines().enumerate() {
            // After a quote, a blank or an equals sign a path starts at the root; inside of one it does not.
            let starts = |place: usize| {
                place == 0
                    || !line.as_bytes()[place - 1].is_ascii_alphanumeric()
                        && line.as_bytes()[place - 1] != b'}'
            };
            for folder in MACHINE_FOLDERS {
                let word = format!("/{folder}/");
                if line.match_indices(&word).any(|(place, _)| starts(place)) {
                    findings.push(format!("{name}:{}: `{word}`", number + 1));
                }
            }
        }
    }
    none(findings);
}

/// Compares the part of the README between `<!-- name -->` and `<!-- /name -->` with what the code says.
fn table(name: &str, wanted: &str) {
    let path = root().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = readme
        .split_once(&begin)
        .unwrap_or_else(|| panic!("README.md has no `{begin}`"));
    let (found, after) = rest
        .split_once(&end)
        .unwrap_or_else(|| panic!("README.md has no `{end}`"));
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(&path, format!("{before}{begin}{wanted}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(
        found, wanted,
        "the table `{name}` of README.md is not the code's; UPDATE_README=1 rewrites it"
    );
}

#[test]
fn the_readme_has_the_error_table_of_the_code() {
    let mut rows = String::from(
        "| code | status | type | who acts | retried by clients | message |\n|---|---|---|---|---|---|\n",
    );
    for fault in Fault::examples() {
        let spec = fault.spec();
        let retry = if spec.retry { "yes" } else { "no" };
        rows.push_str(&format!(
            "| `{}` | {} | `{}` | {} | {retry} | {fault} |\n",
            spec.code,
            fault.status(),
            spec.kind,
            spec.owner.as_str(),
        ));
    }
    table("errors", &rows);
}

/// The leaves of a JSON tree by dotted path, with their defaults as TOML writes them. An empty table is a leaf.
fn leaves(value: &serde_json::Value, path: &str, out: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                leaves(value, &path, out);
            }
        }
        serde_json::Value::Null => {
            out.insert(path.to_owned(), "none".into());
        }
        value => {
            out.insert(path.to_owned(), format!("`{value}`"));
        }
    }
}

/// Compares keys, defaults and ranges of a table; what a setting means is written by hand, and must be.
fn settings(name: &str, config: &impl serde::Serialize, numbers: &[Number]) {
    let mut wanted = BTreeMap::new();
    leaves(&serde_json::to_value(config).unwrap(), "", &mut wanted);
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once(&format!("<!-- {name} -->")).unwrap();
    let (found, _) = rest.split_once(&format!("<!-- /{name} -->")).unwrap();
    let meanings: BTreeMap<&str, &str> = found
        .lines()
        .filter_map(|line| {
            let mut cells = line.split(" | ");
            let key = cells.next()?.strip_prefix("| `")?.strip_suffix('`')?;
            Some((key, cells.nth(2)?.strip_suffix(" |")?.trim()))
        })
        .collect();
    let mut rows = String::from("| setting | default | allowed | meaning |\n|---|---|---|---|\n");
    for (key, default) in &wanted {
        let meaning = meanings.get(key.as_str()).copied().unwrap_or("?");
        let number = numbers.iter().find(|number| number.key == key);
        let allowed = number.map_or_else(|| "–".to_owned(), Number::to_string);
        rows.push_str(&format!("| `{key}` | {default} | {allowed} | {meaning} |\n"));
    }
    table(name, &rows);
    let silent = wanted
        .keys()
        .filter(|key| meanings.get(key.as_str()).is_none_or(|meaning| *meaning == "?"));
    none(
        silent
            .map(|key| format!("README.md does not say what `{key}` means"))
            .collect(),
    );
}

#[test]
fn the_readme_has_every_setting_of_the_control_plane() {
    let config = tollway_control::config::Config::default();
    settings("control", &config, &config.numbers());
}

#[test]
fn the_readme_has_every_setting_of_the_data_plane() {
    let config = tollway_data::config::Config::default();
    settings("data", &config, &config.numbers());
}

#[test]
fn the_readme_shows_the_commands_that_deploy_cluster_runs() {
    let script = std::fs::read_to_string(root().join("deploy/cluster")).unwrap();
    let (_, rest) = script.split_once("# commands\n").unwrap();
    let (lines, _) = rest.split_once("# /commands\n").unwrap();
    let commands: Vec<_> = lines
        .lines()
        .filter_map(|line| line.trim().strip_prefix('\'')?.strip_suffix('\''))
        .collect();
    assert_eq!(commands.len(), 5);
    table("cluster", &format!("```sh\n{}\n```\n", commands.join("\n")));
}
