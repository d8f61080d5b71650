"""One small file per benchmark: which samples, which answers, which report."""
