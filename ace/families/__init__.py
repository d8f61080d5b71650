"""MODEL FAMILIES. Imports: conditions, extract, diffusion, inference, plus, weights, conversation, files, errors.

What a conversation asks of a model, for each kind of model.
"""
