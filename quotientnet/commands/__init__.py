"""What ``python -m quotientnet`` does, one command a file."""
