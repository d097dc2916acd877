"""MEASURE: the user's own command under several bindings, and the result."""
