"""CANVAS → IMAGE. Imports: conditions, model, diffusion, extract, inference, files, errors.

ACE++ on FLUX.1-Fill: images and masks are arranged on one canvas, which the model repaints. In: pictures, masks, an
instruction and weight files. Out: the picture cut out of the canvas.
"""
