"""docs/settings.md is what ``make docs`` writes."""

from collections.abc import Iterator

from pydantic import BaseModel

from configs.engine_settings import ReloadableSettings
from configs.settings import SpeechArgs
from docs.settings_page import PAGE, nested_settings, page


def described(model: type[BaseModel], place: str) -> Iterator[tuple[str, str | None]]:
    """The place and the description of every value, nested ones included."""
    for name, field in model.model_fields.items():
        nested = nested_settings(field)
        if not nested:
            yield f"{place}.{name}", field.description
        for settings in nested:
            yield from described(settings, f"{place}.{name}")


def test_the_page_of_settings_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_page_lists_every_setting_of_the_graph_with_a_description() -> None:
    settings = [*described(SpeechArgs, "args"), *described(ReloadableSettings, "user_config")]
    assert [place for place, description in settings if not description] == []
    assert {f"| `{place.rpartition('.')[2]}` |" for place, _ in settings} <= {
        row[: row.find("|", 1) + 1] for row in PAGE.read_text(encoding="utf-8").splitlines()
    }
