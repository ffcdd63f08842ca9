"""Quantisation-aware training: the fake-quantised network and its teacher."""
