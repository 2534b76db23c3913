"""An example consumer of tollway.usage.v1: every event counted exactly once, by the hour, in SQLite or PostgreSQL.

| file | what |
|---|---|
| fold.py | pure: records of one partition -> sums, repeats, gaps |
| store.py | the database: sums, marks and offset in one transaction |
| __main__.py | Kafka, signals, and starting again after whatever goes wrong |
"""
