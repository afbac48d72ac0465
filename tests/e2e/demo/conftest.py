"""The demo graph, once for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.launched import launched
from tests.ports import free_port


@pytest.fixture(scope="package")
def serving(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`make serve`, running; the addresses it printed.

    It joins no other cluster, and listens on the port of an old server's .env file.
    """
    port = free_port()
    file = tmp_path_factory.mktemp("old") / ".env"
    file.write_text(f"HOST=127.0.0.1\nPORT={port}\nLOG_LEVEL=warning\n", encoding="utf-8")
    environment = {"RAY_ADDRESS": "192.0.2.1:6379", "SPEECHGRAPH_LEGACY_ENV": str(file)}
    with launched(["make", "serve"], repository, environment) as addresses:
        assert addresses["service"] == f"http://127.0.0.1:{port}"
        yield addresses
