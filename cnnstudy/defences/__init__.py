"""Hardening networks beside adversarial training, and choosing which state of a training to keep.

``keeping``   hooks for ``fit``: the state at a given accuracy, the state that withstands attacks best
``tasks``     other defences that change the training    ``fronts``  defences that stand before a network
"""
