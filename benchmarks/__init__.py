"""What the package costs and gains, against what users would use instead. None of this is a test."""
