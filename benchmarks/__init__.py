"""Measurements: each command is run as ``python -m benchmarks.NAME`` and prints what it found.

Commands
    quality          how good is each method of routing on the same table?
    tables           README.md again, from the stored results
    latency          how fast is a decision, and how much of that is the encoder?
    encoder_forms    how fast, large and true is each form of the encoder, and what does it cost in routing?
    faults           do calls get through, is the bill right, and does the log lose nothing?
    hostile          what does each hostile input get? (a part of faults too)
    featurize        how many prompts a second become features by torch, on which device?
What quality is made of, in the order of a run
    protocol         what a method gets and gives: rows, folds, controls
    rivals           the published methods and the grids of the tuned ones (with rivals_base, rivals_torch)
    ours, marks      our own recipe under the same rule; what the methods lie between
    rounds           every method in every fold, kept
    measures, trust  figures with their intervals; whether forecasts mean what they say
    verdicts         are the aims reached?
    sheets, wording  which figure stands where, and how it is written
    plots            the cost-quality frontiers, here and in frontier.ipynb
What latency is made of
    stopwatch        contenders in turn, by one caller or by many
    latency_contenders, latency_rounds, latency_serving, latency_child   what is timed, and in what order
    latency_texts    texts of exactly so many tokens
    latency_aims, latency_page   are the aims reached? tables, a picture and LATENCY.md
    loopback, machine    a provider on this machine; the name of its processor
What faults is made of
    faults_provider, faults_callers   a provider that fails on purpose and keeps a bill; many threads that ask
    faults_load, faults_outage, faults_kill, faults_child   what is tried
    faults_aims, faults_page   are the aims reached? tables and FAULTS.md
What hostile is made of
    hostile_case     one input, and what should come of it
    hostile_bundles, hostile_victim, hostile_pools, hostile_calls   the inputs
    gadgets          how far can text push the router to a dear member, and what bounds it?
What encoder_forms is made of
    forms, forms_measured, forms_quality   each form of the graph, its speed and truth, its cost in routing
"""
