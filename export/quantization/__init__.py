"""Quantisation: calibration, recipes for INT8 graphs, and the sensitivity to each tensor."""
