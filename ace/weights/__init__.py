"""NAME → FILES → PIPELINE. Imports: conditions, model, inference, plus, files, errors.

In: a model's name, folder or hub id, adapters, a memory mode. Out: its files and hash, and the pipeline loaded from
them. Conversion and quantisation of published weights are here too.
"""
