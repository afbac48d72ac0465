"""Speaker diarization and speaker embeddings.

``backends`` loads the engine of a catalogue entry: ``pyannote_diarization``, or the light
``sherpa_diarization`` without torch. ``channel_diarization`` is the stereo mode.
``speaker_embedding`` turns an utterance into a vector.
"""
