"""Training of residual networks: models, data, trainer and run folders."""
