"""What benchmarks/samplers.py measures, and against whom."""
