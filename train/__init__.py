"""Residual networks, their data, and the loop that trains them. The only stage that needs torch."""
