"""The tasks of the world, one file per family: dice in, an `EditSample` out."""
