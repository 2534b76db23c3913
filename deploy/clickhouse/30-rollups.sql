-- Sums by hour. Two readings of the same thing:
--
--   tollway.usage_hourly        a view over the events, always exact, as fresh as the last insert; reads every event it is asked about
--   tollway.usage_hourly_stored the same cells kept in a table, at most a minute behind; reads one row per cell
--
-- Why not SummingMergeTree or an AggregatingMergeTree fed by the queue: both add what is inserted, and a repeat is inserted too.
-- The stored cells are therefore whole sums that replace each other, never differences. Every minute the hours that got rows are summed
-- anew from the deduplicated events; of two rows of a cell the later one wins.

CREATE VIEW IF NOT EXISTS tollway.usage_hourly AS
SELECT
    toStartOfHour(started_at) AS hour, organization, team, project, key, user_label, model, endpoint, provider, region, price_version,
    byok,
    count() AS requests,
    countIf(usage_source = 'estimated') AS estimated,
    sum(input) AS input,
    sum(input_cache_read) AS input_cache_read,
    sum(input_cache_write) AS input_cache_write,
    sum(output) AS output,
    sum(output_reasoning) AS output_reasoning,
    sum(cost) AS cost,
    sum(billed) AS billed
FROM (SELECT * FROM tollway.usage_events FINAL)
GROUP BY hour, organization, team, project, key, user_label, model, endpoint, provider, region, price_version, byok;

CREATE TABLE IF NOT EXISTS tollway.usage_hourly_cells
(
    hour DateTime('UTC'),
    organization String,
    team String,
    project String,
    key String,
    user_label String,
    model LowCardinality(String),
    endpoint LowCardinality(String),
    provider LowCardinality(String),
    region LowCardinality(String),
    price_version LowCardinality(String),
    byok Bool,
    requests UInt64,
    estimated UInt64,
    input UInt64,
    input_cache_read UInt64,
    input_cache_write UInt64,
    output UInt64,
    output_reasoning UInt64,
    cost Decimal(38, 9) COMMENT 'at list price',
    billed Decimal(38, 9) COMMENT 'what the tenant owes',
    summed_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(summed_at)
PARTITION BY toYYYYMM(hour)
ORDER BY (organization, hour, team, project, key, user_label, model, endpoint, provider, region, price_version, byok);

-- An hour is summed again for an hour after its last row came: no insert takes that long from its stamp to being seen, and a
-- refresh that was missed, or a server that was down, starts from the last one that was made.
CREATE MATERIALIZED VIEW IF NOT EXISTS tollway.usage_hourly_refresh
REFRESH EVERY 1 MINUTE APPEND TO tollway.usage_hourly_cells AS
SELECT *, now64(3) AS summed_at
FROM tollway.usage_hourly
WHERE hour IN
(
    SELECT toStartOfHour(started_at)
    FROM tollway.usage_events
    WHERE inserted_at >= (SELECT max(summed_at) FROM tollway.usage_hourly_cells) - INTERVAL 1 HOUR
);

CREATE VIEW IF NOT EXISTS tollway.usage_hourly_stored AS
SELECT * EXCEPT summed_at FROM tollway.usage_hourly_cells FINAL;

-- The alarm: sequences are dense, so what is missing between the first and the last was lost. `before`: sequences below the first one
-- here, which is right for a table that began later than the writer, or lets old rows go.
CREATE VIEW IF NOT EXISTS tollway.usage_gaps AS
SELECT
    writer, partition, min(sequence) AS first, max(sequence) AS last,
    last - first + 1 - uniqExact(sequence) AS missing,
    first - 1 AS before
FROM tollway.usage_events
GROUP BY writer, partition
HAVING missing > 0 OR before > 0;
