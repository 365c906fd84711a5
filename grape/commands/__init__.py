"""What the commands of `grape` do, a module each; cli.py says how they are called and imports the one that is asked for."""
