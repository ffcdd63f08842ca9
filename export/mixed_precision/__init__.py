"""Mixed precision: the layers that stay in float in an INT8 graph."""
