"""The command line: one file a command. Only here is everything imported, and only when a command needs it."""
