"""Typed settings of the graph, the model catalogue, and ready Serve configs."""
