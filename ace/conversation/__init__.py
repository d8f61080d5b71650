"""MESSAGE → NODE. Imports: conditions, inference, weights, files, errors.

In: messages of words, pictures and masks, and the answers that they follow. Out: pictures with their recipes, kept as
nodes of a session's tree, and made again from it.
"""
