"""Networks that score a picture, one small file each. None ships weights: they are read from files that are named."""
