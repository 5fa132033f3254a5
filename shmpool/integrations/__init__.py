"""The pool beneath what people use already: multiprocessing, concurrent.futures, joblib, torch.

`pickling` puts it beneath every pipe of multiprocessing's (`shmpool.install`), `executor` is an executor with a
broker of its own (`shmpool.Executor`); `joblib` and `torch` need these libraries. Each is imported when it is
first asked for.
"""
