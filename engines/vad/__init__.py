"""Voice activity detection: Silero on files and on many live streams, and WebRTC's detector."""
