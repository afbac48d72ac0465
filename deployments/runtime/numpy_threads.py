"""The threads of numpy in the processes of the service.

numpy's OpenBLAS starts a thread per core when it is loaded, unless OMP_NUM_THREADS is set. Ray sets
that when a replica takes over a worker process, and by then numpy is loaded. After each product of
matrices these threads spin for some 30 ms, on the cores that the engines need.
"""

import numpy as np  # noqa: F401  # its library has to be loaded before it can be limited
from threadpoolctl import threadpool_limits


def limit_numpy_threads() -> None:
    """Compute products of matrices in the calling thread alone; those of numpy are small here."""
    threadpool_limits(1, user_api="blas")
