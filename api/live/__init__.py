"""A live conversation in any dialect."""
