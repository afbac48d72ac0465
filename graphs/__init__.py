"""Application builders: typed arguments in, a Serve application out."""
