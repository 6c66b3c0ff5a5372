"""The command line: dispatch before anything heavy is imported, then the commands."""
