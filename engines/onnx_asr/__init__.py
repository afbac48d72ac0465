"""Speech recognisers in ONNX, such as Vosk and GigaAM, on sherpa-onnx.

``offline`` transcribes whole files; ``streaming`` decodes many live streams in steps, and
``local_recognizer`` is the port over it. ``sherpa_models`` loads the recognisers of both.
"""
