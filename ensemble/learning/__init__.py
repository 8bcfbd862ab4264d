"""Learning: outcome tables in, a router's bundle out. Serving never imports this package.

tables      the outcome table: prompts x members, read from Parquet and checked
split       near-duplicate prompts kept together; train, validation and test parts
features    prompts to vectors, kept on disk between runs
metrics     the cost-quality curve and what is read off it
baselines   the simple methods a router has to beat
evaluate    predictions against a held-out part: one report
"""
