"""The report half: questions, records, rules, verdicts and pages.  Nothing here imports torch."""
