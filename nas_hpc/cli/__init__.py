"""The command line: one file a command group, loaded when its command is called."""
