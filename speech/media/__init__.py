"""From the bytes of a file to samples: containers, decoding, tempo, regions of speech."""
