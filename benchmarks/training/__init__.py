"""Benchmarks of training: throughput, and the degradation of plain networks."""
