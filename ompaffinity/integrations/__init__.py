"""What knows other projects."""
