-- What both example consumers keep, in SQLite and PostgreSQL alike. Everything here changes in one transaction per batch, the offset
-- included: a consumer that dies has either counted a batch or has not.
--
-- Money is whole nano-dollars. The checks keep SQLite from turning a sum that is out of range into a float.

-- The next offset to read, by partition. Kafka's own group offsets are only for display.
CREATE TABLE IF NOT EXISTS usage_offsets (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next_offset BIGINT NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- How far each writer of usage has been counted: a sequence that is not above this one is a repeat.
CREATE TABLE IF NOT EXISTS usage_writers (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    writer TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    PRIMARY KEY (topic, partition, writer)
);

-- The sums. `hour` is UTC as 2026-11-22T18:00:00Z, of the time at which a request started; empty text where an event has null.
-- `cost_nano` is at list price, `billed_nano` what the tenant owes.
CREATE TABLE IF NOT EXISTS usage_hourly (
    hour TEXT NOT NULL,
    organization TEXT NOT NULL,
    team TEXT NOT NULL,
    project TEXT NOT NULL,
    api_key TEXT NOT NULL,
    user_label TEXT NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    provider TEXT NOT NULL,
    region TEXT NOT NULL,
    price_version TEXT NOT NULL,
    byok INTEGER NOT NULL,
    requests BIGINT NOT NULL,
    estimated BIGINT NOT NULL,
    input BIGINT NOT NULL,
    input_cache_read BIGINT NOT NULL,
    input_cache_write BIGINT NOT NULL,
    output BIGINT NOT NULL,
    output_reasoning BIGINT NOT NULL,
    cost_nano BIGINT NOT NULL CHECK (cost_nano BETWEEN -9223372036854775807 AND 9223372036854775807),
    billed_nano BIGINT NOT NULL CHECK (billed_nano BETWEEN -9223372036854775807 AND 9223372036854775807),
    PRIMARY KEY (hour, organization, team, project, api_key, user_label, model, endpoint, provider, region, price_version, byok)
);

-- The alarm: events that never came. `after_sequence` was the last one of the writer before the record at this offset.
CREATE TABLE IF NOT EXISTS usage_gaps (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    record_offset BIGINT NOT NULL,
    writer TEXT NOT NULL,
    after_sequence BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    PRIMARY KEY (topic, partition, record_offset)
);

-- Records that are no usage event of version 1, and why.
CREATE TABLE IF NOT EXISTS usage_rejected (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    record_offset BIGINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (topic, partition, record_offset)
);
