"""What benchmarks/samplers.py measures, and the methods it compares."""
