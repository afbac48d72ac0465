"""Voice activity detection: Silero and WebRTC."""
