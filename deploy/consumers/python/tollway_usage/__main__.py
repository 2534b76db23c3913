"""Reads tollway.usage.v1 and keeps sums by the hour. `python -m tollway_usage --help`."""

import argparse
import logging
import signal
import sys
import threading
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from .fold import Event, Malformed, parse
from .store import Moved, Store

# Records per transaction, and how long one waits for them, seconds.
BATCH = 5_000
WAIT = 0.5
# Waits after a fault, seconds: doubling from the first to the last.
BACKOFF = (0.2, 10.0)
# How long Kafka may take for one request, seconds.
REQUEST = 10
# Faults of a connection: the library connects again by itself.
PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE)

log = logging.getLogger("tollway_usage")


class Lost(Exception):
    """The topic does not hold what was counted already: only an operator can say what that means."""


@dataclass(frozen=True)
class Stretch:
    """Records of one partition, from the stored offset on."""

    partition: int
    begin: int
    end: int
    events: list[Event]
    rejected: list[tuple[int, str]]


class Reader:
    """One life between two faults: a Kafka consumer, a database connection, and where they are."""

    def __init__(self, args):
        self.topic = args.topic
        # Where each partition is, as this reader knows: the database must agree, or somebody else has been there.
        self.reached = {}
        self.store = Store(args.store)
        self.consumer = Consumer(
            {
                "bootstrap.servers": args.brokers,
                "group.id": args.group,
                "client.id": "tollway-usage-example",
                "enable.auto.commit": False,
                # The offsets are in the database; one that Kafka does not hold is an alarm, not a reason to begin elsewhere.
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                **dict(setting.split("=", 1) for setting in args.kafka),
            }
        )

    def open(self):
        """Joins the group. Partitions come and go by the two functions below, which run inside of `consume`."""
        self.consumer.subscribe([self.topic], on_assign=self.assigned, on_revoke=self.revoked, on_lost=self.revoked)

    def assigned(self, consumer, partitions):
        for one in partitions:
            one.offset = self.reached[one.partition] = self.store.offset(self.topic, one.partition)
        log.info("reading partitions %s", {one.partition: one.offset for one in partitions})
        consumer.assign(partitions)

    def revoked(self, _consumer, partitions):
        # Nothing is in hand: a batch is stored before the next one is asked for. What `consume` still returns of these
        # partitions is left out by `stretches`.
        for one in partitions:
            self.reached.pop(one.partition, None)

    def read(self):
        """The next records as stretches, one per partition."""
        records = {}
        for message in self.consumer.consume(BATCH, WAIT):
            fault = message.error()
            if fault is None:
                # What was fetched before a partition went and came back is counted already.
                if message.offset() >= self.reached.get(message.partition(), 0):
                    records.setdefault(message.partition(), []).append(message)
            elif fault.code() == KafkaError._AUTO_OFFSET_RESET:
                self.out_of_range(message.partition())
            elif fault.code() in PASSING:
                log.warning("kafka: %s", fault)
            elif fault.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(fault)
        return [self.stretch(partition, of) for partition, of in sorted(records.items()) if partition in self.reached]

    def stretch(self, partition, messages):
        events, rejected = [], []
        for message in messages:
            try:
                events.append(parse(partition, message.offset(), message.value()))
            except Malformed as why:
                rejected.append((message.offset(), str(why)))
        return Stretch(partition, self.reached[partition], messages[-1].offset() + 1, events, rejected)

    def record(self, stretches):
        """Counts what was read."""
        for partition, found in self.store.record(self.topic, stretches).items():
            for offset, writer, last, sequence in found.gaps:
                missing = sequence - last - 1
                log.error("ALARM: %d usage events of writer %s are missing before %s:%d", missing, writer, partition, offset)
        for stretch in stretches:
            self.reached[stretch.partition] = stretch.end
            for offset, why in stretch.rejected:
                log.error("the record at %s:%d is no usage event: %s", stretch.partition, offset, why)
        # For those who look at the group's lag; nothing is read from it.
        ends = [TopicPartition(self.topic, stretch.partition, stretch.end) for stretch in stretches]
        self.consumer.commit(offsets=ends, asynchronous=True)

    def out_of_range(self, partition):
        """Kafka does not hold the stored offset: retention has passed it by, or the topic is another one."""
        low, high = self.consumer.get_watermark_offsets(TopicPartition(self.topic, partition), timeout=REQUEST)
        reached = self.store.offset(self.topic, partition)
        if reached > high:
            raise Lost(f"partition {partition} ends at {high}, but {reached} is counted; was the topic made anew?")
        if reached < low:
            log.error("ALARM: usage events expired uncounted: partition %d from %d to %d", partition, reached, low)
            self.store.skip(self.topic, partition, reached, low)
        raise Moved(f"partition {partition} begins at {low}")

    def close(self):
        self.consumer.close()
        self.store.close()


def run(args, stop):
    """Counts until `stop`; whatever fails, starts again from what the database says."""
    backoff = BACKOFF[0]
    while not stop.is_set():
        reader = None
        try:
            reader = Reader(args)
            reader.open()
            while not stop.is_set():
                stretches = reader.read()
                if stretches:
                    reader.record(stretches)
                    backoff = BACKOFF[0]
        except Lost as fault:
            log.error("%s", fault)
            return 1
        except Exception as fault:
            log.warning("starting again from the stored offsets: %s: %s", type(fault).__name__, fault)
            stop.wait(backoff)
            backoff = min(backoff * 2, BACKOFF[1])
        finally:
            if reader is not None:
                reader.close()
    log.info("stopped; everything that was read is counted")
    return 0


def main():
    parser = argparse.ArgumentParser(prog="tollway_usage", description="Counts Tollway's usage events by the hour.")
    parser.add_argument("--brokers", required=True, help="host:port, with commas")
    parser.add_argument("--store", required=True, help="sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    parser.add_argument("--topic", default="tollway.usage.v1")
    parser.add_argument("--group", default="tollway-usage-example", help="consumers of one group share the partitions")
    parser.add_argument("--kafka", action="append", default=[], metavar="NAME=VALUE", help="a setting of librdkafka: TLS, SASL, …")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return run(args, stop)


if __name__ == "__main__":
    sys.exit(main())
