-- Kafka to tollway.usage_inbox, from the records' values alone. 21-queue-cloudevents.sql does the same with the CloudEvents headers;
-- take one of the two. (Both together do no harm, but read the topic twice.)
--
-- At least once: a restart, a rebalance or a rewound offset inserts rows again, and the events table has each event once all the same.
-- RawBLOB: one record, one text, whatever is in it. With JSONEachRow a field of another type than today would stop the topic, and
-- with JSONAsString two objects in one record would be two rows.

CREATE TABLE IF NOT EXISTS tollway.usage_queue (event String)
ENGINE = Kafka(tollway_kafka)
SETTINGS
    kafka_topic_list = 'tollway.usage.v1',
    kafka_group_name = 'tollway-clickhouse',
    kafka_format = 'RawBLOB',
    kafka_num_consumers = 1,
    kafka_max_block_size = 65536,
    kafka_flush_interval_ms = 5000;

CREATE MATERIALIZED VIEW IF NOT EXISTS tollway.usage_queue_reader TO tollway.usage_inbox AS
SELECT event, _partition AS lies_in, _offset AS record_offset
FROM tollway.usage_queue;
