"""Benchmarks: what the design promises in numbers, against a peer in the same run where there is one."""
