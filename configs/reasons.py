"""What is wrong with values of the configuration, a line for each."""

from pydantic import ValidationError


def reasons(error: ValidationError, place: str = "") -> list[str]:
    """``PLACE.FIELD: what is wrong`` for each field, without the values, which may be secret."""
    lines = []
    for found in error.errors(include_url=False, include_input=False):
        if found["type"] == "default_factory_not_called":  # because of another field, named itself
            continue
        where = ".".join(filter(None, (place, *map(str, found["loc"]))))
        what = " ".join(found["msg"].removeprefix("Value error, ").split())
        lines.append(f"{where}: {what}" if where else what)
    return lines
