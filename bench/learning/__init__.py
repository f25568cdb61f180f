"""Does it learn: the loss of every scenario at one budget, on real weights and real text.

`packages` finds weights and texts inside installed packages, `texts` splits and batches them,
`study` says which arms are compared (`arms`: their configurations, at one budget), `fit`
trains one of them, and finds its rate, `schedule` runs all of it and can be interrupted,
`ranking` and `claims` say what the losses say, `signal` what the first gradient foretells.
"""
