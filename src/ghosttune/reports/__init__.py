"""What a run directory shows: figures, their numbers, and the page that holds them. Reads files; imports no torch.

In reading order: reading, figures, drawing, markup, page; what it shows: verdict, training, gradients, heatmaps,
contributions, values, examples, samples, choosing, mixtures, rewards, forgotten, validation, projections, evaluation,
configuration; apart from the page: plots, summary, card.
"""
