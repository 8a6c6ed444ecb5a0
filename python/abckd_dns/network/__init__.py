"""The noise suppressor: its transform, its layers, its names, and what it costs."""
