"""Jobs: their states and stores, admission, the worker, retention."""
