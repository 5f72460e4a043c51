"""Smaller and faster networks: each function takes a network, leaves it as it was, and gives a new one or a way to run it."""
