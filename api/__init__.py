"""The wire dialects: one file each, translating requests and answers; no dialect computes."""
