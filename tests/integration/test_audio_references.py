"""Decoded audio travels from replica to replica; the graph passes references to it."""

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from configs.catalogue import Catalogue
from deployments.runtime.graph_service import GraphService
from deployments.runtime.handle_ports import ServedDecoder, ServedTranscriber
from speech.audio import Audio
from speech.pipeline import ProcessOptions
from speech.ports import DecodedAudio, TranscribeOptions
from speech.transcript import Recognition, Segment, Transcript
from tests.integration.test_faults import replica_pids

MODEL = "demo-vosk"
TIMEOUTS_S = {"decoder": 60.0, "onnx_asr": 60.0}
OPTIONS = ProcessOptions(frozenset({"transcribe"}), transcribe=TranscribeOptions(model=MODEL))


class GraphProbe:
    """Runs the graph as an ingress does, and counts the audio that is unpickled in its process."""

    def __init__(self) -> None:
        self.unpickled = 0
        self._decoded: DecodedAudio | None = None
        restore = Audio.__setstate__  # type: ignore[attr-defined]

        def counted(audio: Audio, state: Any) -> None:
            self.unpickled += 1
            restore(audio, state)

        Audio.__setstate__ = counted  # type: ignore[attr-defined]
        handles = {
            name: serve.get_deployment_handle(deployment, "speech")
            for name, deployment in (("decoder", "Decoder"), ("onnx_asr", "OnnxAsr"))
        }
        catalogue = Catalogue.load()
        self._service = GraphService(catalogue, handles, {"onnx_asr": MODEL}, TIMEOUTS_S, MODEL)
        self._decoder = ServedDecoder(handles["decoder"], 60.0)
        self._transcriber = ServedTranscriber(catalogue, handles, TIMEOUTS_S)

    async def process(self, data: bytes) -> tuple[Transcript, int]:
        """The transcript of a file, and how many audios have been unpickled so far."""
        return await self._service.process(data, OPTIONS), self.unpickled

    async def stream(self, data: bytes) -> tuple[list[Segment | Transcript], int]:
        """The segments of a file and its transcript, and the audios unpickled so far."""
        return [event async for event in self._service.stream(data, OPTIONS)], self.unpickled

    async def fetch(self) -> int:
        """Unpickle an audio here, and return how many have been unpickled so far."""
        pickle.loads(pickle.dumps(Audio(np.zeros(1, np.float32))))
        return self.unpickled

    async def decode(self, data: bytes) -> None:
        """Decode a file for :meth:`recognise`."""
        self._decoded = await self._decoder.decode(data, False, 1.0)

    async def recognise(self) -> Recognition:
        """Recognise what was decoded."""
        assert self._decoded is not None
        return await self._transcriber.transcribe(self._decoded, OPTIONS.transcribe, None)


@pytest.fixture(scope="module")
def probe(demo: str) -> Iterator[DeploymentHandle[Any]]:
    deployment = serve.deployment(GraphProbe, ray_actor_options={"num_cpus": 0})
    yield serve.run(deployment.bind(), name="probe", route_prefix=None)
    serve.delete("probe")


def test_the_samples_of_a_request_never_enter_the_process_that_runs_the_graph(
    probe: DeploymentHandle[Any], demo_audio: Path
) -> None:
    data = (demo_audio / "dialogue-en.flac").read_bytes()
    transcript, unpickled = probe.process.remote(data).result(timeout_s=120)
    assert transcript.segments
    assert unpickled == 0
    events, unpickled = probe.stream.remote(data).result(timeout_s=120)
    assert tuple(events[:-1]) == events[-1].segments == transcript.segments
    assert unpickled == 0
    assert probe.fetch.remote().result(timeout_s=120) == 1, "the probe does count"


def test_decoded_audio_outlives_the_decoder(probe: DeploymentHandle[Any], demo_audio: Path) -> None:
    data = (demo_audio / "dialogue-en.flac").read_bytes()
    probe.decode.remote(data).result(timeout_s=120)
    for pid in replica_pids("speech", "Decoder"):
        os.kill(pid, signal.SIGKILL)
    recognition = probe.recognise.remote().result(timeout_s=120)
    assert recognition.segments
