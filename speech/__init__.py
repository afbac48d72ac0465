"""The domain of speech as plain Python: audio, transcripts, and the graph of models."""
