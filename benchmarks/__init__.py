"""Measurements: each command is run as ``python -m benchmarks.NAME`` and prints what it found.

Commands
    quality          how good is each method of routing on the same table?
    tables           README.md again, from the stored results
    encoder_forms    how often does the shipped form of the encoder change a decision?
What quality is made of, in the order of a run
    protocol         what a method gets and gives: rows, folds, controls
    rivals           the published methods and the grids of the tuned ones (with rivals_base, rivals_torch)
    ours, marks      our own recipe under the same rule; what the methods lie between
    rounds           every method in every fold, kept
    measures, trust  figures with their intervals; whether forecasts mean what they say
    verdicts         are the aims reached?
    sheets, wording  which figure stands where, and how it is written
    plots            the cost-quality frontiers, here and in frontier.ipynb
"""
