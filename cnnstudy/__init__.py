"""cnnstudy: fifty questions about convolutional networks, answered by recorded measurements.

The map of rooms.  Imports go strictly downwards; the two halves never import each other, and only the notebooks join them.
``tests/test_layers.py`` holds the rule.

    cli > report.commands                        list | plan | run | draw | status | verdicts | compare | share | merge | ...

    report/  (questions; never torch)
        runner, remote > graph, execute          run pages, here or on many machines: what is out of date, side by side
        children > warm > forks; locks, live     processes that start warm, who may run, what one sees of it
        drawing > shell; cells                   a notebook executed from records; its measuring cells alone
        status, choosing > estimates, standing   what is recorded and what it would take; vouch: older code, same numbers
        compare, bundle > intake, history        machines side by side; records that travel; sentinels: exact ones agree
        study > results, show, charts, theme     what a notebook holds, and what a reader sees
        site > sphinxext, pages, checks          the static site
        verdicts > select, rules, trends, judging, rows, outcomes, wording
        claims > conditions                      the ledger, typed
        evidence, runs, plan, published, frontier  records, the diary, what is expected, figures from papers

    bench    (torch; never questions)
        rates, starts, preactivation, placement  protocols of single questions: chains, initial weights, orders of operations
        pool, matched, updates, identity         base networks trained once; equal fits; weights watched, frozen, rescaled
        blocks, sitting, pace, budgets > stopwatch  layers and networks timed in one sitting, with any engine
        pilot, hooks, defences                   a rate for each network; look on or step in while it learns
        train, attacks, compress, engines        recipes and tasks; FGSM, PGD, Square; INT8; what runs a network
        profiles, roofline                       what the zoo costs; what this machine can do at most
        probes                                   costs, memory, fields, gradients, Jacobians, ...; taps registers all hooks
        models > layers                          small networks for 32 x 32; timm's for ImageNet, and edits of them
        noise > timing                           the clock, and how far this machine can trust it
        data, weights

    foundation (no torch at import)
        source, fetch, load > runtime, stats, archives > config
"""

__version__ = "0.1.0"
