"""The domain of speech as plain Python: audio, transcripts, their merging and the graph of models."""
