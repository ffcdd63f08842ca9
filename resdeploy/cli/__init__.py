"""The command line: one module per command, with its options, its call and its console text."""
