//! What a configuration may say, and how it is told what is wrong.

use super::*;

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let fault = Config::parse("data_dir = \"/x\"\n[admin]\nlissten = \"127.0.0.1:1\"\n")
        .unwrap_err()
        .to_string();
    assert!(fault.contains("line 3") && fault.contains("lissten"), "{fault}");
    let fault = Config::parse("[usage]\nsource = \"kafak\"\n")
        .unwrap_err()
        .to_string();
    assert!(fault.contains("line 2") && fault.contains("kafak"), "{fault}");
}

#[test]
fn plain_http_is_refused_beyond_loopback() {
    let config = Config::parse("[admin]\nlisten = \"10.0.0.1:7600\"\ntls = \"off\"\n").unwrap();
    let fault = config.check().unwrap_err().to_string();
    assert!(
        fault.contains("`admin.tls`") && fault.contains("loopback"),
        "{fault}"
    );
    assert!(Config::parse("[admin]\ntls = \"off\"\n").unwrap().check().is_ok());
}

#[test]
fn every_address_needs_one_to_advertise() {
    let config = Config::parse("[peer]\nlisten = \"0.0.0.0:7601\"\n").unwrap();
    assert!(
        config
            .check()
            .unwrap_err()
            .to_string()
            .contains("`peer.advertise`")
    );
}

#[test]
fn what_is_printed_is_a_config_without_secrets() {
    let config =
        Config::parse("[usage.kafka]\n\"sasl.password\" = \"hunter2\"\n\"sasl.username\" = \"u\"\n").unwrap();
    let printed = config.printed();
    assert!(
        !printed.contains("hunter2") && printed.contains("***"),
        "{printed}"
    );
    assert_eq!(
        Config::parse(&Config::default().printed()).unwrap(),
        Config::default()
    );
}

#[test]
fn a_value_that_cannot_be_is_refused_with_its_key_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("control.toml");
    let load = |text: &str, overrides| {
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file), overrides).unwrap_err().to_string()
    };
    for (text, key) in [
        ("[raft]\nheartbeat_ms = 0\n", "raft.heartbeat_ms"),
        ("[raft]\nheartbeat_ms = 1000\n", "raft.heartbeat_ms"),
        ("[raft]\ncheckpoint_entries = 0\n", "raft.checkpoint_entries"),
        ("[usage]\npartitions = 0\n", "usage.partitions"),
        ("[usage]\nretention_days = 0\n", "usage.retention_days"),
        ("[usage]\nsource = \"kafka\"\n", "usage.brokers"),
        ("[usage]\nsource = \"file\"\n", "usage.dir"),
        ("[billing]\ngenerations_days = 0\n", "billing.generations_days"),
        ("[billing]\ntopic = \"tollway.usage.v1\"\n", "billing.topic"),
        ("[log]\nlevel = \"inof\"\n", "log.level"),
        ("[peer]\nadvertise = \"https://c1:7601\"\n", "peer.advertise"),
    ] {
        let fault = load(text, Overrides::default());
        let line = if fault.contains("is missing") {
            "line 1"
        } else {
            "line 2"
        };
        assert!(fault.contains(line) && fault.contains(key), "{fault}");
    }
    let overrides = Overrides {
        log_level: Some("loud".into()),
        ..Overrides::default()
    };
    let fault = load("[log]\nlevel = \"info\"\n", overrides);
    assert!(fault.contains("log.level") && !fault.contains("line"), "{fault}");
}

#[test]
fn every_number_has_a_range_and_its_default_lies_in_it() {
    fn count(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::Object(fields) => fields.values().map(count).sum(),
            value => usize::from(value.is_number()),
        }
    }
    let config = Config::default();
    assert_eq!(
        count(&serde_json::to_value(&config).unwrap()),
        config.numbers().len()
    );
    config.check().unwrap();
}

#[test]
fn flags_win_over_the_file() {
    let mut config = Config::parse("data_dir = \"/from/file\"\n").unwrap();
    config.overlay(Overrides {
        data_dir: Some("/from/flag".into()),
        ..Overrides::default()
    });
    assert_eq!(config.data_dir, PathBuf::from("/from/flag"));
}
