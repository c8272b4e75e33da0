"""Tables of results, without torch: records, bands, verdicts, summaries."""
