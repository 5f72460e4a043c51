"""Hardening networks, and judging whether it is real.

``keeping``  hooks for ``fit``: the state at a given accuracy, the state that withstands attacks best
``tasks``    other trainings: noise, gradient penalty, distillation    ``fronts``   what stands before a network
``league``   one network per defence, by name                          ``masking``  naive against adaptive attacks
"""
