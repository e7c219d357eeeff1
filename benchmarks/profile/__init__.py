"""The CPU kernels under a magnifying glass: instructions, vectors, latency, sizes, dtypes, threads.

`python -m benchmarks.profile` measures and prints tables; each part is a file with `measure`,
which gives what JSON can hold, and `tables`, which shows it.
"""
