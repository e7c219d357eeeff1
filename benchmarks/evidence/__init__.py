"""All the evidence of this machine, and the page that shows it: `python -m benchmarks.evidence`."""
