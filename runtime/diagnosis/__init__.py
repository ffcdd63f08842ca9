"""The diagnosis of a machine and of slow INT8 graphs."""
