-- Where Kafka is: the one file to edit. Everything else refers to this named collection.
--
-- TLS and SASL: kafka_security_protocol, kafka_sasl_mechanism, kafka_sasl_username, kafka_sasl_password (or <kafka> in the server's
-- configuration, which also takes every other setting of librdkafka).

CREATE DATABASE IF NOT EXISTS tollway;

CREATE NAMED COLLECTION IF NOT EXISTS tollway_kafka AS
    kafka_broker_list = 'localhost:9092';
