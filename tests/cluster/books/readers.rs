//! Everybody who keeps books of the same events, and what each of them says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rusqlite::OpenFlags;
use serde_json::Value;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::{DAY_MS, Day, UnixMillis};
use tollway_tests::cluster::Cluster;
use tollway_tests::process::{Launch, Process, binary};

use super::flood::{Cell, Sums};

/// Cells by organization, key, model, hour.
pub(crate) type Cells = BTreeMap<Cell, Sums>;

/// What the billing store calls the sums.
const STORED: &str = "sum(requests), sum(tokens_input), sum(tokens_input_cache_read), \
    sum(tokens_input_cache_write + tokens_input_cache_write_1h), \
    sum(tokens_output), sum(tokens_output_reasoning), sum(charge), sum(billed)";
/// What the example consumers call them.
const CONSUMED: &str = "sum(requests), sum(input), sum(input_cache_read), sum(input_cache_write), \
    sum(output), sum(output_reasoning), sum(cost_nano), sum(billed_nano)";
/// How long ClickHouse may take to answer.
const CLICKHOUSE: Duration = Duration::from_secs(60);

/// The billing store of a replica, in its SQLite file.
pub(crate) fn of_replica(cluster: &Cluster, replica: usize) -> Result<Cells> {
    let file = billing_file(cluster, replica);
    of_sqlite(
        &file,
        &format!("SELECT organization, key, model, hour, {STORED} FROM usage_by_hour GROUP BY 1, 2, 3, 4"),
    )
}

/// Where a replica keeps it.
pub(crate) fn billing_file(cluster: &Cluster, replica: usize) -> PathBuf {
    cluster
        .dir
        .path()
        .join(format!("replica-{}/billing.sqlite", replica + 1))
}

/// The tables of an example consumer in SQLite.
pub(crate) fn of_consumer(file: &Path) -> Result<Cells> {
    let hour = "CAST(strftime('%s', hour) AS INTEGER) / 3600";
    of_sqlite(
        file,
        &format!(
            "SELECT organization, api_key, model, {hour}, {CONSUMED} FROM usage_hourly GROUP BY 1, 2, 3, 4"
        ),
    )
}

fn of_sqlite(file: &Path, query: &str) -> Result<Cells> {
    let connection = rusqlite::Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(CLICKHOUSE)?;
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([], |row| {
        let mut sums = Sums::default();
        for (place, sum) in sums.iter_mut().enumerate() {
            *sum = row.get::<_, i64>(place + 4)?.into();
        }
        Ok(((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?), sums))
    });
    Ok(rows?.collect::<Result<_, _>>()?)
}

/// The tables of an example consumer in PostgreSQL. Blocks.
pub(crate) fn of_postgres(url: &str) -> Result<Cells> {
    let hour = "(extract(epoch FROM hour::timestamptz) / 3600)::bigint";
    let sums = CONSUMED.replace("),", ")::bigint,") + "::bigint";
    let query =
        format!("SELECT organization, api_key, model, {hour}, {sums} FROM usage_hourly GROUP BY 1, 2, 3, 4");
    let mut client = postgres::Client::connect(url, postgres::NoTls)?;
    let rows = client.query(&query, &[])?;
    let cell = |row: &postgres::Row| {
        let mut sums = Sums::default();
        for (place, sum) in sums.iter_mut().enumerate() {
            *sum = row.get::<_, i64>(place + 4).into();
        }
        ((row.get(0), row.get(1), row.get(2), row.get(3)), sums)
    };
    Ok(rows.iter().map(cell).collect())
}

/// A real ClickHouse (chdb) with the tables of `deploy/clickhouse`, as a process.
pub(crate) struct ClickHouse {
    process: Process,
    out: PathBuf,
}

impl ClickHouse {
    /// Starts it on `dir`, reading the topic as `group`: a new group begins at the topic's beginning.
    pub(crate) fn start(dir: &Path, bootstrap: &str, group: &str) -> Result<Self> {
        let out = dir.join(format!("{group}.json"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("warehouse/clickhouse_reader.py");
        let process = Launch::new(group, &python()?, dir)
            .args([&script, &dir.join("clickhouse")])
            .args(["20-queue.sql", bootstrap, group])
            .args([&out])
            .start()?;
        Ok(Self { process, out })
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// What it has now. Blocks.
    pub(crate) fn cells(&mut self) -> Result<Cells> {
        let _ = std::fs::remove_file(&self.out);
        let begun = std::time::Instant::now();
        while !self.out.exists() {
            ensure!(
                self.process.is_running(),
                "ClickHouse ended: {}",
                self.process.last_words()
            );
            ensure!(begun.elapsed() < CLICKHOUSE, "ClickHouse does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let state: Value = serde_json::from_slice(&std::fs::read(&self.out)?)?;
        let mut cells = Cells::new();
        for pair in state["cells"].as_array().context("cells")? {
            let text = |place: usize| pair[0][place].as_str().map(str::to_owned).context("text");
            let hour = UnixMillis::parse_rfc3339(&text(3)?)
                .context("an hour")?
                .0
                .div_euclid(3_600_000);
            let mut sums = Sums::default();
            for (sum, value) in sums.iter_mut().zip(pair[1].as_array().context("sums")?) {
                *sum = value.to_string().parse()?;
            }
            cells.insert((text(0)?, text(1)?, text(2)?, hour), sums);
        }
        Ok(cells)
    }
}

/// The replicated sums, which are by day: by organization, key, model, day.
pub(crate) async fn of_raft(cluster: &Cluster) -> Result<Cells> {
    let mut cells = Cells::new();
    let mut path = "usage?group_by=organization,key,model,day&limit=1000".to_owned();
    loop {
        let answer = cluster.admin.get(&path).await?;
        for row in answer["data"].as_array().context("rows")? {
            let text = |name: &str| {
                row[name]
                    .as_str()
                    .map(str::to_owned)
                    .with_context(|| format!("{name} in {row}"))
            };
            let count = |value: &Value| {
                value
                    .as_u64()
                    .map(i128::from)
                    .with_context(|| format!("a count in {row}"))
            };
            let day: Day = Day::parse(&text("day")?).context("a day")?;
            let tokens = &row["tokens"];
            let sums = [
                count(&row["requests"])?,
                count(&tokens["input"])?,
                count(&tokens["input_cache_read"])?,
                count(&tokens["input_cache_write"])? + count(&tokens["input_cache_write_1h"])?,
                count(&tokens["output"])?,
                count(&tokens["output_reasoning"])?,
                NanoUsd::parse(&text("cost")?)?.0.into(),
                NanoUsd::parse(&text("billed")?)?.0.into(),
            ];
            cells.insert(
                (text("organization")?, text("key")?, text("model")?, day.0.into()),
                sums,
            );
        }
        match answer["next"].as_str() {
            Some(next) => path = format!("usage?group_by=organization,key,model,day&limit=1000&after={next}"),
            None => return Ok(cells),
        }
    }
}

/// Cells by hour as cells by day.
pub(crate) fn by_day(cells: &Cells) -> Cells {
    let mut days = Cells::new();
    for ((organization, key, model, hour), sums) in cells {
        let cell = (
            organization.clone(),
            key.clone(),
            model.clone(),
            hour.div_euclid(DAY_MS / 3_600_000),
        );
        for (sum, more) in days.entry(cell).or_default().iter_mut().zip(sums) {
            *sum += more;
        }
    }
    days
}

/// How many cells differ, as an error with the first of them.
pub(crate) fn agree(found: &Cells, wanted: &Cells) -> Result<()> {
    let every = found
        .keys()
        .chain(wanted.keys().filter(|cell| !found.contains_key(*cell)));
    let different: Vec<_> = every
        .filter(|cell| found.get(*cell) != wanted.get(*cell))
        .collect();
    match different.first() {
        None => Ok(()),
        Some(cell) => bail!(
            "{} of {} cells differ, e.g. {cell:?}: {:?} instead of {:?}",
            different.len(),
            wanted.len(),
            found.get(*cell),
            wanted.get(*cell)
        ),
    }
}

/// The example consumer in Python.
pub(crate) fn python_consumer(name: &str, dir: &Path, bootstrap: &str, store: &str) -> Result<Process> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/consumers/python");
    Launch::new(name, &python()?, dir)
        .env("PYTHONPATH", &folder)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["-m", "tollway_usage", "--group", "python"])
        .args([
            "--brokers",
            bootstrap,
            "--store",
            store,
            "--kafka",
            "session.timeout.ms=6000",
        ])
        .start()
}

/// The example consumer in Rust.
pub(crate) fn rust_consumer(name: &str, dir: &Path, bootstrap: &str, store: &str) -> Result<Process> {
    Launch::new(name, &binary("tollway-usage-consumer")?, dir)
        .args(["--group", "rust", "--brokers", bootstrap, "--store", store])
        .args(["--kafka", "session.timeout.ms=6000"])
        .start()
}

/// The Python with chdb and the consumer's packages: tests/run makes it and names it.
fn python() -> Result<PathBuf> {
    let path = std::env::var_os("TOLLWAY_PYTHON")
        .context("TOLLWAY_PYTHON is not set; run this by `tests/run cluster`")?;
    Ok(path.into())
}
