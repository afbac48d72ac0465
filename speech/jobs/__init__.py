"""Jobs: their states, how they are taken in, and how they are worked on."""
