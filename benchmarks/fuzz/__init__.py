"""Random calls against the reference and exact values, and hostile calls of the native operators.

`python -m benchmarks.fuzz` runs more of them than the tests do. docs/robustness.md has the results.
"""
