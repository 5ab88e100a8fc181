"""Training on transformers.Trainer, with our own row order, loss and checkpoints.

In reading order: trainer, arguments, order, optimizers, schedule_free, checkpoints, watching, freed; measuring a
step: instruments, engines, norms, guide, rotation, ledger, exports, attaching; what else a step may do: phasing,
packed, streaming, drawn, candidates, mixture, rollouts, referring, unlearning, allocating, initialising; before and
around it: probing, memory, sketching, processes, sharding, dealing, samples, tracking, alerting.
"""
