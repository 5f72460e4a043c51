"""cnnstudy: fifty questions about convolutional networks, answered by recorded measurements.

The map of rooms.  Imports go strictly downwards; the two halves never import each other, and only the notebooks join them.
``tests/test_layers.py`` holds the rule.

    cli                                          list | plan | run | draw | status | verdicts | retract | data

    report/  (questions; never torch)
        execute, drawing, cells, sentinels       run pages: measure, then draw
        study > show, charts, theme              what a notebook holds, and what a reader sees
        site > sphinxext, pages, checks          the static site
        verdicts > select, rules, trends, judging, rows, outcomes, wording
        claims > conditions                      the ledger, typed
        evidence, plan, published, frontier      records, what is expected, figures from papers

    bench    (torch; never questions)
        hooks, defences                          look on or step in while a network learns
        train, attacks, compress, engines        recipes and tasks; FGSM, PGD, Square; INT8; what runs a network
        probes                                   costs, gradients, Jacobians, anatomy; taps registers all hooks
        models > layers                          small networks for 32 x 32; timm's for ImageNet, and edits of them
        data, timing, weights

    foundation (no torch at import)
        source, fetch > runtime, stats, archives > config
"""

__version__ = "0.1.0"
