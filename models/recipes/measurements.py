"""How the recipes keep time and figures."""

import json
import time
from pathlib import Path
from typing import Any


class Stopwatch:
    """Processor seconds of this process: a shared machine makes wall time meaningless."""

    def __init__(self) -> None:
        self._started = time.process_time()

    def seconds(self) -> float:
        """Processor seconds since the stopwatch was made."""
        return round(time.process_time() - self._started, 1)


def record(path: Path, **figures: Any) -> None:
    """Merge ``figures`` into a JSON file of measurements."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    text = json.dumps(known | figures, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
