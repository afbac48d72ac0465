"""Models shipped with speechgraph and the recipes that make them."""
