"""The protocols of older servers."""
