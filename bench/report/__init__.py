"""The report: what a results folder holds, as one HTML page, as Markdown and as CSV."""
