"""Vosk and GigaAM on sherpa-onnx: whole utterances and streams."""
