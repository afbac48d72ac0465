"""Whisper on faster-whisper."""
