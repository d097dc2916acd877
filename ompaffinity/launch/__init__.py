"""Start ranks bound from birth, or bind the one that somebody else starts."""
