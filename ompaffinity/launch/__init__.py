"""Start ranks that are bound before they start, or bind the one that a launcher started."""
