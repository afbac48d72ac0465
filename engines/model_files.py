"""Model files on this machine: from a local directory first, then from the hub.

``python -m engines.model_files MODEL... | --all`` fetches models ahead of time
(``make models-pull``).
"""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.catalogue import CATALOGUE_PATH, Catalogue, ModelEntry, resolve_path
from speech.errors import ModelNotInstalled, ModelUnavailable, SpeechError

logger = logging.getLogger(f"speechgraph.{__name__}")

ORIGIN_FILE = ".origin"
"""Written into a fetched directory: ``owner/name@commit``."""
_INCOMING = ".incoming"
_LOCK_WAIT_S = 3600.0
_REFUSALS = (401, 403, 404)
"""What the hub answers where a repository is gated, private or missing: asking again is no use."""


def locate(entry: ModelEntry, models_dir: Path, *, offline: bool, token: str | None = None) -> Path:
    """The directory of a model's files, fetched from the hub if necessary.

    Tries the directory of the catalogue entry, then ``models_dir/<id>``, then the hub unless
    ``offline`` or ``HF_HUB_OFFLINE`` forbids it; ``offline`` forbids it to all libraries of this
    process, which may fetch what the files only name. A directory that was fetched from another
    repository or commit than the entry pins now counts as missing; one without an origin file is
    used as it is. ``token`` defaults to ``HF_TOKEN``. Raises ModelNotInstalled, ModelUnavailable.
    """
    if offline:
        _switch_hub_off()
    found = find(entry, models_dir)
    if found is not None:
        return found
    if entry.source.path is not None:
        raise ModelNotInstalled(
            f"model {entry.id} is not on this server; for its operator, see docs/models.md",
            f"{resolve_path(entry.source.path)} does not exist",
        )
    if offline or _hub_is_off():
        raise ModelNotInstalled(
            f"model {entry.id} is not on this server and the hub is switched off; {_advice(entry)}",
            f"it is not in {resolve_path(models_dir) / entry.id}",
        )
    return pull(entry, models_dir, token=token)


def find(entry: ModelEntry, models_dir: Path) -> Path | None:
    """The directory of a model's files where they are on this machine already."""
    fetched = resolve_path(models_dir) / entry.id
    if entry.source.path is None:
        return fetched if fetched.is_dir() and _is_current(entry, fetched) else None
    local = resolve_path(entry.source.path)
    return next((directory for directory in (local, fetched) if directory.is_dir()), None)


def pull(entry: ModelEntry, models_dir: Path, *, token: str | None = None) -> Path:
    """Fetch a model from the hub into ``models_dir/<id>`` and return that directory.

    The directory appears under its name only when it is complete; an interrupted pull is resumed.
    A file lock serialises the processes of one machine. Raises ModelNotInstalled, ModelUnavailable.
    """
    if entry.source.repo is None:
        raise ModelNotInstalled(f"model {entry.id} has no hub repository; see docs/models.md")
    from filelock import FileLock
    from httpx import HTTPError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    target = resolve_path(models_dir) / entry.id
    incoming = resolve_path(models_dir) / _INCOMING
    lock = incoming / f"{entry.id}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=_LOCK_WAIT_S):
            if target.is_dir() and _is_current(entry, target):
                return target
            revision = entry.source.revision
            info = HfApi(token=token).model_info(entry.source.repo, revision=revision)
            landing = incoming / f"{entry.id}@{info.sha}"
            logger.info("fetching %s from %s@%s", entry.id, entry.source.repo, info.sha)
            snapshot_download(
                entry.source.repo,
                revision=info.sha,
                local_dir=landing,
                allow_patterns=list(entry.source.files) or None,
                token=token,
            )
            _settle(landing, target, f"{entry.source.repo}@{info.sha}")
    except (HTTPError, OSError) as error:
        message = f"model {entry.id} could not be fetched from the hub; {_advice(entry)}"
        answer = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if answer in _REFUSALS:
            raise ModelNotInstalled(message, str(error)) from error
        raise ModelUnavailable(message, detail=str(error)) from error
    return target


def _settle(landing: Path, target: Path, origin: str) -> None:
    shutil.rmtree(landing / ".cache", ignore_errors=True)  # the hub client's own bookkeeping
    (landing / ORIGIN_FILE).write_text(origin + "\n", encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        retired = landing.with_suffix(".old")
        target.rename(retired)
        landing.rename(target)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        landing.rename(target)


def _is_current(entry: ModelEntry, directory: Path) -> bool:
    try:
        origin = (directory / ORIGIN_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return True
    return origin.startswith(f"{entry.source.repo}@{entry.source.revision or ''}")


def _switch_hub_off() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = True


def _hub_is_off() -> bool:
    from huggingface_hub.constants import is_offline_mode

    return is_offline_mode()


def _advice(entry: ModelEntry) -> str:
    advice = f"its operator fetches it with `make models-pull MODEL={entry.id}`"
    if entry.source.gated:
        advice += (
            f" after accepting its licence at https://huggingface.co/{entry.source.repo}"
            " and setting HF_TOKEN"
        )
    return advice


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the named models, or all with a hub repository; returns 1 if any of them failed."""
    parser = argparse.ArgumentParser(prog="python -m engines.model_files", description=main.__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="id or alias of the catalogue")
    parser.add_argument("--all", action="store_true", help="every model that has a hub repository")
    parser.add_argument("--models-dir", type=Path, default=Path("models/hub"))
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE_PATH)
    options = parser.parse_args(arguments)
    if options.all == bool(options.models):
        parser.error("name the models to fetch, or use --all")
    catalogue = Catalogue.load(options.catalogue)
    if options.all:
        entries = [entry for entry in catalogue.models if entry.source.repo is not None]
    else:
        entries = []
        for name in options.models:
            entry = catalogue.find(name)
            if entry is None:
                parser.error(f"no model {name} in {options.catalogue}")
            entries.append(entry)
    failed = False
    for entry in entries:
        try:
            directory = locate(entry, options.models_dir, offline=False)
        except SpeechError as error:
            failed = True
            sys.stderr.write(f"{error}\n")
            continue
        sys.stdout.write(f"{entry.id}\t{directory}\t{_origin(directory)}\n")
    return int(failed)


def _origin(directory: Path) -> str:
    origin = directory / ORIGIN_FILE
    return origin.read_text(encoding="utf-8").strip() if origin.exists() else "local"


if __name__ == "__main__":
    sys.exit(main())
