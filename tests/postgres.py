"""A PostgreSQL of its own for a test session: no network, no password, gone afterwards."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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
def running_postgres() -> Iterator[str]:
    """The URL of a database on a new server. Skips where PostgreSQL is not installed."""
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

    try:
        run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
        options = f"-k {home} -c listen_addresses= -c max_connections=200"
        run("pg_ctl", "start", "-w", "-l", str(home / "log"), "-o", options)
        try:
            yield f"postgresql://postgres@/postgres?host={home}"
        finally:
            run("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(home)
