"""nginx in front of a service, with the config of this repository."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.launched import eventually
from tests.ports import free_port

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def nginx_before(service: str, config: Path, folder: Path) -> Iterator[str]:
    """The base URL of nginx before the service; ``config`` is made for ports 8080 and 8000."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    own = config.read_text(encoding="utf-8")
    assert "listen 8080;" in own
    assert "server 127.0.0.1:8000;" in own
    own = own.replace("listen 8080;", f"listen 127.0.0.1:{port};")
    own = own.replace("server 127.0.0.1:8000;", f"server {service.removeprefix('http://')};")
    (folder / "speechgraph.conf").write_text(own, encoding="utf-8")
    paths = "".join(f"{name}_temp_path {folder / name};\n" for name in TEMPORARY)
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\nworker_processes 1;\npid {folder / 'pid'};\n"
        f"error_log {folder / 'error.log'};\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}include {folder / 'speechgraph.conf'};\n}}\n",
        encoding="utf-8",
    )
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(main)])
    try:
        eventually(lambda: _accepts(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
