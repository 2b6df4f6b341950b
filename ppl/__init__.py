"""The language: models, measures, traces, objectives and the common training loop."""
