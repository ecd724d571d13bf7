"""The commands: flags by type, and one workflow called. Heavy imports wait until a command runs."""
