"""Small problems with known answers, run through the weightings, path, samplers and objectives of the image trainer."""
