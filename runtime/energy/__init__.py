"""Energy measurements: power sensors and energy counters, and the energy of a time window."""
