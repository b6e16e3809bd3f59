"""How a run goes: metrics, trackers, diagnostics, and what it takes to repeat it."""
