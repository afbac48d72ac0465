"""Who spoke when: pyannote.audio, or sherpa-onnx without torch, and embeddings of speakers."""
