"""Reporting: what the scores mean, how sure that is, and the pages that say so."""
