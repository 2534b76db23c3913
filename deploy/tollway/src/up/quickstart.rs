//! The two small files that `tollway up` keeps beside the planes' data, readable by their owner only.
//!
//! `quickstart.json` says how to use what runs: its presence with these addresses means that it serves. `keys.json`
//! holds what must not be lost in between: it is written as soon as a key exists, before anything else is done with it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The name of the file that says how to use what runs.
pub(crate) const FILE: &str = "quickstart.json";
const KEYS_FILE: &str = "keys.json";

/// What a program needs to use what runs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quickstart {
    /// The base URL that SDKs take, ending in `/v1`.
    pub(crate) api_url: String,
    /// The base URL of the admin API.
    pub(crate) admin_url: String,
    /// An inference key.
    pub(crate) api_key: String,
    /// The owner's admin key.
    pub(crate) admin_key: String,
    /// A model that answers.
    pub(crate) model: String,
    /// Where everything is kept.
    pub(crate) data_dir: PathBuf,
}

/// Keys, and what is known of provider secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Keys {
    /// The owner's admin key.
    pub(crate) admin_key: Option<String>,
    /// An inference key.
    pub(crate) api_key: Option<String>,
    /// SHA-256 of the secrets that were written, by provider: an unchanged one is not written again.
    pub(crate) secrets: BTreeMap<String, String>,
}

/// Where data is kept when nobody says otherwise.
pub(crate) fn default_data_dir() -> PathBuf {
    let named = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = named("TOLLWAY_UP_DIR") {
        return dir;
    }
    named("XDG_DATA_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| named("HOME").map(|home| home.join(".local/share")))
        .map_or_else(|| PathBuf::from("tollway-data"), |base| base.join("tollway"))
}

/// Reads a quickstart file.
pub(crate) fn read(file: &Path) -> anyhow::Result<Quickstart> {
    read_json(file)?.with_context(|| format!("{} is not there", file.display()))
}

/// Writes the quickstart file of a data folder.
pub(crate) fn write(quickstart: &Quickstart) -> anyhow::Result<()> {
    write_json(&quickstart.data_dir.join(FILE), quickstart)
}

/// Reads the keys of a data folder; those of `quickstart.json` when that is all there is.
pub(crate) fn read_keys(data_dir: &Path) -> anyhow::Result<Keys> {
    if let Some(keys) = read_json(&data_dir.join(KEYS_FILE))? {
        return Ok(keys);
    }
    let old: Option<Quickstart> = read_json(&data_dir.join(FILE))?;
    Ok(old.map_or_else(Keys::default, |old| Keys {
        admin_key: Some(old.admin_key),
        api_key: Some(old.api_key),
        secrets: BTreeMap::new(),
    }))
}

/// Writes the keys of a data folder.
pub(crate) fn write_keys(data_dir: &Path, keys: &Keys) -> anyhow::Result<()> {
    write_json(&data_dir.join(KEYS_FILE), keys)
}

fn read_json<T: DeserializeOwned>(file: &Path) -> anyhow::Result<Option<T>> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged", file.display()))
            .map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Beside it first and then renamed: a reader sees the old file or the whole new one, and never one that others may read.
fn write_json<T: Serialize>(file: &Path, value: &T) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("keys are JSON")?;
    let part = file.with_extension("json.part");
    let written = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&part); // of a crash; create_new below must set the mode
        let mut out = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)?;
        out.write_all(text.as_bytes())?;
        out.write_all(b"\n")?;
        out.sync_all()?;
        std::fs::rename(&part, file)?;
        match file.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    written().with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_are_for_their_owner_and_keys_survive() {
        let dir = std::env::temp_dir().join(format!("tollway-quickstart-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(read_keys(&dir).unwrap(), Keys::default());
        let quickstart = Quickstart {
            api_url: "http://127.0.0.1:1/v1".into(),
            admin_url: "http://127.0.0.1:2".into(),
            api_key: "sk".into(),
            admin_key: "ak".into(),
            model: "demo/echo".into(),
            data_dir: dir.clone(),
        };
        write(&quickstart).unwrap();
        write(&quickstart).unwrap();
        assert_eq!(read(&dir.join(FILE)).unwrap(), quickstart);
        let mode = std::fs::metadata(dir.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut keys = read_keys(&dir).unwrap();
        assert_eq!(keys.admin_key.as_deref(), Some("ak"));
        keys.secrets.insert("openai".into(), "00".into());
        write_keys(&dir, &keys).unwrap();
        assert_eq!(read_keys(&dir).unwrap(), keys);
        std::fs::write(dir.join("keys.json"), "{").unwrap();
        assert!(read_keys(&dir).unwrap_err().to_string().contains("damaged"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
