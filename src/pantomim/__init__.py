"""Pantomim: masked image modelling, from images to an encoder people use."""
