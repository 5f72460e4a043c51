"""cnnstudy: fifty questions about convolutional networks, answered by recorded measurements.

The map of rooms.  Imports go strictly downwards; the two halves never import each other.

    cli                                     list | plan | run | status | verdicts | data ...
    report/  (questions; never torch)       study, execute, site > show, verdicts > rules, claims, evidence > theme
    bench    (torch; never questions)       train, attacks > probes, models > layers, data, timing
    foundation (no torch at import)         config, stats, runtime, fetch

Only the notebooks join the two halves.
"""

__version__ = "0.1.0"
