"""Which models a node needs for the replicas that it may run, and which it has."""

from pathlib import Path
from typing import Any

import pytest

from configs.catalogue import Catalogue
from configs.deployment_settings import Resources
from deployments.runtime.model_access import ModelFiles
from deployments.runtime.model_check import may_run, missing_models

NODE = {
    "Alive": True,
    "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 8.0 * 1024**3},
    "Labels": {"role": "asr"},
}


@pytest.mark.parametrize(
    ("needs", "fits"),
    [
        ({}, True),
        ({"num_cpus": 4, "num_gpus": 1, "memory_mb": 8192}, True),
        ({"num_cpus": 4.1}, False),
        ({"num_gpus": 2}, False),
        ({"memory_mb": 8193}, False),
        ({"label_selector": {"role": "asr"}}, True),
        ({"label_selector": {"role": "!asr"}}, False),
        ({"label_selector": {"zone": "a"}}, False),
    ],
)
def test_a_node_may_run_a_replica_that_would_have_room_when_it_is_empty(
    needs: dict[str, Any], fits: bool
) -> None:
    resources = Resources.model_validate(needs)
    assert may_run(resources, NODE) is fits
    assert not may_run(resources, NODE | {"Alive": False})


def test_a_head_without_cpus_runs_no_replica() -> None:
    assert not may_run(Resources(), NODE | {"Resources": {"memory": 1e9}})


def test_each_model_that_is_missing_is_named_with_its_deployment(tmp_path: Path) -> None:
    files = ModelFiles(Catalogue.load(), tmp_path, offline=True)
    wanted = [("onnx_asr", "demo-vosk"), ("whisper", "whisper-tiny"), ("onnx_asr", "gigaam-v3-ctc")]
    (whisper, onnx_asr) = missing_models(wanted, files)
    assert whisper.startswith("whisper: model whisper-tiny is not on this server")
    assert onnx_asr.startswith("onnx_asr: model gigaam-v3-ctc is not on this server")
