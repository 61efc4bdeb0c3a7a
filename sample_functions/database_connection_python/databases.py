"""The two databases that the function can talk to: a PostgreSQL server, and a file where no server runs."""

import contextlib
import os
import sqlite3
import sys
import time
import urllib.parse
from pathlib import Path

CODE = Path(__file__).parent
sys.path.insert(0, str(CODE / "python"))  # where the packages of requirements.txt are installed

URL_FILE = CODE / "database.url"  # written by `make database`, removed by `make database-stop`
SQLITE_FILE = "/tmp/visits.sqlite"
NETWORK_TIMEOUT_S = 3  # without one, a server that vanished keeps the function waiting until its own timeout


class Database:
    """Counts and times the connections that are opened; what it is connected to is up to the classes below."""

    def __init__(self):
        self.connection = None
        self.connections_opened = 0
        self.connect_ms = None
        self.connect()

    def connect(self):
        if self.connection is not None:
            # A dead connection still holds a file descriptor, of which a sandbox has 1024.
            with contextlib.suppress(Exception):
                self.connection.close()
        started = time.perf_counter()
        self.connection = self._open()
        self.connect_ms = (time.perf_counter() - started) * 1000
        self.connections_opened += 1


class PostgreSQL(Database):
    backend = "postgresql"

    def __init__(self, url):
        import pg8000.native  # here and not above: the file needs no driver

        self._driver = pg8000.native
        self._url = urllib.parse.urlsplit(url)
        super().__init__()

    def _open(self):
        connection = self._driver.Connection(
            self._url.username,
            host=self._url.hostname,
            port=self._url.port or 5432,
            database=self._url.path.lstrip("/"),
            password=self._url.password,
            timeout=NETWORK_TIMEOUT_S,
        )
        connection.run("CREATE TABLE IF NOT EXISTS visits (visitor text, request_id text)")
        return connection

    def why_lost(self):
        """What is wrong with the connection; None where it is alive."""
        try:
            self.connection.run("SELECT 1")
        except Exception as error:  # noqa: BLE001  # whatever it is, a new connection is the answer
            return str(error)
        return None

    def add_visit(self, visitor, request_id):
        self.connection.run("INSERT INTO visits VALUES (:visitor, :request_id)", visitor=visitor, request_id=request_id)
        return self.connection.run("SELECT count(*) FROM visits")[0][0]


class SQLite(Database):
    backend = "sqlite"

    def _open(self):
        connection = sqlite3.connect(SQLITE_FILE)
        connection.execute("CREATE TABLE IF NOT EXISTS visits (visitor text, request_id text)")
        return connection

    def why_lost(self):
        return None  # a file has no other end that could go away

    def add_visit(self, visitor, request_id):
        with self.connection:
            self.connection.execute("INSERT INTO visits VALUES (?, ?)", (visitor, request_id))
        return self.connection.execute("SELECT count(*) FROM visits").fetchone()[0]


def open_one():
    """The server of DATABASE_URL, or the one that `make database` started; else a file in /tmp."""
    if url := os.environ.get("DATABASE_URL"):
        return PostgreSQL(url)  # whoever names a server wants that one, or an error
    if not URL_FILE.exists():
        print(f"no database server runs ('make database' starts one): using {SQLITE_FILE}")
        return SQLite()
    try:
        return PostgreSQL(URL_FILE.read_text().strip())
    except ImportError:
        print(f"the driver is not installed ('make samples' does that): using {SQLITE_FILE}")
    except Exception as error:  # noqa: BLE001  # a server that is gone must not keep the sample from running
        print(f"the server of {URL_FILE.name} does not answer ({error}): using {SQLITE_FILE}")
    return SQLite()
