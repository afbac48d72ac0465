"""What the launcher reports when a deployment does not start."""

from graphs.launch import root_cause

MESSAGE = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:speech:Vosk.initialize_and_get_metadata() (pid=32720, ip=192.0.2.2)
  File "/x/replica.py", line 3521, in initialize_and_get_metadata
    await self._replica_impl.initialize(deployment_config, rank, gang_context)
RuntimeError: Traceback (most recent call last):
  File "/x/sherpa_models.py", line 83, in load
    _build(entry.format, settings),
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: Protobuf parsing failed.

The above exception was the direct cause of the following exception:

  File "/x/deployments/vosk.py", line 22, in __init__
    self._host = EngineHost(settings, self._load, "transcribe")
                 ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
speech.errors.ModelUnavailable: model 'demo-vosk' does not load:
    model.onnx: Protobuf parsing failed.
"""


def test_the_root_cause_is_the_exception_below_the_last_frame_in_one_line() -> None:
    assert root_cause(MESSAGE) == (
        "speech.errors.ModelUnavailable: model 'demo-vosk' does not load: "
        "model.onnx: Protobuf parsing failed."
    )


def test_a_message_without_a_traceback_is_its_own_cause() -> None:
    assert root_cause("no node\n has a GPU") == "no node has a GPU"
