"""numpy in a worker process that has loaded it before a replica takes it over."""

from threadpoolctl import threadpool_info, threadpool_limits

from deployments.runtime.numpy_threads import limit_numpy_threads


def numpy_threads() -> list[int]:
    return [
        library["num_threads"]
        for library in threadpool_info()
        if "numpy" in library["filepath"] and library["user_api"] == "blas"
    ]


def test_numpy_computes_in_the_calling_thread_alone() -> None:
    with threadpool_limits(2, user_api="blas"):
        assert numpy_threads() == [2]
        limit_numpy_threads()
        assert numpy_threads() == [1]
