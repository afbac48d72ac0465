"""OpenAI's audio API, realtime transcription included."""
