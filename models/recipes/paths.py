"""Where the recipes read and write."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "models" / "demo"
WORK = REPOSITORY / "models" / "work"
HELDOUT = DEMO / "audio" / "heldout"


def assets() -> Path:
    """Folder of the public recordings: ``SPEECHGRAPH_ASSETS`` or ``../shared/assets``."""
    given = os.environ.get("SPEECHGRAPH_ASSETS")
    return Path(given) if given else REPOSITORY.parent / "shared" / "assets"
