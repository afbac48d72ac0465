"""The service's own API: `/v1/process`, `/v1/jobs` and `/v1/ws`."""
