"""Bytes of a file become samples: containers, decoding, tempo, regions of speech."""
