"""Whisper on faster-whisper; ``engine`` holds the engine."""
