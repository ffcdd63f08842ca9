"""The protocol of a benchmark: worker processes, workloads, ceilings and the roofline."""
