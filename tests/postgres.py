"""A PostgreSQL of its own for a test session: no network, no password, gone afterwards."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

NewDatabase = Callable[[], str]
"""Makes an empty database and returns its URL."""

PACKAGED = Path("/usr/lib/postgresql")


def _programs() -> Path:
    found = sorted(PACKAGED.glob("*/bin/pg_ctl"))
    on_path = shutil.which("pg_ctl")
    if found:
        return found[-1].parent
    if on_path:
        return Path(on_path).parent
    pytest.skip("PostgreSQL is not installed")


@contextmanager
def running_postgres() -> Iterator[NewDatabase]:
    """A new server. Skips where PostgreSQL is not installed."""
    programs = _programs()
    home = Path(tempfile.mkdtemp(prefix="pg"))
    # The server refuses to run as root.
    user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    become = user if os.geteuid() == 0 else {}
    if become:
        shutil.chown(home, "postgres", "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(home / "data"), *arguments]
        subprocess.run(command, check=True, cwd=home, stdout=subprocess.DEVNULL, **become)

    def url(database: str) -> str:
        return f"postgresql://postgres@/{database}?host={home}"

    def new_database() -> str:
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return url(name)

    try:
        run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
        options = f"-k {home} -c listen_addresses= -c max_connections=200"
        run("pg_ctl", "start", "-w", "-l", str(home / "log"), "-o", options)
        try:
            yield new_database
        finally:
            run("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(home)
