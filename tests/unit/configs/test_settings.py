"""The typed arguments of the graph."""

from collections.abc import Iterator

from pydantic import BaseModel

from configs import deployment_settings, settings


def fields() -> Iterator[tuple[str, str | None]]:
    """Name and description of every field of every settings class."""
    for kind in (*vars(deployment_settings).values(), *vars(settings).values()):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, field in kind.model_fields.items():
                yield f"{kind.__name__}.{name}", field.description


def test_every_setting_is_described_in_a_sentence() -> None:
    described = dict(fields())
    assert len(described) > 50
    assert [name for name, text in described.items() if not (text and text.endswith("."))] == []


def test_a_setting_in_seconds_or_bytes_names_its_unit() -> None:
    units = {"_s": "seconds", "_mb": "MiB", "_bytes": "bytes", "max_seconds": "seconds"}
    missing = [
        name
        for name, text in fields()
        for ending, unit in units.items()
        if name.endswith(ending) and unit not in (text or "")
    ]
    assert missing == ["ReloadableSettings.idle_ttl_s"], "which refers to another setting"
