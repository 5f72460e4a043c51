"""Probes look at a network and leave it exactly as they found it: ``probe(model, ...) -> numbers``."""
