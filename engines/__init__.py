"""One module per model family, each adapting a library to a port of the domain. No Ray, no HTTP."""
