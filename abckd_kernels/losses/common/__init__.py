"""What the losses share: arguments, padding, weights, options, modules; finite arithmetic; normalisations; taps."""
