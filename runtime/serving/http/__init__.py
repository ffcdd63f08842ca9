"""The HTTP server, its routes and its web page."""
