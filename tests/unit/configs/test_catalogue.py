import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.catalogue import Catalogue, ModelEntry, resolve_path

BEAM = {"decoding_method": "modified_beam_search"}
HUB_COMMIT = re.compile(r"[0-9a-f]{40}")


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


def model(**fields: object) -> dict[str, object]:
    return {
        "id": "m",
        "family": "whisper",
        "format": "ctranslate2",
        "source": {"path": "somewhere"},
        "licence": "MIT",
        "memory_mb": 1,
        **fields,
    }


def test_a_model_is_found_by_its_id_and_by_each_alias(catalogue: Catalogue) -> None:
    for entry in catalogue.models:
        for name in (entry.id, *entry.aliases):
            assert catalogue.find(name) == entry


def test_a_relative_path_counts_from_the_checkout(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_path("models/hub") == repository / "models/hub"
    assert resolve_path("/srv/models") == Path("/srv/models")
    assert resolve_path("~/models") == Path.home() / "models"


def test_a_relative_path_counts_from_the_working_directory_where_the_package_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.setattr("configs.catalogue.REPOSITORY_ROOT", packages)
    monkeypatch.chdir(tmp_path)
    assert resolve_path("models/hub") == tmp_path / "models/hub"
    assert resolve_path("/srv/models") == Path("/srv/models")


def test_an_unknown_name_is_no_model(catalogue: Catalogue) -> None:
    assert catalogue.find("no-such-model") is None


def test_every_family_has_a_demo_model_that_lies_in_the_repository(catalogue: Catalogue) -> None:
    for family in ("whisper", "onnx_asr", "emotion", "diarization"):
        demo = [m for m in catalogue.models if m.family == family and m.id.startswith("demo-")]
        assert demo
        assert all(str(m.source.path).startswith("models/demo/") for m in demo)


def test_a_revision_is_a_commit_and_never_a_branch(catalogue: Catalogue) -> None:
    pinned = {
        (m.source.repo, m.source.revision)
        for m in catalogue.models
        if m.source.revision is not None
    }
    assert all(HUB_COMMIT.fullmatch(revision) for _, revision in pinned)
    assert len({revision for _, revision in pinned}) == len(pinned)
    assert len({repository for repository, _ in pinned}) == len(pinned)


def test_the_names_of_faster_whisper_mean_the_same_models_here(catalogue: Catalogue) -> None:
    utils = pytest.importorskip("faster_whisper.utils")
    for size in ("tiny", "base", "small", "medium", "large-v1", "large-v2", "large-v3"):
        assert repo(catalogue, size) == utils._MODELS[size]
    for size in ("large", "turbo", "large-v3-turbo"):
        assert repo(catalogue, size) == utils._MODELS[size]


def test_the_languages_of_whisper_are_those_of_its_tokens(catalogue: Catalogue) -> None:
    codes = pytest.importorskip("faster_whisper.tokenizer")._LANGUAGE_CODES
    for entry in catalogue.models:
        if entry.family == "whisper" and entry.source.repo is not None:
            missing = () if "large-v3" in entry.id else ("yue",)
            assert entry.languages == tuple(code for code in codes if code not in missing)


def test_turbo_and_the_demo_do_not_translate(catalogue: Catalogue) -> None:
    unable = [m.id for m in catalogue.models if m.family == "whisper" and not m.translation]
    assert unable == ["demo-whisper", "whisper-large-v3-turbo"]


@pytest.mark.parametrize(
    ("fields", "hotwords"),
    [
        ({}, True),
        ({"family": "onnx_asr", "format": "transducer"}, False),
        ({"family": "onnx_asr", "format": "transducer", "options": BEAM}, True),
        ({"family": "onnx_asr", "format": "streaming_transducer", "options": BEAM}, True),
        ({"family": "onnx_asr", "format": "nemo_transducer", "options": BEAM}, False),
        ({"family": "onnx_asr", "format": "nemo_ctc", "options": BEAM}, False),
        ({"family": "onnx_asr", "format": "kaldi-rnnt", "options": BEAM}, False),
        ({"family": "emotion", "format": "gigaam_emo"}, False),
    ],
)
def test_hotwords_have_an_effect_on_whisper_and_on_beams_of_transducers(
    fields: dict[str, object], hotwords: bool
) -> None:
    assert ModelEntry.model_validate(model(**fields)).hotwords is hotwords


def repo(catalogue: Catalogue, name: str) -> str | None:
    entry = catalogue.find(name)
    assert entry is not None
    return entry.source.repo


def test_the_documentation_names_every_model(catalogue: Catalogue, repository: Path) -> None:
    page = (repository / "docs/models.md").read_text(encoding="utf-8")
    missing = [m.id for m in catalogue.models if f"`{m.id}`" not in page]
    assert missing == []


def test_the_documentation_says_which_hub_models_are_not_pinned(
    catalogue: Catalogue, repository: Path
) -> None:
    page = (repository / "docs/models.md").read_text(encoding="utf-8")
    rows = {
        m.id: row
        for m in catalogue.models
        for row in page.splitlines()
        if row.startswith(f"| `{m.id}`")
    }
    for entry in catalogue.models:
        if entry.source.repo is not None:
            assert ("not pinned" in rows[entry.id]) == (entry.source.revision is None), entry.id


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"source": {"path": "a", "repo": "b/c"}}, "either a path or a repo"),
        ({"source": {}}, "either a path or a repo"),
        ({"family": "singing"}, "family"),
        ({"format": "zip"}, "format"),
        ({"memory_mb": 0}, "memory_mb"),
        ({"licnce": "MIT"}, "licnce"),
        (
            {"family": "onnx_asr", "format": "transducer", "translation": True},
            "models of the format transducer do not translate",
        ),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ModelEntry.model_validate(model(**fields))


def test_the_former_name_of_a_family_means_the_present_one() -> None:
    entry = ModelEntry.model_validate(model(family="vosk", format="nemo_ctc"))
    assert entry.family == "onnx_asr"


def test_a_name_used_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"used twice.*turbo"):
        Catalogue.model_validate(
            {"models": [model(id="turbo"), model(id="other", aliases=["turbo"])]}
        )


def test_a_catalogue_of_ones_own_is_read_from_any_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "models:\n  - {id: mine, family: whisper, format: ctranslate2, licence: MIT,"
        " memory_mb: 9, source: {path: /models/mine}}\n"
    )
    entry = Catalogue.load(file).find("mine")
    assert entry is not None
    assert entry.source.path == "/models/mine"
