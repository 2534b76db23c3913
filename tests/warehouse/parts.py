"""A real Kafka, a real PostgreSQL and the programs under test, all on loopback and gone with their test."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

ROOT = Path(__file__).resolve().parents[2]
TOPIC = "tollway.usage.v1"
PARTITIONS = 6
# How long anything may take on a busy machine, seconds.
PATIENCE = 120
# A program ends with the tests, even when they are killed.
BOUND = ["setpriv", "--pdeathsig", "KILL"]


def wait_until(what, condition):
    """Waits until `condition` gives something true, and returns it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {PATIENCE} s still not true: {what}"
        time.sleep(0.02)
    return found


def free_ports(count):
    """Neighbouring ports below the kernel's ephemeral range, so that one that is down for a while keeps its port."""
    for first in range(20_000 + os.getpid() % 5_000, 32_000, 7):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


class Kafka:
    """One broker with the usage topic."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="tollway-kafka-")
        port = free_ports(2)
        self.bootstrap = f"127.0.0.1:{port}"
        self.broker("start", "--port", str(port), "--owner", str(os.getpid()))
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap})
        for made in self.admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)]).values():
            made.result(PATIENCE)

    def broker(self, *arguments):
        subprocess.run([ROOT / "tests/kafka/broker", *arguments, "--dir", self.dir], check=True)

    def kill(self):
        os.kill(int(Path(self.dir, "broker-1.pid").read_text()), signal.SIGKILL)

    def restart(self):
        self.broker("start", "--owner", str(os.getpid()))

    def produce(self, records):
        """Writes records (partition, value, headers) in this order."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "enable.idempotence": True, "compression.type": "zstd"})
        lost = []

        def delivered(fault, _message):
            if fault:
                lost.append(fault)

        for partition, value, headers in records:
            producer.produce(TOPIC, value, partition=partition, headers=headers, on_delivery=delivered)
            producer.poll(0) if len(producer) < 50_000 else producer.flush(PATIENCE)
        assert producer.flush(PATIENCE) == 0 and not lost, lost

    def ends(self):
        """The offset after the last record, by partition."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "ends"})
        try:
            return {p: consumer.get_watermark_offsets(TopicPartition(TOPIC, p), timeout=PATIENCE)[1] for p in range(PARTITIONS)}
        finally:
            consumer.close()

    def committed(self, group):
        """How far a group says that it has read, by partition."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group})
        try:
            places = consumer.committed([TopicPartition(TOPIC, p) for p in range(PARTITIONS)], timeout=PATIENCE)
            return {place.partition: max(place.offset, 0) for place in places}
        finally:
            consumer.close()

    def close(self):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)


class Postgres:
    """A server with one database, as Debian ships it. Does not run as root, so root starts it as the package's user."""

    def __init__(self):
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
        initdb = found[-1] if found else Path(shutil.which("initdb") or "no initdb here: tests/run installs postgresql")
        self.dir = tempfile.mkdtemp(prefix="tollway-postgres-")
        as_user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        if as_user:
            shutil.chown(self.dir, "postgres", "postgres")
        port, data = free_ports(1), f"{self.dir}/data"
        subprocess.run(
            [*BOUND, *as_user, initdb, "--pgdata", data, "--auth", "trust", "--username", "tollway", "--encoding", "UTF8", "--no-sync"],
            check=True, stdout=subprocess.DEVNULL, cwd=self.dir,
        )
        with open(f"{tempfile.gettempdir()}/{Path(self.dir).name}.log", "w") as log:
            self.log = log.name
            self.process = subprocess.Popen(
                [*BOUND, *as_user, initdb.with_name("postgres"), "-D", data, "-p", str(port), "-k", self.dir],
                stdout=log, stderr=log, cwd=self.dir,
            )
        self.url = f"postgresql://tollway@127.0.0.1:{port}/postgres"
        wait_until("PostgreSQL answers", lambda: self.process.poll() is None and self.answers())

    def answers(self):
        import psycopg

        try:
            psycopg.connect(self.url).close()
            return True
        except psycopg.OperationalError:
            return False

    def database(self, name):
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url.rsplit("/", 1)[0] + f"/{name}"

    def close(self):
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(PATIENCE)
        shutil.rmtree(self.dir, ignore_errors=True)
        os.unlink(self.log)


class Program:
    """A process with its output in a file; killed with the object."""

    def __init__(self, command, log, env=None):
        self.log = Path(log)
        env = {**os.environ, **(env or {})}
        with open(self.log, "a") as out:
            self.process = subprocess.Popen([*BOUND, *command], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env)

    def kill(self):
        """SIGKILL: it gets to do nothing any more."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; returns how it ended."""
        self.process.terminate()
        return self.process.wait(PATIENCE)
