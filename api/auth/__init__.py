"""API keys: the file, the check of every request, limits of each key."""
