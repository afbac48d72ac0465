"""Recognisers of live streams: the deployment, both ends of a lane, and what an ingress uses."""
