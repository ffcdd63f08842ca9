"""Facts about the machine that every stage records: CPU, GPUs, Jetson, clocks, temperatures."""
