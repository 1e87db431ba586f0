"""Telemetry: what training reports, and the logs, trackers and views that show it."""
