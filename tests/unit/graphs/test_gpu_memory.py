"""The sum of the models that may be loaded on one GPU, before its memory runs out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.catalogue import Catalogue
from configs.settings import SpeechArgs
from deployments.runtime.model_access import ModelFiles
from graphs.gpu_memory import PROCESS_MB, description, fullest_gpu, memory_mb, warning

MEMORY_MB = {"small": 100, "medium": 2000, "large": 4000}


def catalogue() -> Catalogue:
    """Three models of Whisper and two others, none of them on this machine."""
    entries = [
        {"id": name, "family": "whisper", "format": "ctranslate2", "memory_mb": memory}
        for name, memory in MEMORY_MB.items()
    ]
    entries += [
        {"id": "voices", "family": "diarization", "format": "pyannote", "memory_mb": 1000},
        {"id": "moods", "family": "emotion", "format": "gigaam_emo", "memory_mb": 300},
    ]
    source = {"source": {"repo": "nobody/nothing"}, "licence": "MIT"}
    return Catalogue.model_validate({"models": [entry | source for entry in entries]})


def replicas(
    tmp_path: Path, *, offline: bool = False, **deployments: Any
) -> dict[str, tuple[int, list[str]]]:
    """Of each deployment on the fullest GPU: its replicas, and the models of each."""
    args = SpeechArgs(ingress={"default_transcriber": "small"}, offline=offline, **deployments)
    files = ModelFiles(catalogue(), tmp_path, offline=offline)
    shares = fullest_gpu(args, files)
    for share in shares:
        models = sum(model.memory_mb for model in share.models)
        assert share.memory_mb == share.replicas * (PROCESS_MB + models)
    assert memory_mb(shares) == sum(share.memory_mb for share in shares)
    return {s.deployment: (s.replicas, [model.id for model in s.models]) for s in shares}


def on_gpu(model: str, share: float, most: int = 1, **settings: Any) -> dict[str, Any]:
    return {
        "default_model": model,
        "resources": {"num_gpus": share},
        "scaling": {"max_replicas": most},
        **settings,
    }


def test_a_replica_has_its_models_and_the_largest_others_up_to_max_models(tmp_path: Path) -> None:
    assert replicas(tmp_path, whisper=on_gpu("small", 1, max_models=1)) == {
        "whisper": (1, ["small"])
    }
    assert replicas(tmp_path, whisper=on_gpu("small", 1, max_models=2)) == {
        "whisper": (1, ["small", "large"])
    }
    several = on_gpu("small", 1, preload=["small", "medium"], max_models=2)
    assert replicas(tmp_path, whisper=several) == {"whisper": (1, ["medium", "small"])}


def test_models_that_cannot_be_fetched_are_not_counted(tmp_path: Path) -> None:
    whisper = on_gpu("small", 1, max_models=3)
    assert replicas(tmp_path, offline=True, whisper=whisper) == {"whisper": (1, ["small"])}


@pytest.mark.parametrize(
    ("share", "most", "together"),
    [(0.5, 1, 1), (0.5, 8, 2), (0.3, 8, 3), (1, 8, 1), (2, 8, 1), (0.1, 8, 8)],
)
def test_as_many_replicas_meet_on_a_card_as_their_shares_and_their_number_allow(
    tmp_path: Path, share: float, most: int, together: int
) -> None:
    found = replicas(tmp_path, whisper=on_gpu("small", share, most, max_models=1))
    assert found == {"whisper": (together, ["small"])}


def test_the_replicas_per_node_bound_those_on_a_card(tmp_path: Path) -> None:
    scaling = {"max_replicas": 8, "max_replicas_per_node": 2}
    whisper = on_gpu("small", 0.1, max_models=1, scaling=scaling)
    assert replicas(tmp_path, whisper=whisper) == {"whisper": (2, ["small"])}


def test_of_the_deployments_that_fit_on_a_card_together_those_that_take_most_are_counted(
    tmp_path: Path,
) -> None:
    deployments = {
        "whisper": on_gpu("medium", 0.5, 2, max_models=1),
        "diarization": on_gpu("voices", 0.25, 2),
        "emotion": on_gpu("moods", 0.25, 2),
    }
    assert replicas(tmp_path, **deployments) == {
        "whisper": (1, ["medium"]),
        "diarization": (2, ["voices"]),
    }
    deployments["whisper"] = on_gpu("large", 0.5, 2, max_models=1)
    assert replicas(tmp_path, **deployments) == {"whisper": (2, ["large"])}


def test_what_runs_on_the_cpu_takes_nothing(tmp_path: Path) -> None:
    assert replicas(tmp_path, whisper=on_gpu("large", 0)) == {}
    assert replicas(tmp_path, whisper=on_gpu("large", 1, device="cpu")) == {}


def test_a_card_that_is_too_small_is_named_with_what_takes_it(tmp_path: Path) -> None:
    args = SpeechArgs(
        ingress={"default_transcriber": "small"},
        whisper=on_gpu("small", 0.5, 2, max_models=1),
        emotion=on_gpu("moods", 0.1),
    )
    shares = fullest_gpu(args, ModelFiles(catalogue(), tmp_path, offline=False))
    assert description(shares) == (
        "up to 1400 MiB of one GPU may be in use at once: "
        "600 for 1 of whisper with small; 800 for 1 of emotion with moods"
    )


def test_a_warning_names_the_sum_and_the_card(tmp_path: Path) -> None:
    args = SpeechArgs(
        ingress={"default_transcriber": "small"}, whisper=on_gpu("small", 0.5, 2, max_models=1)
    )
    shares = fullest_gpu(args, ModelFiles(catalogue(), tmp_path, offline=False))
    assert warning(shares, 1200) is None
    assert warning(shares, 1199) == (
        "up to 1200 MiB of one GPU may be in use at once: 1200 for 2 of whisper with small. "
        "It has 1199: lower max_models or max_replicas, or let fewer replicas share it "
        "(resources.num_gpus)"
    )


def test_the_config_for_one_gpu_of_16_gb_fits_it(repository: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((repository / "configs/gpu.yaml").read_text(encoding="utf-8"))
    args = SpeechArgs(**config["applications"][0]["args"])
    shares = fullest_gpu(args, ModelFiles(Catalogue.load(), tmp_path, offline=False))
    assert {share.deployment for share in shares} == {"whisper", "emotion", "diarization"}
    assert 6000 < memory_mb(shares) <= 16_000
