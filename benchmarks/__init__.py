"""Speed of genkern against eager PyTorch, torch.compile, diffusers and the memory's bandwidth.

`python -m benchmarks` prints a table; `pytest benchmarks` runs the same cases under
pytest-benchmark. Both take the cases from `cases.py` and check a case against float64 mathematics
before they time it.
"""
