"""Learning: outcome tables in, a router's bundle out. Serving never imports this package.

Where outcomes come from
    prompts, plan, asking, journal, scoring, collect     every prompt put to every member, within a budget
    longform, tables                                     the outcome table: read, checked, prompts x members
    from_log                                             the same from the rewarded answers of a log
How a router is learned, in the order of a run (train)
    split, features      near-duplicates kept together; prompts to vectors, kept on disk between runs
    clusters, trunk      where a prompt lies among landmarks
    effects, fit         difficulty and ability told apart; what each member is worth at each landmark
    crossfit, calibrate  what would have been predicted unseen; what is chosen and corrected by it
    doubt                how far off it may be nevertheless, the stranger the prompt the farther
    recipe               all of that in its order, from features and outcomes to weights
    export, card         one ONNX graph; the text for people, with its caveats
How good it is
    prices, metrics, baselines, evaluate, figures        the cost-quality curve, and what it is compared with
What turns prompts into features
    encoders, depths                                     any sentence-transformers model as one ONNX graph
    eight_bits, eight_bit_products                       the graph made smaller, and faster
    encoders_torch                                       the same features by torch, a million texts on a GPU
    tune, tuning_loss                                    one trained on a table, end to end
How a long run shows how far it is
    progress
"""
