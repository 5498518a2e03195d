"""Where it runs and where bytes live."""
