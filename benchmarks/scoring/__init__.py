"""Rows per second of `resdeploy score` against plain scripts with Ray Data and with Daft."""
