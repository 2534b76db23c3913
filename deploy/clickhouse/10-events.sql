-- One row per usage event, however often it came.
--
-- The identity of an event is (writer, partition, sequence). It is the whole sorting key, so rows of one event replace each other:
-- by and by on disk, at once for readers who say FINAL. Nothing here adds up while inserting; a sum that did would count a repeat.
-- Should two different records ever claim one identity, the one at the lower offset stays, as in the control plane's ledger.
--
-- Money is Decimal(38, 9): US dollars, exact to the nano-dollar. There is no Float in this folder.

CREATE TABLE IF NOT EXISTS tollway.usage_events
(
    writer String COMMENT 'one life of one writer of usage, 32 hex digits',
    partition Int32 COMMENT 'partition of the topic',
    sequence UInt64 COMMENT 'dense per writer and partition, from 1',

    id String COMMENT 'UUIDv7 of the event; CloudEvents id',
    request_id String,
    cluster LowCardinality(String),
    region LowCardinality(String),
    node LowCardinality(String),
    started_at DateTime64(3, 'UTC') COMMENT 'the hour and the day it is billed to',
    first_byte_at Nullable(DateTime64(3, 'UTC')),
    finished_at DateTime64(3, 'UTC'),

    organization String,
    team String COMMENT 'empty: the project is in none',
    project String,
    key String,
    user_label String COMMENT 'the `user` of the request; empty: none',

    requested_model String,
    model LowCardinality(String),
    endpoint LowCardinality(String),
    provider LowCardinality(String),
    dialect LowCardinality(String),
    stream Bool,
    end LowCardinality(String),
    status UInt16,
    fault LowCardinality(String),
    finish_reason LowCardinality(String),

    input UInt64,
    input_cache_read UInt64,
    input_cache_write UInt64,
    output UInt64,
    output_reasoning UInt64,
    usage_source LowCardinality(String),
    estimator LowCardinality(String),

    revision UInt64,
    price_version LowCardinality(String),
    cost_input Decimal(38, 9),
    cost_input_cache_read Decimal(38, 9),
    cost_input_cache_write Decimal(38, 9),
    cost_output Decimal(38, 9),
    cost_output_reasoning Decimal(38, 9),
    cost_request Decimal(38, 9),
    cost Decimal(38, 9) COMMENT 'the sum of the lines, at list price: `charge.total`',
    byok Bool COMMENT 'served with the credential of the organization',
    free Bool,
    adjustment_bps Int32,
    adjustment Decimal(38, 9),
    billed Decimal(38, 9) COMMENT 'what the tenant owes',

    event String COMMENT 'the event as it came, with the fields that these columns do not know' CODEC(ZSTD(3)),
    ce_source LowCardinality(String) COMMENT 'CloudEvents headers; empty unless 21-queue-cloudevents.sql reads',
    ce_type LowCardinality(String),
    ce_dataschema LowCardinality(String),
    record_offset UInt64 COMMENT 'where the record lies in its partition',
    precedence UInt64 COMMENT 'higher wins: 2^64 - 1 - record_offset',
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'when this row came here; not when it was used'
)
ENGINE = ReplacingMergeTree(precedence)
PARTITION BY toYYYYMM(started_at)
ORDER BY (writer, partition, sequence);

-- What is no usage event of version 1: kept, so that it can be looked into and read again, and so that it does not stop the topic.
CREATE TABLE IF NOT EXISTS tollway.usage_rejected
(
    partition UInt64,
    record_offset UInt64,
    reason LowCardinality(String),
    record String CODEC(ZSTD(3)),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (partition, record_offset);

-- US dollars as decimal text; NULL for anything else, more than nine decimals too: nothing is rounded here.
CREATE FUNCTION IF NOT EXISTS tollway_usd AS (text) ->
    if(match(text, '^-?[0-9]{1,19}([.][0-9]{1,9})?$'), toDecimal128OrNull(text, 9), NULL);

-- The fields that the columns need, in one pass over the JSON. Missing ones are empty or 0, unknown ones are left out.
CREATE FUNCTION IF NOT EXISTS tollway_usage AS (json) -> JSONExtract(json, 'Tuple(
    id String, request_id String, writer String, partition Int32, sequence UInt64, cluster String, region String, node String,
    started_at String, first_byte_at String, finished_at String,
    tenant Tuple(organization String, team String, project String, key String), user String,
    requested_model String, model String, endpoint String, provider String, dialect String, stream Bool,
    end String, status UInt16, fault String, finish_reason String,
    tokens Tuple(input UInt64, input_cache_read UInt64, input_cache_write UInt64,
        input_cache_write_1h UInt64, output UInt64, output_reasoning UInt64),
    usage_source String, estimator String, revision UInt64, price_version String,
    charge Tuple(input String, input_cache_read String, input_cache_write String, input_cache_write_1h String,
        output String, output_reasoning String, request String, total String),
    byok Bool, free Bool, adjustment Tuple(bps Int32, amount String), billed String)');

-- Why a record is not counted; empty when it is. `lies_in`: the partition that the record was read from. `type`: its ce_type, if read.
CREATE FUNCTION IF NOT EXISTS tollway_usage_refusal AS (json, e, lies_in, type) -> multiIf(
    type NOT IN ('', 'io.tollway.usage.recorded.v1'), 'another type of event',
    NOT isValidJSON(json), 'not JSON',
    NOT match(e.writer, '^[0-9a-f]{32}$') OR e.sequence = 0, 'no identity',
    e.partition != lies_in, 'of another partition',
    e.tenant.organization = '' OR e.tenant.key = '' OR e.model = '', 'no tenant or model',
    isNull(parseDateTime64BestEffortOrNull(e.started_at, 3, 'UTC')), 'no time',
    isNull(tollway_usd(e.charge.total)) OR isNull(tollway_usd(e.billed)) OR isNull(tollway_usd(e.charge.input))
        OR isNull(tollway_usd(e.charge.output)),
    'no money in decimal text',
    '');

-- Records as they come. Keeps nothing: whatever is inserted here goes, in the same insert, to one of the two tables above. A queue has
-- this one target, because a Kafka table starts to read as soon as it has its first: with a second one made a moment later, the
-- records in between would have reached one table and not the other.
CREATE TABLE IF NOT EXISTS tollway.usage_inbox
(
    event String,
    lies_in UInt64,
    record_offset UInt64,
    ce_source String,
    ce_type String,
    ce_dataschema String
)
ENGINE = Null;

CREATE MATERIALIZED VIEW IF NOT EXISTS tollway.usage_inbox_events TO tollway.usage_events AS
WITH tollway_usage(event) AS e
SELECT
    e.writer AS writer, e.partition AS partition, e.sequence AS sequence,
    e.id AS id, e.request_id AS request_id, e.cluster AS cluster, e.region AS region, e.node AS node,
    parseDateTime64BestEffortOrZero(e.started_at, 3, 'UTC') AS started_at,
    parseDateTime64BestEffortOrNull(e.first_byte_at, 3, 'UTC') AS first_byte_at,
    parseDateTime64BestEffortOrZero(e.finished_at, 3, 'UTC') AS finished_at,
    e.tenant.organization AS organization, e.tenant.team AS team, e.tenant.project AS project, e.tenant.key AS key,
    e.user AS user_label, e.requested_model AS requested_model, e.model AS model, e.endpoint AS endpoint,
    e.provider AS provider, e.dialect AS dialect, e.stream AS stream, e.end AS end, e.status AS status,
    e.fault AS fault, e.finish_reason AS finish_reason,
    e.tokens.input AS input, e.tokens.input_cache_read AS input_cache_read,
    e.tokens.input_cache_write + e.tokens.input_cache_write_1h AS input_cache_write, e.tokens.output AS output,
    e.tokens.output_reasoning AS output_reasoning,
    e.usage_source AS usage_source, e.estimator AS estimator, e.revision AS revision, e.price_version AS price_version,
    assumeNotNull(tollway_usd(e.charge.input)) AS cost_input,
    coalesce(tollway_usd(e.charge.input_cache_read), 0) AS cost_input_cache_read,
    coalesce(tollway_usd(e.charge.input_cache_write), 0) + coalesce(tollway_usd(e.charge.input_cache_write_1h), 0)
        AS cost_input_cache_write,
    assumeNotNull(tollway_usd(e.charge.output)) AS cost_output,
    coalesce(tollway_usd(e.charge.output_reasoning), 0) AS cost_output_reasoning,
    coalesce(tollway_usd(e.charge.request), 0) AS cost_request,
    assumeNotNull(tollway_usd(e.charge.total)) AS cost,
    e.byok AS byok, e.free AS free, e.adjustment.bps AS adjustment_bps,
    coalesce(tollway_usd(e.adjustment.amount), 0) AS adjustment,
    assumeNotNull(tollway_usd(e.billed)) AS billed,
    event, ce_source, ce_type, ce_dataschema,
    record_offset, 18446744073709551615 - record_offset AS precedence
FROM tollway.usage_inbox
WHERE tollway_usage_refusal(event, e, lies_in, ce_type) = '';

CREATE MATERIALIZED VIEW IF NOT EXISTS tollway.usage_inbox_rejected TO tollway.usage_rejected AS
WITH tollway_usage(event) AS e, tollway_usage_refusal(event, e, lies_in, ce_type) AS refusal
SELECT lies_in AS partition, record_offset, refusal AS reason, event AS record
FROM tollway.usage_inbox
WHERE refusal != '';
