"""Support matrix: what the export, the proofs and the engines do on networks of many kinds."""
