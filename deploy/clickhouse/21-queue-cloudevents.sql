-- Kafka to tollway.usage_inbox with the CloudEvents headers, instead of 20-queue.sql: where an event comes from is kept beside it, and
-- a record that says it is of another type goes to tollway.usage_rejected, whatever its value looks like.

CREATE TABLE IF NOT EXISTS tollway.usage_ce_queue (event String)
ENGINE = Kafka(tollway_kafka)
SETTINGS
    kafka_topic_list = 'tollway.usage.v1',
    kafka_group_name = 'tollway-clickhouse-cloudevents',
    kafka_format = 'RawBLOB',
    kafka_num_consumers = 1,
    kafka_max_block_size = 65536,
    kafka_flush_interval_ms = 5000;

CREATE MATERIALIZED VIEW IF NOT EXISTS tollway.usage_ce_queue_reader TO tollway.usage_inbox AS
SELECT
    event, _partition AS lies_in, _offset AS record_offset,
    _headers.value[indexOf(_headers.name, 'ce_source')] AS ce_source,
    _headers.value[indexOf(_headers.name, 'ce_type')] AS ce_type,
    _headers.value[indexOf(_headers.name, 'ce_dataschema')] AS ce_dataschema
FROM tollway.usage_ce_queue;
